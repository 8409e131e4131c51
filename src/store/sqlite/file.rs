//! The file itself: who may open it, how it is opened, and how changes get into it.

use super::schema::{APPLICATION_ID, MIGRATIONS};
use crate::random::random_u64;
use crate::store::{Change, SavedClient, StoreError};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Keeps other processes, and other Tantors of this one, from using a database at the same time.
pub(super) struct FileLock(File);

/// An open database. Only its writer uses it.
pub(super) struct DatabaseFile {
    pub(super) connection: Connection,
    path: PathBuf,
    /// Rows of `streams`, as far as they were needed. Forgotten when a transaction is undone.
    streams: HashMap<Arc<str>, i64>,
    /// By stream: publications up to this offset are to go.
    trims: HashMap<i64, u64>,
    /// Streams whose publications are to go.
    orphans: Vec<i64>,
    is_synchronous: Option<bool>,
}

/// Changes that were not saved.
pub(super) struct Failure {
    pub error: rusqlite::Error,
    /// The change that cannot be saved though the file can be written, by its place.
    pub culprit: Option<usize>,
}

/// How long the opening of a file waits for others that use it.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a transaction waits for others that use the file.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);

/// Pages of the log after which they are moved to the file.
const CHECKPOINT_PAGES: i64 = 4000;

/// Bytes of the log that are kept when it was moved.
const KEPT_LOG_BYTES: i64 = 16 << 20;

/// Rows that one transaction deletes, at least as many as it may have put in.
const DELETED_TOGETHER: usize = 1000;

/// Free pages that are given back to the system at a time.
const PAGES_GIVEN_BACK: u32 = 256;

impl FileLock {
    /// Errors: somebody else has it; the folder cannot be written to.
    pub fn take(database: &Path) -> Result<Self, StoreError> {
        let mut path = database.as_os_str().to_owned();
        path.push("-lock");
        let path = PathBuf::from(path);
        let failed = |error: std::io::Error| {
            StoreError(cannot_open(
                database,
                &format!("{}: {error}", path.display()),
            ))
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // only for the message
                let _ = file.read_to_string(&mut holder);
                let holder = holder.trim();
                let holder = if holder.is_empty() {
                    "another process"
                } else {
                    holder
                };
                return Err(StoreError(cannot_open(
                    database,
                    &format!(
                        "{holder} uses it; one Tantor at a time can, so give each a file of its own"
                    ),
                )));
            }
        }
        let holder = format!("process {}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(holder.as_bytes()))
            .map_err(failed)?;
        Ok(Self(file))
    }

    pub fn file(&self) -> &File {
        &self.0
    }
}

fn cannot_open(path: &Path, problem: &str) -> String {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => format!(
            "cannot open the database {}: there is no folder {}",
            path.display(),
            folder.display()
        ),
        _ => format!("cannot open the database {}: {problem}", path.display()),
    }
}

impl DatabaseFile {
    /// Opens a file, makes it if there is none, and brings it up to date. After an unclean end, streams of which
    /// publications may have been lost have another epoch.
    ///
    /// Errors: what is wrong with the file.
    pub fn open(path: &Path, max_bytes: u64) -> Result<Self, StoreError> {
        let file = open_connection(path).map_err(|error| {
            let advice = match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                    "; move the file away to begin with an empty one"
                }
                Some(ErrorCode::ReadOnly) => "; Tantor has to write to it",
                _ => "",
            };
            StoreError(cannot_open(path, &format!("{error}{advice}")))
        })?;
        let mut file = Self {
            connection: file,
            path: path.to_owned(),
            streams: HashMap::new(),
            trims: HashMap::new(),
            orphans: Vec::new(),
            is_synchronous: None,
        };
        file.migrate()?;
        file.bound(max_bytes)
            .and_then(|()| file.begin_use())
            .map_err(|error| StoreError(cannot_open(path, &error.to_string())))?;
        Ok(file)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that the file and its log take.
    pub fn size(&self) -> u64 {
        let mut log = self.path.as_os_str().to_owned();
        log.push("-wal");
        [self.path.as_path(), Path::new(&log)]
            .iter()
            .filter_map(|path| path.metadata().ok())
            .map(|metadata| metadata.len())
            .sum()
    }

    /// Saves changes in one transaction, all or none. With `is_durable` they outlive a power failure.
    ///
    /// Errors: the file cannot be written, or one of the changes cannot be saved.
    pub fn save<'a>(
        &mut self,
        changes: impl ExactSizeIterator<Item = &'a Change>,
        is_durable: bool,
    ) -> Result<(), Failure> {
        let budget = DELETED_TOGETHER.max(2 * changes.len());
        let result = self.synchronize(is_durable).and_then(|()| self.begin());
        if let Err(error) = result {
            return Err(Failure {
                error,
                culprit: None,
            });
        }
        let result = self.apply_all(changes, budget);
        if result.is_err() {
            self.undo();
        }
        result
    }

    /// Notes what a change frees, so that room can be made before what it stands behind is saved.
    pub fn note_freed(&mut self, change: &Change) {
        if let Change::Trimmed { channel, through } = change {
            // what cannot be read cannot be freed
            if let Ok(Some(stream)) = self.known_stream(channel) {
                self.note_trim(stream, *through);
            }
        }
    }

    /// True while rows are still to be deleted.
    pub fn has_leftovers(&self) -> bool {
        !self.trims.is_empty() || !self.orphans.is_empty()
    }

    /// Gives some of what was deleted back to the system.
    pub fn shrink(&self) -> rusqlite::Result<()> {
        let free: i64 = self
            .connection
            .pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        if free > i64::from(PAGES_GIVEN_BACK) {
            self.connection
                .execute_batch(&format!("PRAGMA incremental_vacuum({PAGES_GIVEN_BACK})"))?;
        }
        Ok(())
    }

    /// Notes, as the last thing, that nothing was lost, and moves the log to the file.
    pub fn end_use(&mut self, is_complete: bool) -> rusqlite::Result<()> {
        if is_complete {
            self.synchronize(true)?;
            self.set_clean(true)?;
        }
        self.connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
    }

    fn migrate(&mut self) -> Result<(), StoreError> {
        let path = self.path.clone();
        let failed = |error: rusqlite::Error| StoreError(cannot_open(&path, &error.to_string()));
        let number = |name: &str| {
            self.connection
                .pragma_query_value(None, name, |row| row.get::<_, i32>(0))
        };
        let application = number("application_id").map_err(failed)?;
        let version = number("user_version").map_err(failed)?;
        let tables: i64 = self
            .connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(failed)?;
        if application != APPLICATION_ID && (application != 0 || tables > 0) {
            return Err(StoreError(cannot_open(
                &path,
                "it is another application's database; give Tantor a file of its own",
            )));
        }
        let done = usize::try_from(version).unwrap_or(usize::MAX);
        let Some(steps) = MIGRATIONS.get(done..) else {
            return Err(StoreError(cannot_open(
                &path,
                &format!(
                    "a newer Tantor has made it (schema {version}; this one knows {})",
                    MIGRATIONS.len()
                ),
            )));
        };
        for (step, migration) in steps.iter().enumerate() {
            let version = done + step + 1;
            self.connection
                .execute_batch(&format!(
                    "BEGIN IMMEDIATE; {migration} PRAGMA user_version = {version}; \
                     PRAGMA application_id = {APPLICATION_ID}; COMMIT;"
                ))
                .map_err(|error| {
                    self.undo();
                    failed(error)
                })?;
        }
        Ok(())
    }

    fn bound(&self, max_bytes: u64) -> rusqlite::Result<()> {
        let page: i64 = self
            .connection
            .pragma_query_value(None, "page_size", |row| row.get(0))?;
        let pages = max_bytes.div_ceil(page.unsigned_abs().max(1));
        self.connection
            .execute_batch(&format!("PRAGMA max_page_count = {pages}"))
    }

    /// From here on the file says that it is in use, until `end_use`.
    fn begin_use(&mut self) -> rusqlite::Result<()> {
        self.synchronize(true)?;
        let clean: Option<bool> = self
            .connection
            .query_row("SELECT value FROM state WHERE name = 'clean'", [], |row| {
                row.get(0)
            })
            .optional()?;
        if clean == Some(false) {
            let verdict: String =
                self.connection
                    .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if verdict != "ok" {
                return Err(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
                    Some(format!(
                        "{verdict}; move the file away to begin with an empty one"
                    )),
                ));
            }
            self.renew_epochs()?;
        }
        self.set_clean(false)?;
        self.connection.busy_timeout(BUSY_TIMEOUT)
    }

    /// What was not yet saved when the process ended is lost; only on durable channels nobody had seen it.
    fn renew_epochs(&self) -> rusqlite::Result<()> {
        let mut streams = self
            .connection
            .prepare("SELECT id FROM streams WHERE NOT durable")?;
        let ids: Vec<i64> = streams
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let mut renew = self
            .connection
            .prepare("UPDATE streams SET epoch = ?2 WHERE id = ?1")?;
        self.begin()?;
        for id in ids {
            renew.execute(params![id, random_u64().cast_signed()])?;
        }
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    fn set_clean(&self, is_clean: bool) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO state (name, value) VALUES ('clean', ?1)")?
            .execute([is_clean])
            .map(drop)
    }

    fn begin(&self) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("BEGIN IMMEDIATE")?
            .execute([])
            .map(drop)
    }

    fn undo(&mut self) {
        self.streams.clear();
        if !self.connection.is_autocommit() {
            // what fails here leaves the transaction to the next one, which fails too, and is seen
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    /// A commit is written through to the disk, or left to the system, which a power failure may cut short.
    fn synchronize(&mut self, is_synchronous: bool) -> rusqlite::Result<()> {
        if self.is_synchronous != Some(is_synchronous) {
            let mode = if is_synchronous { "FULL" } else { "NORMAL" };
            self.connection
                .execute_batch(&format!("PRAGMA synchronous = {mode}"))?;
            self.is_synchronous = Some(is_synchronous);
        }
        Ok(())
    }

    fn apply_all<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a Change>,
        budget: usize,
    ) -> Result<(), Failure> {
        let mut tops = HashMap::new();
        for (place, change) in changes.enumerate() {
            self.apply(change, &mut tops).map_err(|error| {
                let culprit = (!is_of_the_file(&error)).then_some(place);
                Failure { error, culprit }
            })?;
        }
        self.finish(&tops, budget).map_err(|error| Failure {
            error,
            culprit: None,
        })
    }

    fn apply(&mut self, change: &Change, tops: &mut HashMap<i64, u64>) -> rusqlite::Result<()> {
        match change {
            Change::Published {
                channel,
                position,
                at,
                expires,
                frame,
                durable: _,
            } => {
                let stream = self.stream(channel, position.epoch)?;
                tops.insert(stream, position.offset);
                if self
                    .trims
                    .get(&stream)
                    .is_some_and(|through| *through >= position.offset)
                {
                    return Ok(());
                }
                self.connection
                    .prepare_cached(
                        "INSERT OR REPLACE INTO publications VALUES (?1, ?2, ?3, ?4, ?5)",
                    )?
                    .execute(params![
                        stream,
                        position.offset.cast_signed(),
                        at.cast_signed(),
                        expires.cast_signed(),
                        text(frame.payload())
                    ])
                    .map(drop)
            }
            Change::StreamOpened {
                channel,
                epoch,
                kind,
                durable,
            } => self.open_stream(channel, *epoch, kind, *durable).map(drop),
            Change::Trimmed { channel, through } => {
                if let Some(stream) = self.known_stream(channel)? {
                    self.note_trim(stream, *through);
                }
                Ok(())
            }
            Change::StreamForgotten { channel } => {
                if let Some(stream) = self.known_stream(channel)? {
                    self.connection
                        .prepare_cached("DELETE FROM streams WHERE id = ?1")?
                        .execute([stream])?;
                    self.streams.remove(channel);
                    self.trims.remove(&stream);
                    self.orphans.push(stream);
                }
                Ok(())
            }
            Change::Mailed {
                client,
                number,
                message,
                expires,
                is_emergency,
                frame,
                durable: _,
            } => self
                .connection
                .prepare_cached("INSERT OR REPLACE INTO mail VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                .execute(params![
                    &**client,
                    number.cast_signed(),
                    message.cast_signed(),
                    expires.cast_signed(),
                    is_emergency,
                    text(frame.payload())
                ])
                .map(drop),
            Change::Unmailed { client, numbers } => {
                let mut delete = self
                    .connection
                    .prepare_cached("DELETE FROM mail WHERE client = ?1 AND number = ?2")?;
                for number in numbers {
                    delete.execute(params![&**client, number.cast_signed()])?;
                }
                Ok(())
            }
            Change::ClientSaved { client } => self.save_client(client),
            Change::ClientForgotten { id } => self
                .connection
                .prepare_cached("DELETE FROM clients WHERE id = ?1")?
                .execute([&**id])
                .map(drop),
        }
    }

    fn save_client(&self, client: &SavedClient) -> rusqlite::Result<()> {
        let names: Vec<&str> = client.channels.iter().map(|name| &**name).collect();
        // names are text, which JSON holds
        let channels = serde_json::to_string(&names).unwrap_or_default();
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO clients VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                &*client.id,
                &client.secret[..],
                i64::try_from(client.expires).unwrap_or(i64::MAX),
                client.joined.cast_signed(),
                client.last_ping.cast_signed(),
                client.is_connected,
                channels,
                client.user_data.as_deref().map(text)
            ])
            .map(drop)
    }

    /// The row of a channel's stream, made if there is none.
    fn stream(&mut self, channel: &Arc<str>, epoch: u64) -> rusqlite::Result<i64> {
        match self.known_stream(channel)? {
            Some(id) => Ok(id),
            None => self.open_stream(channel, epoch, "public", false),
        }
    }

    fn known_stream(&mut self, channel: &Arc<str>) -> rusqlite::Result<Option<i64>> {
        if let Some(id) = self.streams.get(channel) {
            return Ok(Some(*id));
        }
        let id: Option<i64> = self
            .connection
            .prepare_cached("SELECT id FROM streams WHERE channel = ?1")?
            .query_row([&**channel], |row| row.get(0))
            .optional()?;
        if let Some(id) = id {
            self.streams.insert(Arc::clone(channel), id);
        }
        Ok(id)
    }

    fn open_stream(
        &mut self,
        channel: &Arc<str>,
        epoch: u64,
        kind: &str,
        durable: bool,
    ) -> rusqlite::Result<i64> {
        let id = self
            .connection
            .prepare_cached(
                "INSERT INTO streams (channel, epoch, top, kind, durable) VALUES (?1, ?2, 0, ?3, ?4)
                ON CONFLICT (channel) DO UPDATE SET epoch = ?2, kind = ?3, durable = ?4 RETURNING id",
            )?
            .query_row(params![&**channel, epoch.cast_signed(), kind, durable], |row| row.get(0))?;
        self.streams.insert(Arc::clone(channel), id);
        Ok(id)
    }

    fn note_trim(&mut self, stream: i64, through: u64) {
        let trim = self.trims.entry(stream).or_default();
        *trim = through.max(*trim);
    }

    /// What is due once for all changes of a transaction, and its end.
    fn finish(&mut self, tops: &HashMap<i64, u64>, budget: usize) -> rusqlite::Result<()> {
        for (stream, top) in tops {
            self.connection
                .prepare_cached("UPDATE streams SET top = max(top, ?2) WHERE id = ?1")?
                .execute(params![stream, top.cast_signed()])?;
        }
        let (trims, orphans) = self.delete_leftovers(budget)?;
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        for stream in trims {
            self.trims.remove(&stream);
        }
        self.orphans.retain(|stream| !orphans.contains(stream));
        Ok(())
    }

    /// Deletes up to `budget` rows; returns which trims and which orphans are done with.
    fn delete_leftovers(&self, budget: usize) -> rusqlite::Result<(Vec<i64>, Vec<i64>)> {
        let mut left = budget;
        let (mut trims, mut orphans) = (Vec::new(), Vec::new());
        for (stream, through) in &self.trims {
            if !self.delete_publications(*stream, *through, &mut left)? {
                return Ok((trims, orphans));
            }
            trims.push(*stream);
        }
        for stream in &self.orphans {
            if !self.delete_publications(*stream, u64::MAX, &mut left)? {
                break;
            }
            orphans.push(*stream);
        }
        Ok((trims, orphans))
    }

    /// Deletes publications up to an offset, at most `left`; false when there are more.
    fn delete_publications(
        &self,
        stream: i64,
        through: u64,
        left: &mut usize,
    ) -> rusqlite::Result<bool> {
        let through = i64::try_from(through).unwrap_or(i64::MAX);
        let last: Option<i64> = self
            .connection
            .prepare_cached(
                "SELECT offset FROM publications WHERE stream = ?1 AND offset <= ?2
                ORDER BY offset LIMIT 1 OFFSET ?3",
            )?
            .query_row(
                params![stream, through, i64::try_from(*left).unwrap_or(i64::MAX)],
                |row| row.get(0),
            )
            .optional()?;
        // the first that is too many stays
        let end = last.map_or(through, |last| last - 1);
        let deleted = self
            .connection
            .prepare_cached("DELETE FROM publications WHERE stream = ?1 AND offset <= ?2")?
            .execute(params![stream, end])?;
        *left = left.saturating_sub(deleted);
        Ok(last.is_none())
    }
}

/// True for what is wrong with the file or the disk, and not with what was to be saved.
pub(super) fn is_of_the_file(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        None | Some(
            ErrorCode::ConstraintViolation
                | ErrorCode::TooBig
                | ErrorCode::TypeMismatch
                | ErrorCode::ParameterOutOfRange
        )
    )
}

/// What goes over the wire is UTF-8; anything else would be stored as it is.
fn text(bytes: &[u8]) -> rusqlite::types::ToSqlOutput<'_> {
    use rusqlite::types::{ToSqlOutput, ValueRef};
    ToSqlOutput::Borrowed(ValueRef::Text(bytes))
}

fn open_connection(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(OPEN_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(32);
    // of a new file, before anything is in it
    connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA temp_store = MEMORY")?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
            Some(format!(
                "it cannot have a write-ahead log there (journal mode {mode:?}); a local disk can"
            )),
        ));
    }
    connection.execute_batch(&format!(
        "PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; PRAGMA journal_size_limit = {KEPT_LOG_BYTES}"
    ))?;
    Ok(connection)
}
