//! Changes as SQL.

use super::batch::{Batch, Item};
use super::file::DatabaseFile;
use super::schema::NEVER;
use crate::base::fork::ForkGuard;
use crate::ports::saved_sessions::{SavedClient, SessionChange};
use crate::ports::stream_log::{StreamChange, StreamKey};
use crate::settings::channel_kind::ChannelKind;
use rusqlite::{ErrorCode, OptionalExtension, params};
use std::collections::HashMap;
use std::ops::Range;

/// Why changes were not saved.
pub(super) enum Failure {
    /// The file cannot be written.
    File(rusqlite::Error),
    /// The file has no room for the changes.
    NoRoom(rusqlite::Error),
    /// The change at this index cannot be saved, although the file can be written.
    Change(usize, rusqlite::Error),
}

/// The most rows that one transaction deletes: at least as many as one transaction may insert.
const DELETED_TOGETHER: usize = 1000;

impl DatabaseFile {
    /// Saves some changes of a batch in one transaction. With `is_durable` the changes outlive a power failure.
    /// Deletions may use the pages that are reserved for them; a transaction that adds anything may not.
    ///
    /// Errors: the file cannot be written, or has no room, or one of the changes cannot be saved.
    pub fn save(
        &mut self,
        batch: &Batch,
        which: Range<usize>,
        is_durable: bool,
    ) -> Result<(), Failure> {
        let _whole = ForkGuard::new();
        self.synchronize(is_durable)
            .and_then(|()| self.begin())
            .map_err(Failure::File)?;
        let key_counts = self.key_counts;
        let mut result = self.apply_all(batch, which.clone());
        if result.is_err() {
            self.undo();
            self.key_counts = key_counts;
        }
        if let Err(Failure::File(error)) = result {
            result = Err(self.file_failure(error, batch, which));
        }
        self.opened.clear();
        result.and_then(|()| self.check_identity().map_err(Failure::File))
    }

    /// Writes to the file and rolls the transaction back, to try whether the file can be written.
    ///
    /// Errors: the file cannot be written, or has no room.
    pub fn probe(&mut self) -> rusqlite::Result<()> {
        let _whole = ForkGuard::new();
        let result = self.begin().and_then(|()| {
            let used_pages = self.used_pages()?;
            self.connection
                .prepare_cached("INSERT OR REPLACE INTO state VALUES ('probe', zeroblob(8192))")?
                .execute([])?;
            self.check_room(used_pages)?;
            self.connection.prepare_cached("COMMIT")?.execute([])?;
            self.connection
                .prepare_cached("DELETE FROM state WHERE name = 'probe'")?
                .execute([])
                .map(drop)
        });
        if result.is_err() {
            self.undo();
        }
        result.and_then(|()| self.check_identity())
    }

    /// True while rows are still to be deleted.
    pub fn has_leftovers(&self) -> bool {
        !self.trims.is_empty() || !self.orphans.is_empty()
    }

    /// True while publications of known streams are still to be deleted. The next opening would read these publications.
    /// Those of forgotten streams the opening deletes itself.
    pub fn has_trims(&self) -> bool {
        !self.trims.is_empty()
    }

    /// Distinguishes a file without room from a file that cannot be written.
    fn file_failure(&self, error: rusqlite::Error, batch: &Batch, which: Range<usize>) -> Failure {
        if error.sqlite_error_code() != Some(ErrorCode::DiskFull) {
            return Failure::File(error);
        }
        let bytes = batch.entries[which].iter().map(|entry| entry.weight).sum();
        if self.would_be_full(bytes) {
            return Failure::NoRoom(self.no_room());
        }
        Failure::NoRoom(error)
    }

    fn apply_all(&mut self, batch: &Batch, which: Range<usize>) -> Result<(), Failure> {
        let entries = &batch.entries[which.clone()];
        let used_pages = self.used_pages().map_err(Failure::File)?;
        // before the additions, so that an addition that is deleted again is not inserted
        for entry in entries {
            if let Item::Stream(StreamChange::Trimmed { stream, through }) = &entry.item {
                self.note_trim(*stream, *through);
            }
        }
        let mut tops = HashMap::new();
        for (index, entry) in which.zip(entries) {
            let used_key = entry.item.used_key();
            let saved = used_key.map_or(Ok(()), |used| self.save_key(used));
            let applied = saved.and_then(|()| self.apply(batch, &entry.item, &mut tops));
            applied.map_err(|error| {
                if is_of_the_file(&error) {
                    Failure::File(error)
                } else {
                    Failure::Change(index, error)
                }
            })?;
        }
        let has_additions = entries.iter().any(|entry| entry.item.adds());
        let budget = DELETED_TOGETHER.max(2 * entries.len());
        self.finish(&tops, budget, has_additions.then_some(used_pages))
            .map_err(Failure::File)
    }

    /// Completes a transaction and commits it. `before`, for a transaction with additions, is the number of pages that were
    /// used before.
    fn finish(
        &mut self,
        tops: &HashMap<i64, u64>,
        budget: usize,
        used_pages: Option<u64>,
    ) -> rusqlite::Result<()> {
        for (stream, top) in tops {
            self.connection
                .prepare_cached("UPDATE streams SET top = max(top, ?2) WHERE id = ?1")?
                .execute(params![stream, top.cast_signed()])?;
        }
        let (trims, orphans) = self.delete_leftovers(budget)?;
        if let Some(used_pages) = used_pages {
            self.check_room(used_pages)?;
        }
        self.count_commit()?;
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        self.note_commit();
        for stream in trims {
            self.trims.remove(&stream);
        }
        for row in orphans {
            self.orphans.remove(&row);
        }
        for stream in &self.opened {
            self.early_trims.remove(stream);
        }
        for (stream, row) in std::mem::take(&mut self.forgotten) {
            // the key may be that of a later stream already
            if self.streams.get(&stream) == Some(&row) {
                self.streams.remove(&stream);
            }
            self.trims.remove(&row);
            self.orphans.insert(row);
        }
        Ok(())
    }

    fn apply(
        &mut self,
        batch: &Batch,
        item: &Item,
        tops: &mut HashMap<i64, u64>,
    ) -> rusqlite::Result<()> {
        match item {
            Item::Stream(StreamChange::Published {
                stream,
                position,
                at,
                expires,
                is_durable,
                frame,
                used_key: _,
            }) => {
                let row = self.row_of(*stream)?;
                let offset = position.offset;
                tops.insert(row, offset);
                if self
                    .trims
                    .get(&row)
                    .is_some_and(|through| *through >= offset)
                {
                    return Ok(());
                }
                self.connection
                    .prepare_cached(
                        "INSERT OR REPLACE INTO publications (stream, offset, at, expires, message, durable)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    )?
                    .execute(params![
                        row,
                        offset.cast_signed(),
                        at,
                        expires,
                        text(batch.text(*frame)),
                        is_durable
                    ])
                    .map(drop)
            }
            Item::Stream(StreamChange::StreamOpened {
                stream,
                channel,
                epoch,
                kind,
                durable,
            }) => {
                let id = self.open_stream(channel, *epoch, *kind, *durable)?;
                self.streams.insert(*stream, id);
                self.opened.push(*stream);
                if let Some(through) = self.early_trims.get(stream).copied() {
                    self.note_trim(*stream, through);
                }
                Ok(())
            }
            Item::Stream(StreamChange::Trimmed { stream, through }) => {
                self.note_trim(*stream, *through);
                Ok(())
            }
            Item::Stream(StreamChange::StreamForgotten { stream, channel }) => {
                self.early_trims.remove(stream);
                self.forget_stream(*stream, channel)
            }
            Item::Session(SessionChange::Mailed {
                client,
                number,
                message,
                expires,
                is_emergency,
                frame,
                used_key: _,
            }) => self
                .connection
                .prepare_cached("INSERT OR REPLACE INTO mail VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                .execute(params![
                    &**client,
                    number.cast_signed(),
                    message.cast_signed(),
                    expires,
                    is_emergency,
                    text(batch.text(*frame))
                ])
                .map(drop),
            Item::Session(SessionChange::Unmailed { client, numbers }) => {
                self.delete_mail(client, numbers)
            }
            Item::Session(SessionChange::ClientSaved { client }) => self.save_client(client),
            Item::Session(SessionChange::Joined {
                client,
                channel,
                at,
            }) => self
                .connection
                .prepare_cached("INSERT OR IGNORE INTO memberships VALUES (?1, ?2, ?3)")?
                .execute(params![&**client, &**channel, at])
                .map(drop),
            Item::Session(SessionChange::Left { client, channel }) => self
                .connection
                .prepare_cached("DELETE FROM memberships WHERE client = ?1 AND channel = ?2")?
                .execute([&**client, &**channel])
                .map(drop),
            Item::Session(SessionChange::ClientForgotten { id }) => self.forget_client(id),
            // the key was saved before
            Item::KeyUsed { .. } | Item::Barrier => Ok(()),
        }
    }

    fn open_stream(
        &self,
        channel: &str,
        epoch: u64,
        kind: ChannelKind,
        durable: bool,
    ) -> rusqlite::Result<i64> {
        self.connection
            .prepare_cached(
                "INSERT INTO streams (channel, epoch, top, kind, durable) VALUES (?1, ?2, 0, ?3, ?4)
                ON CONFLICT (channel) DO UPDATE SET epoch = ?2, kind = ?3, durable = ?4 RETURNING id",
            )?
            .query_row(
                params![channel, epoch.cast_signed(), kind.name(), durable],
                |row| row.get(0),
            )
    }

    fn delete_mail(&self, client: &str, numbers: &[u64]) -> rusqlite::Result<()> {
        let mut delete = self
            .connection
            .prepare_cached("DELETE FROM mail WHERE client = ?1 AND number = ?2")?;
        for number in numbers {
            delete.execute(params![client, number.cast_signed()])?;
        }
        Ok(())
    }

    fn forget_stream(&mut self, stream: StreamKey, channel: &str) -> rusqlite::Result<()> {
        let row: Option<i64> = self
            .connection
            .prepare_cached("DELETE FROM streams WHERE channel = ?1 RETURNING id")?
            .query_row([channel], |row| row.get(0))
            .optional()?;
        self.forgotten.extend(row.map(|row| (stream, row)));
        Ok(())
    }

    fn save_client(&self, client: &SavedClient) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO clients VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                &*client.id,
                &client.root[..],
                client.rotation.cast_signed(),
                client.expires.unwrap_or(NEVER),
                client.joined,
                client.last_ping,
                client.expires.is_none(),
                client.user_data.as_deref().map(text),
                client.previous.map(u64::cast_signed)
            ])
            .map(drop)
    }

    fn forget_client(&mut self, id: &str) -> rusqlite::Result<()> {
        for delete in [
            "DELETE FROM clients WHERE id = ?1",
            "DELETE FROM memberships WHERE client = ?1",
        ] {
            self.connection.prepare_cached(delete)?.execute([id])?;
        }
        self.forget_client_keys(id, usize::MAX)
    }

    /// Errors: the stream was never opened, or has been forgotten.
    fn row_of(&self, stream: StreamKey) -> rusqlite::Result<i64> {
        let row = self.streams.get(&stream).copied();
        row.ok_or(rusqlite::Error::QueryReturnedNoRows)
    }

    fn note_trim(&mut self, stream: StreamKey, through: u64) {
        let trim = match self.streams.get(&stream) {
            Some(row) => self.trims.entry(*row).or_default(),
            None => self.early_trims.entry(stream).or_default(),
        };
        *trim = through.max(*trim);
    }

    /// Deletes up to `budget` rows. Returns the trims and the orphans that are complete.
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

    /// Deletes at most `left` publications up to an offset; false if there are more.
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
        // the first row beyond the budget stays
        let end = last.map_or(through, |last| last - 1);
        let deleted = self
            .connection
            .prepare_cached("DELETE FROM publications WHERE stream = ?1 AND offset <= ?2")?
            .execute(params![stream, end])?;
        *left = left.saturating_sub(deleted);
        Ok(last.is_none())
    }
}

/// True if an error is about the file or the disk, and not about the change that was to be saved.
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

/// A message as a value of SQLite: text, because messages are UTF-8; other bytes are stored unchanged.
fn text(bytes: &[u8]) -> rusqlite::types::ToSqlOutput<'_> {
    use rusqlite::types::{ToSqlOutput, ValueRef};
    ToSqlOutput::Borrowed(ValueRef::Text(bytes))
}
