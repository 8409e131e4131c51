//! Reads pages of the log of streams while the writer goes on: one thread with a connection of its own.

use super::own_locks;
use crate::base::completion::{Completion, Later, Progress};
use crate::base::fork::ForkGuard;
use crate::base::sync::{Condvar, Mutex};
use crate::ports::durability::StoreError;
use crate::ports::stream_log::Logged;
use crate::wire::frame::EncodedFrame;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, params};
use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Reads that wait for the thread.
#[derive(Default)]
pub(super) struct Reads {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Read>,
    is_open: bool,
}

struct Read {
    channel: Arc<str>,
    offsets: RangeInclusive<u64>,
    completion: Completion<Vec<Logged>, StoreError>,
}

/// The thread that reads. It ends before the writer closes the file.
pub(super) struct Reader {
    reads: Arc<Reads>,
    thread_id: thread::ThreadId,
    /// `None` once the thread was joined.
    thread: Option<thread::JoinHandle<()>>,
}

/// The most reads that wait. Further reads are refused.
const MAX_WAITING: usize = 1024;

/// How long a read waits for other users of the file.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);

/// The cache of the connection in KiB. It is small, because pages are seldom read twice.
const CACHE_KIB: i64 = 256;

impl Reads {
    /// Queues a read for the thread.
    ///
    /// Errors: the store is closed, or too many reads wait.
    pub fn push(
        &self,
        path: &Path,
        (channel, offsets): (&Arc<str>, RangeInclusive<u64>),
        later: &mut Later<'_, Vec<Logged>, StoreError>,
    ) -> Progress<Vec<Logged>, StoreError> {
        let mut state = self.state.lock();
        let problem = if !state.is_open {
            "it is closed".to_owned()
        } else if state.waiting.len() >= MAX_WAITING {
            format!("{MAX_WAITING} reads wait already; try again")
        } else {
            state.waiting.push_back(Read {
                channel: Arc::clone(channel),
                offsets,
                completion: later(),
            });
            drop(state);
            self.changed.notify_one();
            return Progress::Begun(None);
        };
        Progress::Ended(Err(cannot_read(path, &problem)))
    }

    /// Waits for a read; `None` once the reads are closed.
    fn take(&self) -> Option<Read> {
        let mut state = self.state.lock();
        loop {
            if !state.is_open {
                return None;
            }
            if let Some(read) = state.waiting.pop_front() {
                return Some(read);
            }
            state = self.changed.wait(state);
        }
    }

    fn close(&self) {
        self.state.lock().is_open = false;
        self.changed.notify_all();
    }
}

impl Reader {
    /// Starts the thread on a file that the writer has open. Its connection is opened after the writer's and closed before,
    /// so all locks of the file stay with the writer's descriptor (see `own_locks`).
    ///
    /// Errors: the file cannot be opened, or the thread cannot be started.
    pub fn start(path: &Path, reads: &Arc<Reads>) -> Result<Self, StoreError> {
        let connection =
            open_connection(path).map_err(|error| cannot_read(path, &error.to_string()))?;
        reads.state.lock().is_open = true;
        let (own, path) = (Arc::clone(reads), path.to_owned());
        let (tell_running, is_running) = flume::bounded::<()>(0);
        let thread = thread::Builder::new()
            .name("tantor-reader".to_owned())
            .spawn(move || {
                drop(tell_running);
                run(&own, connection, &path);
            })
            .map_err(|error| {
                reads.close();
                StoreError(format!("cannot start a thread for the database: {error}"))
            })?;
        // a fork must not find a thread that has only begun
        let _ = is_running.recv();
        Ok(Self {
            reads: Arc::clone(reads),
            thread_id: thread.thread().id(),
            thread: Some(thread),
        })
    }

    pub fn thread_id(&self) -> thread::ThreadId {
        self.thread_id
    }
}

impl Drop for Reader {
    /// Refuses new reads, fails the waiting ones, and waits until the connection is closed. Also where the writer could not
    /// be started.
    fn drop(&mut self) {
        self.reads.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(reads: &Reads, connection: Connection, path: &Path) {
    while let Some(read) = reads.take() {
        let outcome = {
            let _guard = ForkGuard::new();
            read_publications(&connection, &read.channel, &read.offsets)
        };
        let outcome = outcome.map_err(|error| cannot_read(path, &error.to_string()));
        read.completion.complete(outcome);
    }
    {
        let _guard = ForkGuard::new();
        drop(connection);
    }
    let left = std::mem::take(&mut reads.state.lock().waiting);
    for read in left {
        read.completion
            .complete(Err(cannot_read(path, "it was closed")));
    }
}

fn read_publications(
    connection: &Connection,
    channel: &str,
    offsets: &RangeInclusive<u64>,
) -> rusqlite::Result<Vec<Logged>> {
    let mut select = connection.prepare_cached(
        "SELECT offset, message FROM publications
        WHERE stream = (SELECT id FROM streams WHERE channel = ?1) AND offset BETWEEN ?2 AND ?3
        ORDER BY offset",
    )?;
    let range = params![
        channel,
        offsets.start().cast_signed(),
        offsets.end().cast_signed()
    ];
    let rows = select.query_map(range, |row| {
        Ok(Logged {
            offset: row.get::<_, i64>(0)?.cast_unsigned(),
            frame: EncodedFrame::text(row.get_ref(1)?.as_str()?.as_bytes()),
        })
    })?;
    rows.collect()
}

fn open_connection(path: &Path) -> rusqlite::Result<Connection> {
    own_locks::install();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // the connection of the writer moves the log to the file; a second connection must not try to lock the file for this
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch(&format!("PRAGMA cache_size = -{CACHE_KIB}"))?;
    Ok(connection)
}

fn cannot_read(path: &Path, problem: &str) -> StoreError {
    StoreError(format!(
        "the database {} cannot be read: {problem}",
        path.display()
    ))
}
