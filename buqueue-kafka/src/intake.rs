//! What the client has fetched. Each partition has a queue of its own, from which no more is taken than there is room for;
//! the client fetches no more of it when that is full.
//!
//! (To pause partitions instead throws away what was fetched of them, and they rest for half a second when they go on.)

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;

use crate::convert::{self, Incoming};
use crate::group::Group;
use crate::session::{Session, Slot, weight};

/// How many records are taken of one partition before the others are looked at.
const TURN: usize = 250;
/// How many of all, before there is a look at anything else.
const STEP: usize = 2000;

/// A partition's own queue.
type Queue = rdkafka::consumer::base_consumer::PartitionQueue<Group>;

/// See the module.
pub(crate) struct Intake {
    consumer: Arc<BaseConsumer<Group>>,
    session: Arc<Session>,
    queues: BTreeMap<Slot, Queue>,
    /// Whose turn it was.
    turn: Option<Slot>,
    /// Of one partition; empty between calls.
    taken: Vec<(i64, Incoming)>,
}

impl Intake {
    pub(crate) fn new(consumer: &Arc<BaseConsumer<Group>>, session: &Arc<Session>) -> Self {
        Self {
            consumer: Arc::clone(consumer),
            session: Arc::clone(session),
            queues: BTreeMap::new(),
            turn: None,
            taken: Vec::new(),
        }
    }

    /// Takes what there is room for. Whether the client has ceased to read a partition, whose next record it cannot find.
    pub(crate) fn take(&mut self) -> bool {
        let mut stopped = self.serve();
        let (mut left, mut more) = (STEP, false);
        for slot in self.in_turn() {
            let (Some(queue), Some(room)) = (self.queues.get(&slot), self.session.room(slot)) else {
                continue;
            };
            let (most, mut bytes) = (room.records.min(TURN).min(left), 0);
            while self.taken.len() < most && bytes < room.bytes {
                match queue.poll(Duration::ZERO) {
                    Some(Ok(record)) => {
                        let incoming = convert::incoming(&record);
                        bytes += weight(&incoming.message);
                        self.taken.push((record.offset(), incoming));
                    }
                    Some(Err(error)) => stopped |= self.stops(error),
                    None => break,
                }
            }
            left -= self.taken.len();
            more |= self.taken.len() == TURN;
            self.session.read(slot, self.taken.drain(..));
            self.turn = Some(slot);
            if left == 0 {
                more = true;
                break;
            }
        }
        if more {
            self.session.wake();
        }
        stopped
    }

    /// The partitions, the one whose turn it is first.
    fn in_turn(&self) -> Vec<Slot> {
        let (before, after): (Vec<Slot>, Vec<Slot>) =
            self.queues.keys().partition(|slot| self.turn.is_some_and(|turn| **slot <= turn));
        after.into_iter().chain(before).collect()
    }

    /// Lets the client call back. Takes no records, but those that it has not put where they belong; as
    /// [`take`](Self::take) otherwise.
    pub(crate) fn serve(&mut self) -> bool {
        let (mut stopped, mut astray) = (false, Vec::new());
        loop {
            let calls = self.consumer.context().calls();
            match self.consumer.poll(Duration::ZERO) {
                Some(Ok(record)) => {
                    let slot = self.consumer.context().slot(record.topic(), record.partition());
                    let incoming = convert::incoming(&record);
                    self.session.read(slot, [(record.offset(), incoming)]);
                    if !astray.contains(&slot) {
                        astray.push(slot);
                    }
                }
                Some(Err(error)) => stopped |= self.stops(error),
                // Something was called back.
                None if self.consumer.context().calls() != calls => self.divide(),
                None if astray.is_empty() => return stopped,
                // These had no queue yet, or have a new one. What has come by then stands before what comes into it.
                None => astray.drain(..).for_each(|slot| self.split(slot)),
            }
        }
    }

    /// Looks after the queues of what was assigned, and of nothing else.
    fn divide(&mut self) {
        let owned = self.session.slots();
        let gone: Vec<Slot> = self.queues.keys().filter(|slot| !owned.contains(slot)).copied().collect();
        gone.into_iter().for_each(|slot| self.forget(slot));
        let new: Vec<Slot> = owned.into_iter().filter(|slot| !self.queues.contains_key(slot)).collect();
        new.into_iter().for_each(|slot| self.split(slot));
    }

    /// A partition was taken away, and what was fetched of it with it. The client gets rid of that when somebody asks.
    pub(crate) fn forget(&mut self, slot: Slot) {
        if let Some(queue) = self.queues.remove(&slot) {
            while queue.poll(Duration::ZERO).is_some() {}
        }
    }

    /// Takes from the queue of a partition from now on.
    pub(crate) fn split(&mut self, slot: Slot) {
        // Who is dropped later would take away what wakes its successor.
        self.queues.remove(&slot);
        if self.session.next(slot).is_none() {
            return;
        }
        if let Some(mut queue) = self.consumer.context().own_queue(slot) {
            let waking = Arc::downgrade(&self.session);
            queue.set_nonempty_callback(move || {
                if let Some(session) = waking.upgrade() {
                    session.wake();
                }
            });
            self.queues.insert(slot, queue);
            // What has come before that wakes nobody.
            self.session.wake();
        }
    }

    fn stops(&self, error: KafkaError) -> bool {
        let stops =
            matches!(error.rdkafka_error_code(), Some(Code::AutoOffsetReset | Code::OffsetOutOfRange));
        if !stops {
            self.consumer.context().report("receive", error);
        }
        stops
    }
}
