//! Message headers: a small map in one buffer.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;

/// Header names that start with this belong to buqueue; a user's message that carries one is refused. Except one:
/// `buqueue-deliver-at`, by which schedules are measured, is taken out of a message, and neither sent nor received as a header.
pub const RESERVED_PREFIX: &str = "buqueue-";

/// Digits of seven bits that hold a length. Each is a byte below 0x80, so the buffer stays valid UTF-8 and a
/// value is sliced out without being checked again.
const LENGTH_DIGITS: usize = 5;
const LENGTH_MAX: u64 = (1 << (7 * LENGTH_DIGITS)) - 1;

/// From so many headers on, names are remembered by their hashes: a foreign program may set thousands.
const MANY: u32 = 64;
/// Random for each process: nobody can choose names that all look alike.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The headers of a message: a map from name to text.
///
/// Names are case-sensitive; setting a name again replaces its value; the order is not promised. On send a name
/// must be 1 to 255 bytes of visible ASCII; what a foreign program wrote is kept as far as the type allows.
///
/// Made for a handful of headers: looking one up, and replacing one, walks over those before it. Setting a new one does not
/// where there are many.
///
/// All headers live in one buffer, so building, cloning and dropping a set costs one allocation, not two a header.
#[derive(Clone, Default)]
pub struct Headers {
    // Per header: name length, value length (LENGTH_DIGITS bytes each), name, value.
    buffer: String,
    len: u32,
    /// Where there are many: what is not in it is not a name. Names that were removed may stay in it.
    #[expect(clippy::box_collection, reason = "a message is moved often, and hardly one has so many")]
    seen: Option<Box<HashSet<u64>>>,
}

impl Headers {
    /// An empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { buffer: String::new(), len: 0, seen: None }
    }

    /// Sets a header, replacing the value that the name had.
    pub fn insert(&mut self, name: &str, value: &str) {
        let too_long = |text: &str| u64::try_from(text.len()).is_ok_and(|length| length > LENGTH_MAX);
        if too_long(name) || too_long(value) {
            // 32 GiB: no broker takes it, and the length would not fit its field.
            return;
        }
        self.remove(name);
        self.remember(name);
        self.buffer.reserve(2 * LENGTH_DIGITS + name.len() + value.len());
        push_length(&mut self.buffer, name.len());
        push_length(&mut self.buffer, value.len());
        self.buffer.push_str(name);
        self.buffer.push_str(value);
        self.len += 1;
    }

    /// Removes a header; tells whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(entry) = self.find(name) else { return false };
        let range = entry.start..entry.end;
        self.buffer.replace_range(range, "");
        self.len -= 1;
        true
    }

    /// The value of a header.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.find(name).map(|entry| entry.value)
    }

    /// All headers, in no promised order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries().map(|entry| (entry.name, entry.value))
    }

    /// How many headers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all names and values together, as limits count them.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.buffer.len() - self.len() * 2 * LENGTH_DIGITS
    }

    fn entries(&self) -> Entries<'_> {
        Entries { buffer: &self.buffer, at: 0 }
    }

    fn find(&self, name: &str) -> Option<Entry<'_>> {
        match &self.seen {
            Some(seen) if !seen.contains(&HASHER.hash_one(name)) => None,
            _ => self.entries().find(|entry| entry.name == name),
        }
    }

    fn remember(&mut self, name: &str) {
        if let Some(seen) = &mut self.seen {
            seen.insert(HASHER.hash_one(name));
        } else if self.len >= MANY {
            let names = self.iter().map(|(name, _)| name).chain([name]);
            self.seen = Some(Box::new(names.map(|name| HASHER.hash_one(name)).collect()));
        }
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut headers = Self::new();
        for (name, value) in pairs {
            headers.insert(name.as_ref(), value.as_ref());
        }
        headers
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().all(|(name, value)| other.get(name) == Some(value))
    }
}

impl Eq for Headers {}

/// Names only: values may be personal or secret.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

struct Entry<'a> {
    start: usize,
    end: usize,
    name: &'a str,
    value: &'a str,
}

struct Entries<'a> {
    buffer: &'a str,
    at: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        if self.at >= self.buffer.len() {
            return None;
        }
        let start = self.at;
        let name_at = start + 2 * LENGTH_DIGITS;
        let value_at = name_at + read_length(self.buffer, start);
        let end = value_at + read_length(self.buffer, start + LENGTH_DIGITS);
        self.at = end;
        Some(Entry { start, end, name: &self.buffer[name_at..value_at], value: &self.buffer[value_at..end] })
    }
}

fn push_length(buffer: &mut String, mut length: usize) {
    for _ in 0..LENGTH_DIGITS {
        let digit = u8::try_from(length & 0x7f).unwrap_or(0);
        buffer.push(char::from(digit));
        length >>= 7;
    }
}

fn read_length(buffer: &str, at: usize) -> usize {
    buffer.as_bytes()[at..at + LENGTH_DIGITS]
        .iter()
        .rev()
        .fold(0, |length, &digit| (length << 7) | usize::from(digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_odd_values() {
        let long = "x".repeat(70_000);
        let mut headers = Headers::new();
        for (name, value) in [("a", ""), ("b", "two\nlines"), ("c", "größe ✓"), ("d", &long)] {
            headers.insert(name, value);
        }
        assert_eq!(headers.len(), 4);
        assert_eq!(headers.get("a"), Some(""));
        assert_eq!(headers.get("b"), Some("two\nlines"));
        assert_eq!(headers.get("c"), Some("größe ✓"));
        assert_eq!(headers.get("d"), Some(long.as_str()));
        assert_eq!(headers.get("A"), None);
        assert_eq!(headers.byte_len(), 4 + "two\nlines".len() + "größe ✓".len() + long.len());
    }

    #[test]
    fn setting_again_replaces_and_equality_ignores_order() {
        let one: Headers = [("a", "1"), ("b", "2"), ("a", "3")].into_iter().collect();
        let two: Headers = [("b", "2"), ("a", "3")].into_iter().collect();
        assert_eq!(one.len(), 2);
        assert_eq!(one, two);
    }

    #[test]
    fn removing_keeps_the_others() {
        let mut headers: Headers = [("a", "1"), ("b", "2"), ("c", "3")].into_iter().collect();
        assert!(headers.remove("b"));
        assert!(!headers.remove("b"));
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("a", "1"), ("c", "3")]);
    }

    #[test]
    fn thousands_are_a_map_as_well() {
        let name = |number: usize| format!("name-{number}");
        let mut headers = Headers::new();
        for number in 0..10_000 {
            headers.insert(&name(number), "before");
        }
        for number in [0, 63, 64, 65, 9_999] {
            headers.insert(&name(number), "after");
            assert_eq!(headers.get(&name(number)), Some("after"));
        }
        assert_eq!(headers.len(), 10_000);
        assert_eq!(headers.get("name-10000"), None);
        assert!(headers.remove("name-64") && !headers.remove("name-64"));
        assert_eq!((headers.get("name-64"), headers.len()), (None, 9_999));
        headers.insert("name-64", "again");
        assert_eq!(headers.get("name-64"), Some("again"));
        assert_eq!(headers.iter().count(), 10_000);
    }

    #[test]
    fn debug_shows_names_only() {
        let headers: Headers = [("token", "secret")].into_iter().collect();
        assert_eq!(format!("{headers:?}"), r#"["token"]"#);
    }
}
