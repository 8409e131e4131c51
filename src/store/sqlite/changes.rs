//! How changes get into the file.

use super::file::DatabaseFile;
use crate::store::{Change, SavedClient};
use rusqlite::{ErrorCode, OptionalExtension, params};
use std::collections::HashMap;
use std::sync::Arc;

/// Changes that were not saved.
pub(super) struct Failure {
    pub error: rusqlite::Error,
    /// The change that cannot be saved though the file can be written, by its place.
    pub culprit: Option<usize>,
}

/// Rows that one transaction deletes, at least as many as it may have put in.
const DELETED_TOGETHER: usize = 1000;

impl DatabaseFile {
    /// Saves changes in one transaction, all or none. With `is_durable` they outlive a power failure.
    ///
    /// Errors: the file cannot be written, or one of the changes cannot be saved.
    pub fn save<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a Change>,
        is_durable: bool,
    ) -> Result<(), Failure> {
        let whole = |error| Failure {
            error,
            culprit: None,
        };
        let changes: Vec<&Change> = changes.collect();
        let budget = DELETED_TOGETHER.max(2 * changes.len());
        self.synchronize(is_durable)
            .and_then(|()| self.begin())
            .map_err(whole)?;
        let result = self.apply_all(&changes, budget);
        if result.is_err() {
            self.undo();
        }
        result.and_then(|()| self.check_identity().map_err(whole))
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

    fn apply_all(&mut self, changes: &[&Change], budget: usize) -> Result<(), Failure> {
        let mut tops = HashMap::new();
        for (place, change) in changes.iter().enumerate() {
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
