//! The directory of a queue, and all that is done in it. Everything here may block.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use buqueue_core::driver::Backend;
use buqueue_core::{BuqueueError, Complaints, ErrorKind, QueueStats, Result, unique_id};

use crate::error::while_trying;
use crate::state::{Micros, State, now};
use crate::{SpoolBackend, SpoolConfig};

/// A draft of this age is nobody's any more: its writer was killed.
const DRAFT_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A larger file was not sent by buqueue, and is not read into memory: 32 MiB.
pub(crate) const FILE_MAX: u64 = 32 << 20;

#[derive(Debug)]
pub(crate) struct Spool {
    pub(crate) queue: String,
    /// Of all queues.
    directory: PathBuf,
    messages: PathBuf,
    /// Messages that are being written.
    drafts: PathBuf,
    /// Messages that were settled without having been read. Created when it is needed.
    unreadable: PathBuf,
    /// The last place that was given, so that the next one is behind it.
    last_place: AtomicU64,
    complaints: Mutex<Complaints>,
}

/// A file with a message.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) state: State,
    /// The state in words, unless somebody else has put it there.
    pub(crate) file: OsString,
}

impl Spool {
    /// Opens the queue, which is created when it is not there, and removes what killed writers have left.
    pub(crate) fn open(config: &SpoolConfig) -> Result<Self> {
        let SpoolConfig { directory, queue, .. } = config;
        if !directory.is_dir() {
            let fact = format!("directory: {} is no directory", directory.display());
            return Err(BuqueueError::new(ErrorKind::InvalidConfig, fact));
        }
        let spool = Self {
            queue: queue.clone(),
            directory: directory.clone(),
            messages: directory.join(queue).join("messages"),
            drafts: directory.join(queue).join("drafts"),
            unreadable: directory.join(queue).join("unreadable"),
            last_place: AtomicU64::new(0),
            complaints: Mutex::new(Complaints::new(SpoolBackend::NAME, "giving back a delivery failed")),
        };
        spool.create().and_then(|()| spool.sweep()).map_err(while_trying("open the queue"))?;
        Ok(spool)
    }

    fn create(&self) -> io::Result<()> {
        let home = self.directory.join(&self.queue);
        for path in [&home, &self.messages, &self.drafts] {
            create_directory(path)?;
        }
        // What is synced in a directory is lost with a directory that is not.
        sync(&home)?;
        sync(&self.directory)
    }

    fn sweep(&self) -> io::Result<()> {
        for draft in fs::read_dir(&self.drafts)? {
            let draft = draft?;
            if is_left(&draft).unwrap_or(false) {
                // It harms nobody, and the queue is opened again some day.
                drop(fs::remove_file(draft.path()));
            }
        }
        Ok(())
    }

    /// Writes a message to the disk where nobody looks for it.
    pub(crate) fn draft(&self, content: &[u8]) -> Result<PathBuf> {
        let path = self.drafts.join(unique_id());
        let created = File::create_new(&path).or_else(|error| match error.kind() {
            // Somebody has deleted the queue.
            io::ErrorKind::NotFound => self.create().and_then(|()| File::create_new(&path)),
            _ => Err(error),
        });
        let written = created.and_then(|mut file| {
            let written = file.write_all(content).and_then(|()| file.sync_all());
            written.inspect_err(|_| discard(&path))
        });
        written.map(|()| path).map_err(while_trying("write a message"))
    }

    /// Gives a draft its place, which makes it a message.
    pub(crate) fn submit(&self, draft: &Path, due: Micros) -> Result<State> {
        // Not before the file is written: whoever sees this one has seen all with a place before it.
        let now = now();
        let behind = |last: Micros| Some(now.max(last + 1));
        let last = self.last_place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, behind);
        let place = now.max(last.unwrap_or_default() + 1);
        let state = State::new(place.max(due));
        let submitted = fs::rename(draft, self.messages.join(state.to_string()));
        submitted.inspect_err(|_| discard(draft)).map_err(while_trying("submit a message"))?;
        Ok(state)
    }

    /// What was submitted is there after a power loss.
    pub(crate) fn sync(&self) -> Result<()> {
        sync(&self.messages).map_err(while_trying("sync the queue"))
    }

    /// The first `max` messages that may be taken now, in their order.
    pub(crate) fn visible(&self, max: usize) -> Result<BTreeSet<Entry>> {
        let now = now();
        let mut visible = BTreeSet::new();
        self.each_entry(|entry| {
            if entry.state.is_visible(now) {
                visible.insert(entry);
                if visible.len() > max {
                    visible.pop_last();
                }
            }
        })?;
        Ok(visible)
    }

    pub(crate) fn stats(&self) -> Result<QueueStats> {
        let now = now();
        let (mut ready, mut in_flight, mut scheduled) = (0, 0, 0);
        self.each_entry(|Entry { state, .. }| {
            *if state.leased_until > now {
                &mut in_flight
            } else if state.place > now {
                &mut scheduled
            } else {
                &mut ready
            } += 1;
        })?;
        Ok(QueueStats::of_ready(ready).with_in_flight(in_flight).with_scheduled(scheduled))
    }

    fn each_entry(&self, mut see: impl FnMut(Entry)) -> Result<()> {
        let mut read = || {
            let Some(files) = none_if_gone(fs::read_dir(&self.messages))? else {
                // Somebody has deleted the queue.
                return self.create();
            };
            for file in files {
                let file = file?;
                // Somebody has been quicker.
                let Some(kind) = none_if_gone(file.file_type())? else { continue };
                // No links: they lead elsewhere. Hidden files are somebody's drafts.
                let name = file.file_name();
                if !kind.is_file() || name.as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                let known = name.to_str().and_then(State::parse);
                see(Entry { state: known.unwrap_or_else(|| State::new(0)), file: name });
            }
            Ok(())
        };
        read().map_err(while_trying("list the queue"))
    }

    /// Gives a message another state; false when it is gone or has another one already.
    pub(crate) fn change(&self, file: &OsStr, to: &State) -> Result<bool> {
        let renamed = fs::rename(self.messages.join(file), self.messages.join(to.to_string()));
        let renamed = none_if_gone(renamed).map_err(while_trying("change the state of a message"))?;
        Ok(renamed.is_some())
    }

    /// The content of a message; `None` when it is gone or has another state.
    pub(crate) fn read(&self, state: &State) -> Result<Option<Content>> {
        let content = or_why_not(read(&self.messages.join(state.to_string())));
        none_if_gone(content).map_err(while_trying("read a message"))
    }

    /// Moves a message to where nobody looks for it and nobody removes it; false when it is gone or has another state.
    pub(crate) fn set_aside(&self, state: &State) -> Result<bool> {
        let name = state.to_string();
        let moved = create_directory(&self.unreadable)
            .and_then(|()| fs::rename(self.messages.join(&name), self.unreadable.join(&name)));
        Ok(none_if_gone(moved).map_err(while_trying("set a message aside"))?.is_some())
    }

    /// Removes a message; false when it is gone or has another state.
    pub(crate) fn remove(&self, state: &State) -> Result<bool> {
        let removed = fs::remove_file(self.messages.join(state.to_string()));
        Ok(none_if_gone(removed).map_err(while_trying("remove a message"))?.is_some())
    }

    /// For what nobody waits for. That somebody else has the message is as good.
    pub(crate) fn complain(&self, error: &BuqueueError) {
        if error.kind != ErrorKind::LeaseExpired {
            self.complaints.lock().unwrap_or_else(PoisonError::into_inner).tell(&self.queue, error);
        }
    }
}

/// What is in a file, or why nobody will know.
pub(crate) type Content = std::result::Result<Vec<u8>, String>;

fn read(path: &Path) -> io::Result<Content> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > FILE_MAX {
        return Ok(Err(format!("has {size} bytes, at most {FILE_MAX} are read")));
    }
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    // Whoever moved it in may be writing still.
    file.take(FILE_MAX).read_to_end(&mut content)?;
    Ok(Ok(content))
}

/// An error that is there the next time, too, is no error of the queue: it would come back for ever.
fn or_why_not(content: io::Result<Content>) -> io::Result<Content> {
    match content {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(Err("permission denied".to_owned()))
        }
        content => content,
    }
}

fn is_left(draft: &DirEntry) -> io::Result<bool> {
    let metadata = draft.metadata()?;
    Ok(metadata.is_file() && metadata.modified()?.elapsed().is_ok_and(|age| age > DRAFT_AGE_MAX))
}

/// A disk that is full is not made fuller by who tries again.
fn discard(draft: &Path) {
    drop(fs::remove_file(draft));
}

fn create_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn none_if_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_unreadable_is_no_error() {
        let of = |kind: io::ErrorKind| or_why_not(Err(kind.into())).map_err(|error| error.kind());
        assert_eq!(of(io::ErrorKind::PermissionDenied), Ok(Err("permission denied".to_owned())));
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::TimedOut, io::ErrorKind::OutOfMemory] {
            assert_eq!(of(kind), Err(kind));
        }
    }
}
