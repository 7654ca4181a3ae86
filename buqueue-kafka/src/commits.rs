//! Commits, which wait for their answers on a thread of their own: while a broker is away that takes seconds, and the thread
//! that polls must go on. (The client makes none of its calls back for a commit that is not waited for.)

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::KafkaResult;

use crate::group::Group;
use crate::session::lock;

/// What became of the last commit. One at a time is under way.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    UnderWay,
    Ended(KafkaResult<()>),
}

impl Progress {
    /// Waits until none is under way, for so long at most.
    pub(crate) fn quiet(&self, limit: Duration) {
        let state = lock(&self.state);
        let under_way = |state: &mut State| matches!(state, State::UnderWay);
        drop(self.ended.wait_timeout_while(state, limit, under_way).unwrap_or_else(PoisonError::into_inner));
    }

    fn set(&self, state: State) {
        *lock(&self.state) = state;
        self.ended.notify_all();
    }

    fn take(&self) -> Option<KafkaResult<()>> {
        let mut state = lock(&self.state);
        match std::mem::take(&mut *state) {
            State::Ended(outcome) => Some(outcome),
            other => {
                *state = other;
                None
            }
        }
    }
}

/// The thread.
pub(crate) struct Committer {
    jobs: Sender<TopicPartitionList>,
    thread: JoinHandle<()>,
    progress: Arc<Progress>,
}

impl Committer {
    pub(crate) fn start(consumer: &Arc<BaseConsumer<Group>>) -> std::io::Result<Self> {
        let (jobs, received) = mpsc::channel::<TopicPartitionList>();
        let consumer = Arc::clone(consumer);
        let progress = Arc::clone(&consumer.context().progress);
        let thread =
            std::thread::Builder::new().name("buqueue-kafka-commit".to_owned()).spawn(move || {
                for list in received {
                    let outcome = consumer.commit(&list, CommitMode::Sync);
                    consumer.context().progress.set(State::Ended(outcome));
                    consumer.context().wake();
                }
            })?;
        Ok(Self { jobs, thread, progress })
    }

    /// Begins a commit. Not while another is under way.
    pub(crate) fn commit(&self, list: TopicPartitionList) {
        self.progress.set(State::UnderWay);
        if self.jobs.send(list).is_err() {
            // Only when the thread has panicked.
            let gone = rdkafka::error::RDKafkaErrorCode::Fail;
            self.progress.set(State::Ended(Err(rdkafka::error::KafkaError::ConsumerCommit(gone))));
        }
    }

    /// What became of it, once.
    pub(crate) fn outcome(&self) -> Option<KafkaResult<()>> {
        self.progress.take()
    }

    /// Ends the thread, which is waited for if nothing is under way there.
    pub(crate) fn end(self) {
        let Self { jobs, thread, progress } = self;
        drop(jobs);
        if !matches!(*lock(&progress.state), State::UnderWay) {
            // It has nothing left to say.
            let _ended = thread.join().is_ok();
        }
    }
}
