//! Sending: one message, or many in batches.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use buqueue_core::{BuqueueError, ErrorKind, Message, MessageId, Result};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};

use crate::config::SqsOptions;
use crate::connection::Link;
use crate::convert::{self, Beside, MAX_BYTES, Manner, Outgoing};
use crate::error;
use crate::topology::{self, Standing};

/// The most messages of a batch.
pub(crate) const BATCH: usize = 10;
/// All that a message may have beside its payload, its texts and its headers: attributes and fields of ours.
const OWN_MOST: usize = 512;
/// How many batches are on their way at the same time: of different keys, where order is promised.
const BATCHES: usize = 8;

/// Sends to one queue.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    pub(crate) link: Link,
    pub(crate) options: SqsOptions,
    pub(crate) manner: Manner,
    max_bytes: usize,
}

impl Sender {
    pub(crate) fn new(link: Link, options: &SqsOptions, standing: Standing) -> Self {
        let fifo = link.queue.fifo;
        let manner = Manner { fifo, grouped: fifo || options.config.fair_queues };
        Self { link, options: options.clone(), manner, max_bytes: standing.max_bytes.min(MAX_BYTES) }
    }

    /// The message as it is sent, if it is not too large.
    pub(crate) fn outgoing(&self, message: &Message, beside: &Beside) -> Result<Outgoing> {
        let outgoing = Outgoing::new(message, self.manner, beside)?;
        if outgoing.bytes > self.max_bytes {
            let fact = format!(
                "payload and headers: {} bytes, the limit is {} bytes",
                outgoing.bytes, self.max_bytes
            );
            return Err(BuqueueError::new(ErrorKind::PayloadTooLarge, fact));
        }
        Ok(outgoing)
    }

    /// How many bytes of further headers leave the message small enough, in whichever way they travel and whether it is
    /// sent now or later.
    pub(crate) fn header_room(&self, message: &Message) -> usize {
        header_room(message, self.max_bytes)
    }

    /// Sends many, one outcome each, in order. What cannot be sent at all comes as an error already.
    pub(crate) async fn send_all(&self, outgoing: Vec<Result<Outgoing>>) -> Vec<Result<MessageId>> {
        if !self.manner.fifo {
            let sending = stream::iter(in_batches(outgoing).into_iter().map(|part| self.send_batch(part)));
            return sending.buffered(BATCHES).collect::<Vec<_>>().await.into_iter().flatten().collect();
        }
        let count = outgoing.len();
        let mut lanes: Vec<Vec<(usize, Result<Outgoing>)>> = Vec::new();
        lanes.resize_with(count.div_ceil(BATCH).min(BATCHES), Vec::new);
        for (at, outgoing) in outgoing.into_iter().enumerate() {
            let lane = outgoing.as_ref().map_or(at, |outgoing| lane(outgoing, at)) % lanes.len();
            lanes[lane].push((at, outgoing));
        }
        let sending = lanes.into_iter().map(|lane| async {
            let (places, outgoing): (Vec<_>, Vec<_>) = lane.into_iter().unzip();
            places.into_iter().zip(self.send_in_order(outgoing).await).collect::<Vec<_>>()
        });
        let mut outcomes: Vec<_> = join_all(sending).await.into_iter().flatten().collect();
        outcomes.sort_unstable_by_key(|(at, _)| *at);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// One batch after the other, and nothing of a group of which something has failed: it would overtake that.
    async fn send_in_order(&self, outgoing: Vec<Result<Outgoing>>) -> Vec<Result<MessageId>> {
        let mut outcomes = Vec::with_capacity(outgoing.len());
        let mut failed: HashSet<String> = HashSet::new();
        for mut part in in_batches(outgoing) {
            for outgoing in &mut part {
                if matches!(outgoing, Ok(Outgoing { group: Some(group), .. }) if failed.contains(group)) {
                    let fact = "not sent: a message before it, with the same routing key, was not";
                    *outgoing = Err(BuqueueError::new(ErrorKind::Throttled, fact));
                }
            }
            let groups: Vec<Option<String>> = part
                .iter()
                .map(|outgoing| outgoing.as_ref().ok().and_then(|outgoing| outgoing.group.clone()))
                .collect();
            let sent = self.send_batch(part).await;
            let sent_not = sent.iter().zip(groups).filter(|(sent, _)| sent.is_err());
            failed.extend(sent_not.filter_map(|(_, group)| group));
            outcomes.extend(sent);
        }
        outcomes
    }

    /// Sends one batch; a queue that has gone is created again.
    async fn send_batch(&self, part: Vec<Result<Outgoing>>) -> Vec<Result<MessageId>> {
        let sent = self.send_batch_once(&part).await;
        let gone = |sent: &Result<MessageId>| matches!(sent, Err(error) if error.kind == ErrorKind::NotFound);
        if sent.iter().any(gone) && topology::ensure_queue(&self.link, &self.options).await.is_ok() {
            let again = self.send_batch_once(&part).await;
            return again.into_iter().map(|sent| sent.map_err(topology::not_yet)).collect();
        }
        sent
    }

    async fn send_batch_once(&self, part: &[Result<Outgoing>]) -> Vec<Result<MessageId>> {
        let what = "SendMessageBatch";
        let mut outcomes: Vec<Result<MessageId>> = Vec::with_capacity(part.len());
        let mut entries = Vec::with_capacity(part.len());
        for (at, outgoing) in part.iter().enumerate() {
            let entry = outgoing.as_ref().map_err(BuqueueError::again).and_then(|outgoing| {
                SendMessageBatchRequestEntry::builder()
                    .id(at.to_string())
                    .message_body(&outgoing.body)
                    .set_message_attributes(outgoing.attributes.clone())
                    .set_message_group_id(outgoing.group.clone())
                    .set_message_deduplication_id(outgoing.deduplication.clone())
                    .set_delay_seconds(outgoing.delay_seconds)
                    .build()
                    .map_err(convert::incomplete)
            });
            match entry {
                Ok(entry) => {
                    entries.push(entry);
                    outcomes.push(Err(error::unanswered(what)));
                }
                Err(error) => outcomes.push(Err(error)),
            }
        }
        if entries.is_empty() {
            return outcomes;
        }
        let asked: Vec<usize> = entries.iter().filter_map(|entry| entry.id().parse().ok()).collect();
        let sending = self
            .link
            .client
            .send_message_batch()
            .queue_url(&self.link.queue.whole)
            .set_entries(Some(entries));
        match sending.send().await {
            Ok(answer) => {
                for entry in answer.successful() {
                    set(&mut outcomes, entry.id(), Ok(entry.message_id().to_owned().into()));
                }
                for entry in answer.failed() {
                    set(&mut outcomes, entry.id(), Err(error::from_entry(what, entry)));
                }
            }
            Err(error) => {
                let error = error::from_sdk(what, error);
                for at in asked {
                    outcomes[at] = Err(error.again());
                }
            }
        }
        outcomes
    }
}

/// As many headers as are added at most, and what each takes beside its name and value, in JSON and as an attribute.
const ADDED: usize = 16;
const BESIDE: usize = 6;

fn header_room(message: &Message, limit: usize) -> usize {
    let headers = message.headers();
    let texts = [message.routing_key(), message.deduplication_id()].into_iter().flatten();
    let texts = texts.chain(headers.iter().flat_map(|(name, value)| [name, value]));
    let taken = message.payload().len()
        + OWN_MOST
        + texts.map(in_json).sum::<usize>()
        + BESIDE * (headers.len() + ADDED);
    // What is added is printable, and one byte of that may become two.
    limit.saturating_sub(taken) / 2
}

/// How long a text is in JSON at most: that is how it may travel.
fn in_json(text: &str) -> usize {
    let escaped = |byte| match byte {
        b'"' | b'\\' => 2,
        0..=0x1f => 6,
        // Three of these are a character that SQS does not take, and that is written in six.
        0x80.. => 2,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}

fn set(outcomes: &mut [Result<MessageId>], id: &str, outcome: Result<MessageId>) {
    if let Some(place) = id.parse::<usize>().ok().and_then(|at| outcomes.get_mut(at)) {
        *place = outcome;
    }
}

/// Which messages stay behind one another: those of one key, and those of one deduplication id.
fn lane(outgoing: &Outgoing, at: usize) -> usize {
    let same = outgoing.group.as_ref().filter(|_| outgoing.keyed).or(outgoing.deduplication.as_ref());
    let mut hasher = DefaultHasher::new();
    match same.filter(|_| outgoing.keyed || outgoing.identified) {
        Some(same) => same.hash(&mut hasher),
        None => return at,
    }
    usize::try_from(hasher.finish() & 0xffff).unwrap_or(0)
}

/// Into batches that SQS takes, by number and by size.
fn in_batches(outgoing: Vec<Result<Outgoing>>) -> Vec<Vec<Result<Outgoing>>> {
    let sizes = outgoing.iter().map(|outgoing| outgoing.as_ref().map_or(0, |outgoing| outgoing.bytes));
    let counts = batches(sizes);
    let mut rest = outgoing.into_iter();
    counts.into_iter().map(|count| rest.by_ref().take(count).collect()).collect()
}

/// How many of the messages each batch takes.
fn batches(sizes: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut counts = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    for size in sizes {
        if count == BATCH || (count > 0 && bytes + size > MAX_BYTES) {
            counts.push(count);
            (count, bytes) = (0, 0);
        }
        count += 1;
        bytes += size;
    }
    if count > 0 {
        counts.push(count);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::{Story, Wait};

    #[test]
    fn the_room_for_headers_is_there() {
        let typical = Message::new("x".repeat(2000)).with_header("a", "b").with_routing_key("k");
        assert!(header_room(&typical, 256 * 1024) >= 10_000);
        assert!(header_room(&typical, 16 * 1024) >= 4000);
        assert_eq!(header_room(&Message::new("x".repeat(MAX_BYTES)), MAX_BYTES), 0);
        let story =
            Story { failures: u32::MAX, first_failed_at: Some(chrono::DateTime::<chrono::Utc>::MAX_UTC) };
        let beside = Beside { story, wait: Some(Wait::FromSent(u64::MAX)), schedule: Some("s".repeat(64)) };
        let bare = Message::new(vec![0; 100]);
        let keyed = Message::new("")
            .with_routing_key("\u{1}".repeat(50))
            .with_deduplication_id("\u{ffff}".repeat(20));
        for (headers, header) in [(0, 0), (3, 20), (10, 1), (9, 1500), (300, 300)] {
            for message in [&bare, &keyed] {
                for (filler, limit) in
                    [("x", MAX_BYTES), ("\u{1}", MAX_BYTES), ("x", 4096), ("\u{fffe}", 4096)]
                {
                    let mut message = message.clone();
                    for n in 0..headers {
                        message = message.with_header(format!("h{n}"), filler.repeat(header));
                    }
                    let room = header_room(&message, limit);
                    let one = message.clone().with_header("n", "\\".repeat(room.saturating_sub(1)));
                    let each = "\"".repeat((room / ADDED).saturating_sub(2));
                    let many =
                        (0..ADDED).fold(message, |message, n| message.with_header(format!("{n:02}"), &each));
                    for message in [one, many].into_iter().filter(|_| room > 0) {
                        for fifo in [false, true] {
                            let manner = Manner { fifo, grouped: fifo };
                            for beside in [&beside, &Beside::default()] {
                                let bytes = Outgoing::new(&message, manner, beside).unwrap().bytes;
                                assert!(bytes <= limit, "{bytes} {limit} {room}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn batches_are_full_and_never_over() {
        assert!(batches(std::iter::empty()).is_empty());
        assert_eq!(batches([1; 25].into_iter()), [10, 10, 5]);
        assert_eq!(batches([MAX_BYTES; 3].into_iter()), [1, 1, 1]);
        assert_eq!(batches([MAX_BYTES / 2, MAX_BYTES / 2, 1].into_iter()), [2, 1]);
        assert_eq!(batches([0, MAX_BYTES, 0].into_iter()), [3]);
    }
}
