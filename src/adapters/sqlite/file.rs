//! The database file: opened, migrated, and closed.

use super::beside::beside;
use super::commits::{self, CommitsFile, PublishedMap, Record};
use super::limits::Limits;
use super::lock::cannot_open;
use super::schema::{APPLICATION_ID, KeyCounts, MIGRATIONS};
use crate::base::fork::ForkGuard;
use crate::base::random::random_u64;
use crate::ports::durability::StoreError;
use crate::ports::stream_log::StreamKey;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// An open database. Only its writer uses it.
pub(super) struct DatabaseFile {
    pub(super) connection: Connection,
    path: PathBuf,
    /// The rows of streams that were opened.
    pub(super) streams: HashMap<StreamKey, i64>,
    /// Streams that the current transaction has opened.
    pub(super) opened: Vec<StreamKey>,
    /// Streams that the current transaction has deleted, and their rows.
    pub(super) forgotten: Vec<(StreamKey, i64)>,
    /// By row: the offset up to which publications are to be deleted.
    pub(super) trims: HashMap<i64, u64>,
    /// The same for streams whose opening is not saved yet.
    pub(super) early_trims: HashMap<StreamKey, u64>,
    /// Streams whose publications are to be deleted.
    pub(super) orphans: BTreeSet<i64>,
    /// The number of saved idempotency keys of each kind.
    pub(super) key_counts: KeyCounts,
    /// The most idempotency keys of one kind.
    pub(super) max_keys: usize,
    /// How long an idempotency key is known.
    pub(super) key_ttl: Duration,
    /// `database_bytes`, for messages.
    max_bytes: u64,
    page_size: u64,
    /// The pages that additions may fill. The pages above are reserved for deletions.
    open_pages: u64,
    commits: Arc<CommitsFile>,
    /// The record in the commits file.
    record: Record,
    is_synchronous: Option<bool>,
    /// The file and its log, as they were when they were opened.
    identities: [Option<Identity>; 2],
}

/// The identity of a file, which another file of the same name does not have.
#[cfg(unix)]
type Identity = (u64, u64);
#[cfg(not(unix))]
type Identity = ();

/// How long the opening of a file waits for others that use it.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a transaction waits for others that use the file.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);

/// Pages of the log after which they are moved to the file.
const CHECKPOINT_PAGES: i64 = 4000;

/// Bytes of the log that are kept when it was moved.
const KEPT_LOG_BYTES: i64 = 16 << 20;

/// The pages that are reserved for deletions: this number, or this part of all pages if that is more.
const RESERVED_PAGES: u64 = 64;
const RESERVED_PART: u64 = 64;

/// The most free pages that are given back to the system at once.
const PAGES_GIVEN_BACK: u32 = 256;

impl DatabaseFile {
    /// Opens a file, creates it if there is none, and migrates it to the present schema. After an unclean end, streams that
    /// may have lost publications get another epoch. If an older copy was put in the place of the file, all streams do.
    ///
    /// Errors: the problem of the file.
    pub fn open(path: &Path, limits: Limits) -> Result<Self, StoreError> {
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
            commits: Arc::new(CommitsFile::open(path)?),
            record: Record {
                boot: commits::boot(),
                lineage: random_u64(),
                commits: 0,
                synced: 0,
            },
            connection: file,
            path: path.to_owned(),
            streams: HashMap::new(),
            opened: Vec::new(),
            forgotten: Vec::new(),
            trims: HashMap::new(),
            early_trims: HashMap::new(),
            orphans: BTreeSet::new(),
            key_counts: KeyCounts::default(),
            max_keys: limits.keys,
            key_ttl: limits.key_ttl,
            max_bytes: limits.file_bytes,
            page_size: 1,
            open_pages: u64::MAX,
            is_synchronous: None,
            identities: [None; 2],
        };
        file.migrate()?;
        file.bound()
            .and_then(|()| file.begin_use())
            .map_err(|error| StoreError(cannot_open(path, &error.to_string())))?;
        file.identities = file.identify();
        Ok(file)
    }

    /// Errors: the file or its log was deleted or replaced, so commits went to a file that has no name any more.
    pub(super) fn check_identity(&self) -> rusqlite::Result<()> {
        if self.identify() == self.identities {
            return Ok(());
        }
        Err(failure(
            rusqlite::ffi::SQLITE_READONLY_DBMOVED,
            "the file or its log was moved or deleted while it was in use; start again",
        ))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of the file and its log.
    pub fn size(&self) -> u64 {
        let files = self.files();
        let sizes = files.iter().filter_map(|path| path.metadata().ok());
        sizes.map(|metadata| metadata.len()).sum()
    }

    /// The file and its log.
    fn files(&self) -> [PathBuf; 2] {
        [self.path.clone(), beside(&self.path, "-wal")]
    }

    #[cfg(unix)]
    fn identify(&self) -> [Option<Identity>; 2] {
        use std::os::unix::fs::MetadataExt;
        self.files().map(|path| {
            let metadata = path.metadata().ok()?;
            Some((metadata.dev(), metadata.ino()))
        })
    }

    /// Other systems do not let an open file be deleted.
    #[cfg(not(unix))]
    #[expect(
        clippy::unused_self,
        reason = "there is something to look at only on Unix"
    )]
    fn identify(&self) -> [Option<Identity>; 2] {
        [None; 2]
    }

    /// Gives some free pages back to the system.
    pub fn shrink(&self) -> rusqlite::Result<()> {
        let _whole = ForkGuard::new();
        let free: i64 = self
            .connection
            .pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        if free > i64::from(PAGES_GIVEN_BACK) {
            self.connection
                .execute_batch(&format!("PRAGMA incremental_vacuum({PAGES_GIVEN_BACK})"))?;
        }
        Ok(())
    }

    /// Ends the use of the file: notes whether everything was saved, and moves the log to the file. Every commit then
    /// outlives a power failure, and the file beside the database says so: an older copy is noticed after a reboot too.
    pub fn end_use(&mut self, is_complete: bool) -> rusqlite::Result<()> {
        // a synced commit writes every earlier commit to the disk
        self.synchronize(true)?;
        self.set_state("clean", i64::from(is_complete))?;
        self.connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
        self.record.synced = self.record.commits;
        self.commits
            .write_synced(&self.record)
            .map_err(|error| failure(rusqlite::ffi::SQLITE_IOERR, &error.to_string()))
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

    /// Bounds the file by `database_bytes`, of which some pages are reserved for deletions. A file that is larger already
    /// gets that reserve on top, so that deletions can make it smaller.
    fn bound(&mut self) -> rusqlite::Result<()> {
        self.page_size = self.number("page_size")?.max(1);
        let pages = self.max_bytes.div_ceil(self.page_size);
        let reserve = RESERVED_PAGES.max(pages / RESERVED_PART);
        self.open_pages = pages.saturating_sub(reserve);
        let most = pages.max(self.number("page_count")? + reserve);
        self.connection
            .execute_batch(&format!("PRAGMA max_page_count = {most}"))
    }

    /// Errors: the current transaction has used pages that are reserved for deletions. `before` is the number of pages that
    /// were used before the transaction.
    pub(super) fn check_room(&self, before: u64) -> rusqlite::Result<()> {
        if self.used_pages()? > self.open_pages.max(before) {
            return Err(self.no_room());
        }
        Ok(())
    }

    /// True if so many more bytes would use pages that are reserved for deletions.
    pub(super) fn would_be_full(&self, bytes: usize) -> bool {
        let pages = (bytes as u64).div_ceil(self.page_size);
        self.used_pages()
            .is_ok_and(|used| used + pages > self.open_pages)
    }

    pub(super) fn no_room(&self) -> rusqlite::Error {
        failure(
            rusqlite::ffi::SQLITE_FULL,
            &format!("it is full; database_bytes is {}", self.max_bytes),
        )
    }

    pub(super) fn used_pages(&self) -> rusqlite::Result<u64> {
        Ok(self
            .number("page_count")?
            .saturating_sub(self.number("freelist_count")?))
    }

    fn number(&self, pragma: &str) -> rusqlite::Result<u64> {
        self.connection
            .prepare_cached(&format!("PRAGMA {pragma}"))?
            .query_row([], |row| row.get::<_, i64>(0))
            .map(i64::unsigned_abs)
    }

    /// Marks the file as in use until `end_use`.
    fn begin_use(&mut self) -> rusqlite::Result<()> {
        self.synchronize(true)?;
        let is_unclean = self.state("clean")? == Some(0);
        if is_unclean {
            let verdict: String =
                self.connection
                    .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if verdict != "ok" {
                let problem = format!("{verdict}; move the file away to begin with an empty one");
                return Err(failure(rusqlite::ffi::SQLITE_CORRUPT, &problem));
            }
        }
        let lineage = self.state("lineage")?.map(i64::cast_unsigned);
        let commits = self.state("commits")?.unwrap_or(0).unsigned_abs();
        let found = self.commits.record();
        let is_expected = match (lineage, found) {
            // the file is new, or of a version that counted no commits
            (None, None) => true,
            (Some(lineage), Some(found)) => found.fits(lineage, commits, self.record.boot),
            _ => false,
        };
        self.begin()?;
        if !is_expected {
            self.renew_epochs(true, &PublishedMap::all())?;
        } else if is_unclean {
            // a power failure may have removed the latest bytes of the map
            let is_same_boot = found.is_some_and(|found| found.boot == self.record.boot);
            let published = if is_same_boot {
                self.commits.published()
            } else {
                PublishedMap::all()
            };
            self.renew_epochs(false, &published)?;
        }
        if let Some(lineage) = lineage.filter(|_| is_expected) {
            self.record.lineage = lineage;
        }
        self.record.commits = commits;
        self.record.synced = commits;
        self.set_state("lineage", self.record.lineage.cast_signed())?;
        self.set_state("commits", commits.cast_signed())?;
        self.set_state("clean", 0)?;
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        // after the commit: a kill between the two renews the epochs again, which no client has seen yet
        self.commits
            .begin(&self.record)
            .map_err(|error| failure(rusqlite::ffi::SQLITE_IOERR, &error.to_string()))?;
        self.connection.busy_timeout(BUSY_TIMEOUT)
    }

    /// Gives streams another epoch: `all`, or those that may have lost publications which were handed over before they were
    /// saved. A durable channel has no such publications.
    fn renew_epochs(&self, all: bool, published: &PublishedMap) -> rusqlite::Result<()> {
        let mut streams = self
            .connection
            .prepare("SELECT id, channel, durable FROM streams")?;
        let streams: Vec<(i64, String, bool)> = streams
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        let mut renew = self
            .connection
            .prepare("UPDATE streams SET epoch = ?2 WHERE id = ?1")?;
        for (id, channel, is_durable) in streams {
            if all || published.may_have_lost(&channel, is_durable) {
                let epoch = random_u64();
                self.move_keys(id, epoch)?;
                renew.execute(params![id, epoch.cast_signed()])?;
            }
        }
        Ok(())
    }

    /// To be called within a transaction, before its end.
    pub(super) fn count_commit(&self) -> rusqlite::Result<()> {
        self.set_state("commits", (self.record.commits + 1).cast_signed())
    }

    /// To be called after the end of a transaction that was counted.
    pub(super) fn note_commit(&mut self) {
        self.record.commits += 1;
        if self.is_synchronous == Some(true) {
            self.record.synced = self.record.commits;
        }
        // a count that is too low has one effect: an older copy may not be noticed
        let _ = self.commits.write(&self.record);
    }

    pub fn commits_file(&self) -> &Arc<CommitsFile> {
        &self.commits
    }

    fn state(&self, name: &str) -> rusqlite::Result<Option<i64>> {
        self.connection
            .prepare_cached("SELECT value FROM state WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()
    }

    fn set_state(&self, name: &str, value: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO state (name, value) VALUES (?1, ?2)")?
            .execute(params![name, value])
            .map(drop)
    }

    pub(super) fn begin(&self) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("BEGIN IMMEDIATE")?
            .execute([])
            .map(drop)
    }

    pub(super) fn undo(&mut self) {
        self.forgotten.clear();
        for stream in self.opened.drain(..) {
            self.streams.remove(&stream);
        }
        if !self.connection.is_autocommit() {
            // if this fails, the next transaction fails too, and reports the error
            let _ = self.connection.execute_batch("ROLLBACK");
        }
    }

    /// Sets whether a commit waits for the disk. A commit that does not wait may be lost by a power failure.
    pub(super) fn synchronize(&mut self, is_synchronous: bool) -> rusqlite::Result<()> {
        if self.is_synchronous != Some(is_synchronous) {
            let mode = if is_synchronous { "FULL" } else { "NORMAL" };
            self.connection
                .execute_batch(&format!("PRAGMA synchronous = {mode}"))?;
            self.is_synchronous = Some(is_synchronous);
        }
        Ok(())
    }
}

fn failure(code: i32, problem: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some(problem.to_owned()))
}

fn open_connection(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(OPEN_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(32);
    // only a new file takes these, before it has any content
    connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA temp_store = MEMORY")?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        let problem = format!(
            "it cannot have a write-ahead log there (journal mode {mode:?}); a local disk can"
        );
        return Err(failure(rusqlite::ffi::SQLITE_CANTOPEN, &problem));
    }
    connection.execute_batch(&format!(
        "PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; PRAGMA journal_size_limit = {KEPT_LOG_BYTES}"
    ))?;
    Ok(connection)
}
