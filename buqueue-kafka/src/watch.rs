//! What happens by itself, and is told for logs: each change once, however often it is tried again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use buqueue_core::BuqueueError;
use buqueue_core::driver::{self, Activity, Backend as _};

use crate::KafkaBackend;
use crate::group::Group;
use crate::session::lock;

/// How often it is asked whether a broker answers again.
const ASKED_EVERY: Duration = Duration::from_secs(1);

pub(crate) fn tell(topic: &str, activity: Activity<'_>) {
    driver::tell(KafkaBackend::NAME, topic, activity);
}

/// Work that is tried again when it fails: the first failure is told, and the next one after it has worked.
#[derive(Debug)]
pub(crate) struct Work {
    what: &'static str,
    fails: AtomicBool,
}

impl Work {
    pub(crate) const fn new(what: &'static str) -> Self {
        Self { what, fails: AtomicBool::new(false) }
    }

    pub(crate) fn failed(&self, topic: &str, error: &BuqueueError) {
        if !self.fails.swap(true, Ordering::AcqRel) {
            tell(topic, Activity::Failed(self.what, error));
        }
    }

    pub(crate) fn worked(&self) {
        self.fails.store(false, Ordering::Release);
    }
}

/// What has become of a member of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// No broker is there; it is whole when one answers.
    Connection,
    /// It is no member any more; it is whole when it is one again.
    Session,
}

/// Whether the group is heard of.
#[derive(Debug, Default)]
pub(crate) struct Line(Mutex<Option<Broken>>);

impl Line {
    pub(crate) fn broke(&self, topic: &str, how: Broken, error: &BuqueueError) {
        let mut broken = lock(&self.0);
        let before = *broken;
        // Who waits for the group does so also when brokers come and go meanwhile.
        *broken = before.filter(|before| *before == Broken::Session).or(Some(how));
        drop(broken);
        if before.is_none() {
            tell(topic, Activity::Disconnected(error));
        }
    }

    /// It is whole again, if it was broken so, or less.
    pub(crate) fn mended(&self, topic: &str, how: Broken) {
        let mends = |broken: &mut Broken| *broken == how || how == Broken::Session;
        let mended = lock(&self.0).take_if(mends);
        if mended.is_some() {
            tell(topic, Activity::Reconnected);
        }
    }

    fn is_silent(&self) -> bool {
        *lock(&self.0) == Some(Broken::Connection)
    }
}

/// Asks whether a broker answers again, where nothing else would say so for a long time: who is idle.
#[derive(Debug)]
pub(crate) struct Probe {
    not_before: Instant,
    /// Shared with the question that is under way.
    asking: Arc<()>,
}

impl Probe {
    pub(crate) fn new() -> Self {
        Self { not_before: Instant::now(), asking: Arc::default() }
    }

    /// As long as no broker is there, and one question at a time.
    pub(crate) fn ask(&mut self, group: &Arc<Group>) {
        let now = Instant::now();
        if !group.line.is_silent() || now < self.not_before || Arc::strong_count(&self.asking) > 1 {
            return;
        }
        self.not_before = now + ASKED_EVERY;
        let (group, asking) = (Arc::clone(group), Arc::clone(&self.asking));
        // It blocks, and so may the end of what it holds: no runtime is to wait for that. Without a thread it is asked again.
        let asking = std::thread::Builder::new().name("buqueue-kafka-probe".to_owned()).spawn(move || {
            let topic = &group.session.options.config.topic;
            if group.session.later.range_of(topic, 0).is_ok() {
                group.line.mended(topic, Broken::Connection);
            }
            drop(asking);
        });
        drop(asking);
    }
}

#[cfg(test)]
mod tests {
    use buqueue_core::ErrorKind;

    use super::*;

    #[test]
    fn who_waits_for_the_group_is_not_whole_when_a_broker_answers() {
        let error = BuqueueError::new(ErrorKind::ConnectionLost, "gone");
        let line = Line::default();
        line.broke("topic", Broken::Connection, &error);
        assert!(line.is_silent());
        line.mended("topic", Broken::Connection);
        assert!(!line.is_silent());
        for how in [Broken::Connection, Broken::Session, Broken::Connection] {
            line.broke("topic", how, &error);
        }
        line.mended("topic", Broken::Connection);
        assert_eq!(*lock(&line.0), Some(Broken::Session));
        line.mended("topic", Broken::Session);
        assert_eq!(*lock(&line.0), None);
    }
}
