//! The store in one SQLite file. One thread commits changes in groups, in the order in which they came. A second thread
//! reads pages of the log of streams.
//!
//! Only a caller with a completion (`Committed`) waits for a commit. While the file cannot be written, durable changes fail
//! at once, and other changes wait in bounded memory. `health` tells this state. Live delivery goes on.

mod backup;
mod batch;
mod beside;
mod changes;
mod commits;
mod deletions;
mod file;
mod gauges;
mod keys;
mod limits;
mod load;
mod lock;
mod own_locks;
mod queue;
mod reader;
mod schema;
mod writer;

pub use backup::{back_up, restore};
pub use limits::Limits;

use crate::base::completion::{Later, Progress};
use crate::base::fork::{self, ForkGuard};
use crate::base::sync::{Mutex, Rank};
use crate::ports::durability::{Committed, Durability, Health, NotTaken, StoreError};
use crate::ports::saved_sessions::{SavedSessions, SessionChange};
use crate::ports::store::{Saved, Store};
use crate::ports::stream_log::{Logged, StreamChange, StreamLog};
use crate::wire::frame::EncodedFrame;
use batch::Item;
use commits::CommitsFile;
use file::DatabaseFile;
use gauges::Gauges;
use lock::FileLock;
use queue::Queue;
use reader::{Reader, Reads};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use writer::Writer;

pub struct SqliteStore {
    path: PathBuf,
    limits: Limits,
    open: Mutex<Option<Open>>,
    queue: Arc<Queue>,
    reads: Arc<Reads>,
    gauges: Arc<Gauges>,
    /// `None` while the file is closed.
    commits: Mutex<Option<Arc<CommitsFile>>>,
}

/// The state while the file is open.
struct Open {
    ended: flume::Receiver<()>,
    /// The threads that complete changes and reads.
    threads: [thread::ThreadId; 2],
    generation: u32,
}

impl SqliteStore {
    /// Creates a store without opening its file.
    pub fn new(path: &Path, limits: Limits) -> Self {
        Self {
            path: path.to_owned(),
            limits,
            open: Mutex::new(Rank::Database, None),
            queue: Arc::new(Queue::new(limits.queue_bytes)),
            reads: Arc::default(),
            gauges: Arc::default(),
            commits: Mutex::default(),
        }
    }
}

impl Durability for SqliteStore {
    fn barrier(&self, committed: Committed) -> Result<(), NotTaken> {
        self.push(Item::Barrier, Some(committed))
    }

    fn health(&self) -> Health {
        let (queued_changes, queued_bytes) = self.queue.size();
        let gauges = &self.gauges;
        Health {
            kind: "sqlite".into(),
            path: Some(self.path.display().to_string()),
            is_degraded: gauges.is_degraded.load(Ordering::Relaxed),
            error: gauges.error.lock().clone(),
            queued_changes,
            queued_bytes,
            commits: gauges.commits.load(Ordering::Relaxed),
            changes_saved: gauges.saved.load(Ordering::Relaxed),
            changes_lost: gauges.lost.load(Ordering::Relaxed),
            file_bytes: gauges.file_bytes.load(Ordering::Relaxed),
        }
    }

    fn is_durable(&self) -> bool {
        true
    }
}

impl StreamLog for SqliteStore {
    fn append(
        &self,
        change: StreamChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        self.push(Item::Stream(change), committed)
    }

    fn read(
        &self,
        channel: &Arc<str>,
        offsets: RangeInclusive<u64>,
        later: &mut Later<'_, Vec<Logged>, StoreError>,
    ) -> Progress<Vec<Logged>, StoreError> {
        self.reads.push(&self.path, (channel, offsets), later)
    }

    fn note_published(&self, channel: &str, was_durable: bool) -> bool {
        // two channels may share a byte of the map, so one note waits for the other
        let commits = self.commits.lock();
        if let Some(commits) = &*commits {
            commits.note_published(channel, was_durable);
        }
        commits.is_some()
    }

    fn is_busy(&self) -> bool {
        self.queue.is_half_full()
    }
}

impl SavedSessions for SqliteStore {
    fn save(
        &self,
        change: SessionChange<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        self.push(Item::Session(change), committed)
    }
}

impl Store for SqliteStore {
    fn open(&self) -> Result<Saved, StoreError> {
        let mut open = self.open.lock();
        // a forked child would keep the lock of the file, and would not hold the locks of SQLite
        let _whole = ForkGuard::new();
        if open.as_ref().is_some_and(|running| !running.is_here()) {
            std::mem::forget(open.take());
        }
        // a writer that took longer than `close` could wait may have ended since
        open.take_if(|running| running.ended.is_disconnected());
        if open.is_some() {
            return Err(StoreError(format!(
                "{} is still being closed; try again",
                self.path.display()
            )));
        }
        own_locks::install();
        let lock = FileLock::take(&self.path)?;
        let mut file = DatabaseFile::open(&self.path, self.limits)?;
        let saved = file.load()?;
        let reader = Reader::start(&self.path, &self.reads)?;
        let reader_id = reader.thread_id();
        self.gauges.begin(&file);
        *self.commits.lock() = Some(Arc::clone(file.commits_file()));
        self.queue.open();
        let (tell_ended, ended) = flume::bounded::<()>(1);
        let (tell_running, is_running) = flume::bounded::<()>(0);
        let writer = Writer::new(
            (file, lock),
            reader,
            Arc::clone(&self.queue),
            Arc::clone(&self.gauges),
        );
        let spawned = thread::Builder::new()
            .name("tantor-store".to_owned())
            .spawn(move || {
                drop(tell_running);
                writer.run();
                drop(tell_ended);
            });
        let thread = spawned.map_err(|error| {
            self.queue.close();
            StoreError(format!("cannot start a thread for the database: {error}"))
        })?;
        // a fork must not find a thread that has only begun
        let _ = is_running.recv();
        *open = Some(Open {
            ended,
            threads: [thread.thread().id(), reader_id],
            generation: fork::generation(),
        });
        Ok(saved)
    }

    fn close(&self, within: Duration) {
        let mut open = self.open.lock();
        let Some(running) = &*open else { return };
        if !running.is_here() {
            // a forked child has no writer thread, and locks of the parent's threads may stay locked for ever
            std::mem::forget(open.take());
            return;
        }
        self.queue.close();
        *self.commits.lock() = None;
        // a completion that one of the store's threads runs may drop the last owner of the store
        let is_own_thread = running.threads.contains(&thread::current().id());
        let has_ended = is_own_thread
            || matches!(
                running.ended.recv_timeout(within),
                Err(flume::RecvTimeoutError::Disconnected)
            );
        if has_ended {
            *open = None;
        }
    }
}

impl Open {
    /// False in a child of the process that opened the store.
    fn is_here(&self) -> bool {
        self.generation == fork::generation()
    }
}

impl SqliteStore {
    fn push(
        &self,
        item: Item<&EncodedFrame>,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        let is_lost_if_refused = !matches!(item, Item::Stream(StreamChange::StreamOpened { .. }));
        self.queue.push(item, committed).map_err(|committed| {
            if is_lost_if_refused {
                self.gauges.lost.fetch_add(1, Ordering::Relaxed);
            }
            NotTaken {
                error: self.refusal(),
                committed,
            }
        })
    }

    /// The reason for which the queue refuses changes.
    fn refusal(&self) -> StoreError {
        let path = self.path.display();
        if self.queue.is_closed() {
            return StoreError(format!("{path} is closed"));
        }
        let problem = self.gauges.error.lock().clone();
        StoreError(problem.unwrap_or_else(|| {
            format!(
                "{path}: more than {} bytes wait to be saved (database_queue_bytes)",
                self.limits.queue_bytes
            )
        }))
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.close(LAST_WAIT);
    }
}

/// How long the drop of a store without `close` waits for changes that are not saved yet.
const LAST_WAIT: Duration = Duration::from_secs(5);

impl Gauges {
    fn begin(&self, file: &DatabaseFile) {
        self.is_degraded.store(false, Ordering::Relaxed);
        *self.error.lock() = None;
        self.file_bytes.store(file.size(), Ordering::Relaxed);
    }
}
