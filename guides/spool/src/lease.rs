use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use buqueue_core::driver::{Lease, Received};
use buqueue_core::{ErrorKind, Message, MessageId, QueueFuture, Result};
use tokio::runtime::Handle;

use crate::convert;
use crate::error::{blocking, expired};
use crate::spool::{Entry, Spool};
use crate::state::{State, now, time};

/// One message that a consumer has taken. Knows its file, and needs no consumer.
#[derive(Debug)]
pub(crate) struct SpoolLease {
    message: Message,
    /// As it was taken.
    taken: State,
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    spool: Arc<Spool>,
    /// Whether the message has the content of the file.
    readable: bool,
    /// As this consumer has left it; nothing once it is settled. Locked only where blocking is allowed: the file is renamed
    /// under the lock.
    state: Mutex<Option<State>>,
}

impl SpoolLease {
    /// Takes the message, unless somebody else has.
    pub(crate) fn take(spool: &Arc<Spool>, entry: &Entry, lease: Duration) -> Result<Option<Self>> {
        let state = entry.state.taken(now(), lease);
        if !spool.change(&entry.file, &state)? {
            return Ok(None);
        }
        let content = spool.read(&state).inspect_err(|_| {
            // Nobody has seen it. Where this fails too, the end of the lease brings it back.
            drop(spool.change(state.to_string().as_ref(), &state.released()));
        });
        let Some(content) = content? else { return Ok(None) };
        let readable = content.is_ok();
        Ok(Some(Self {
            message: content.map_or_else(convert::unreadable, convert::from_bytes),
            taken: state.clone(),
            held: Arc::new(Held { spool: Arc::clone(spool), readable, state: Mutex::new(Some(state)) }),
        }))
    }

    /// Whether nobody else can have taken it yet.
    pub(crate) fn is_fresh(&self) -> bool {
        self.taken.leased_until > now()
    }

    /// How much memory it takes.
    pub(crate) fn size(&self) -> usize {
        self.message.payload().len()
    }

    /// Nobody has seen it. That somebody else has it by now is as good.
    pub(crate) fn give_back(&self) -> Result<()> {
        match self.held.give_back(State::released) {
            Err(error) if error.kind == ErrorKind::LeaseExpired => Ok(()),
            given_back => given_back,
        }
    }

    pub(crate) fn into_received(self) -> Received {
        let (delivery_count, first_failed_at) = (self.taken.attempts, time(self.taken.first_failed));
        Received { lease: Arc::new(self), index: 0, delivery_count, first_failed_at }
    }

    fn settle(&self, work: impl FnOnce(&Held) -> Result<()> + Send + 'static) -> QueueFuture<'_, Result<()>> {
        let held = Arc::clone(&self.held);
        QueueFuture::pending(blocking(move || work(&held)))
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name is the proof: whoever took the message after us has given it another.
    fn change(&self, from: &State, to: &State) -> Result<()> {
        if self.spool.change(from.to_string().as_ref(), to)? { Ok(()) } else { Err(expired()) }
    }

    fn extend(&self, by: Duration) -> Result<()> {
        let mut state = self.lock();
        // Nobody waited for this one any more, and the message was settled before its turn came.
        let held = state.as_ref().ok_or_else(expired)?;
        let next = held.extended(now(), by);
        self.change(held, &next)?;
        *state = Some(next);
        Ok(())
    }

    fn give_back(&self, to: impl FnOnce(&State) -> State) -> Result<()> {
        let mut state = self.lock();
        let held = state.take().ok_or_else(expired)?;
        self.change(&held, &to(&held))
    }

    fn remove(&self) -> Result<()> {
        let mut state = self.lock();
        let held = state.take().ok_or_else(expired)?;
        // What nobody has read is not deleted.
        let removed = if self.readable { self.spool.remove(&held) } else { self.spool.set_aside(&held) };
        if removed? { Ok(()) } else { Err(expired()) }
    }
}

impl Lease for SpoolLease {
    fn message(&self, _: u32) -> &Message {
        &self.message
    }

    fn message_id(&self, _: u32) -> MessageId {
        MessageId::from(self.taken.id.as_str())
    }

    fn ack(&self, _: u32) -> QueueFuture<'_, Result<()>> {
        self.settle(Held::remove)
    }

    fn nack(&self, _: u32, after: Duration) -> QueueFuture<'_, Result<()>> {
        self.settle(move |held| held.give_back(|state| state.failed(now(), after)))
    }

    fn release(&self, _: u32) -> QueueFuture<'_, Result<()>> {
        self.settle(|held| held.give_back(State::released))
    }

    fn extend(&self, _: u32, by: Duration) -> QueueFuture<'_, Result<()>> {
        self.settle(move |held| held.extend(by))
    }

    fn abandon(&self, _: u32) {
        // Outside a runtime the end of the lease brings it back.
        let Ok(runtime) = Handle::try_current() else { return };
        let held = Arc::clone(&self.held);
        drop(runtime.spawn_blocking(move || {
            let failed = held.give_back(|state| state.failed(now(), Duration::ZERO));
            failed.unwrap_or_else(|error| held.spool.complain(&error));
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use buqueue_core::unique_id;

    use super::*;
    use crate::SpoolConfig;

    #[test]
    fn what_cannot_be_read_now_goes_back_uncounted() {
        let directory = env::temp_dir().join(unique_id());
        fs::create_dir(&directory).unwrap();
        let config = SpoolConfig { directory, queue: "orders".to_owned(), ..SpoolConfig::default() };
        let spool = Arc::new(Spool::open(&config).unwrap());
        let state = State::new(1);
        // Can be renamed and opened, and cannot be read, whoever tries.
        let messages = config.directory.join("orders/messages");
        fs::create_dir(messages.join(state.to_string())).unwrap();
        let entry = Entry { file: state.to_string().into(), state };
        let error = SpoolLease::take(&spool, &entry, config.lease).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::BackendSpecific { .. }), "{error}");
        assert!(messages.join(&entry.file).exists());
        fs::remove_dir_all(config.directory).unwrap();
    }
}
