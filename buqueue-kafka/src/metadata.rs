//! The metadata of a commit: which records above the committed offset are not done, and how often they have been tried.
//! No I/O.
//!
//! `bq1:` and base64 of numbers of seven bits a byte: how far was read, and then for each open record its distance from
//! the one before and its attempts. A broker takes 4096 bytes by default (`offset.metadata.max.bytes`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// The most characters of a commit's metadata.
pub(crate) const MAX_CHARS: usize = 4096;
const PREFIX: &str = "bq1:";
/// More attempts are not told of, so that each takes one byte: who has counted more begins at so many again after a crash.
const MOST_ATTEMPTS: u32 = 127;

/// What is known about a partition when it is committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The offset that is committed: everything below is done.
    pub(crate) next: i64,
    /// Everything below was read.
    pub(crate) read_to: i64,
    /// What was read and is not done, in order, with the attempts that were made.
    pub(crate) open: Vec<(i64, u32)>,
}

impl Position {
    /// As text; empty when there is nothing to say.
    pub(crate) fn encode(&self) -> String {
        if self.open.is_empty() && self.read_to <= self.next {
            return String::new();
        }
        let mut bytes = Vec::with_capacity(2 + 2 * self.open.len());
        push(&mut bytes, distance(self.next, self.read_to));
        let mut last = self.next;
        for &(offset, attempts) in &self.open {
            push(&mut bytes, distance(last, offset));
            push(&mut bytes, u64::from(attempts.min(MOST_ATTEMPTS)));
            last = offset;
        }
        let mut text = PREFIX.to_owned();
        STANDARD_NO_PAD.encode_string(bytes, &mut text);
        text
    }

    /// From a commit. What cannot be read was written by somebody else, and says nothing.
    pub(crate) fn decode(next: i64, metadata: &str) -> Self {
        let fresh = Self { next, read_to: next, open: Vec::new() };
        let Some(bytes) = metadata.strip_prefix(PREFIX).and_then(|text| STANDARD_NO_PAD.decode(text).ok())
        else {
            return fresh;
        };
        Self::read(next, &bytes).unwrap_or(fresh)
    }

    fn read(next: i64, mut bytes: &[u8]) -> Option<Self> {
        let read_to = next.checked_add_unsigned(pull(&mut bytes)?)?;
        let mut open: Vec<(i64, u32)> = Vec::new();
        let mut last = next;
        while !bytes.is_empty() {
            last = last.checked_add_unsigned(pull(&mut bytes)?)?;
            let attempts = u32::try_from(pull(&mut bytes)?).ok()?;
            if last >= read_to || open.last().is_some_and(|(before, _)| *before == last) {
                return None;
            }
            open.push((last, attempts));
        }
        Some(Self { next, read_to, open })
    }

    /// Whether it fits, also with some more open records behind.
    pub(crate) fn has_room(&self) -> bool {
        // Three bytes for each is what a record takes that is up to 16 000 behind the one before, and was tried often.
        const MORE: usize = 64 * 3 * 4 / 3;
        self.encode().len() + MORE <= MAX_CHARS
    }
}

/// How many more open records have room for certain beside so many, which are spread over so wide a span. Needs no look at
/// them: the logarithm is concave, so that they take most when they are spread evenly.
pub(crate) fn room(open: usize, span: u64) -> usize {
    // Four characters for three bytes, and a number in front.
    const BYTES: usize = (MAX_CHARS - PREFIX.len()) / 4 * 3 - 20;
    // What a record takes that is far behind the one before.
    const EACH: usize = 6;
    let evenly = span / u64::try_from(open).unwrap_or(1).max(1) + 1;
    // A bit more than the average takes: numbers of seven bits take a byte each, and a part of one is one.
    let bits = u64::BITS - evenly.leading_zeros();
    let distances = open + open * usize::try_from(bits).unwrap_or(64) / 7;
    BYTES.saturating_sub(distances + open) / EACH
}

fn distance(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from)).unwrap_or(0)
}

fn push(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(low_bits(number) | 0x80);
        number >>= 7;
    }
    bytes.push(low_bits(number));
}

fn low_bits(number: u64) -> u8 {
    u8::try_from(number & 0x7f).unwrap_or(0)
}

fn pull(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(next: i64, read_to: i64, open: &[(i64, u32)]) -> Position {
        Position { next, read_to, open: open.to_vec() }
    }

    #[test]
    fn what_is_written_is_read() {
        for position in [
            position(0, 0, &[]),
            position(7, 7, &[]),
            position(7, 9, &[(7, 0)]),
            position(5, 1_000_000, &[(5, 1), (6, 0), (300, 12), (999_999, 127)]),
            position(i64::MAX - 10, i64::MAX, &[(i64::MAX - 1, MOST_ATTEMPTS)]),
        ] {
            let text = position.encode();
            assert_eq!(Position::decode(position.next, &text), position, "{text}");
        }
        assert_eq!(position(7, 7, &[]).encode(), "");
        let often = position(7, 9, &[(7, u32::MAX)]).encode();
        assert_eq!(Position::decode(7, &often).open, [(7, MOST_ATTEMPTS)]);
    }

    #[test]
    fn what_somebody_else_wrote_says_nothing() {
        for text in ["", "text", "bq1:", "bq1:!", "bq1:gA", "bq2:AAA", "bq1:AQEB", "bq1:////////////////"] {
            assert_eq!(Position::decode(3, text), position(3, 3, &[]), "{text}");
        }
    }

    #[test]
    fn where_there_is_room_for_certain_there_is() {
        let mut below = crate::random::below(0x9e37_79b9_7f4a_7c15);
        let mut rooms = 0;
        for _ in 0..2000 {
            let many = 1 + below(1500);
            let bits = below(20);
            let widest = 1 + below(1 << bits);
            let mut offset = 1 << 40;
            let mut open = Vec::new();
            for _ in 0..many {
                offset += 1 + i64::try_from(if below(10) == 0 { below(widest) } else { 0 }).unwrap();
                open.push((offset, MOST_ATTEMPTS));
            }
            let next = open[0].0;
            let span = u64::try_from(offset + 1 - next).unwrap();
            let room = room(open.len(), span);
            rooms += usize::from(room > 0);
            for _ in 0..room {
                offset += 10_000;
                open.push((offset, MOST_ATTEMPTS));
            }
            let written = Position { next, read_to: offset + 1, open }.encode().len();
            assert!(room == 0 || written <= MAX_CHARS, "{many} and {room} more: {written}");
        }
        assert!((500..2000).contains(&rooms), "{rooms}");
    }

    #[test]
    fn a_thousand_open_records_fit() {
        let many = Position { next: 0, read_to: 2000, open: (0..1000).map(|n| (n * 2, 1)).collect() };
        assert!(many.encode().len() <= MAX_CHARS, "{}", many.encode().len());
        assert!(many.has_room());
        let far = Position { next: 0, read_to: 1 << 40, open: (0..1000).map(|n| (n << 24, 1)).collect() };
        assert!(!far.has_room());
    }
}
