//! Reads the saved state from a file.

use super::file::DatabaseFile;
use crate::base::clock::WallTime;
use crate::core::history::{Message, WINDOW};
use crate::ports::durability::StoreError;
use crate::ports::saved_sessions::{SavedClient, SavedMail};
use crate::ports::store::Saved;
use crate::ports::stream_log::{SavedPublication, SavedStream};
use crate::settings::channel_kind::ChannelKind;
use crate::wire::frame::EncodedFrame;
use rusqlite::{Row, params};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

impl DatabaseFile {
    /// Reads all rows that have not expired, and deletes the others.
    ///
    /// Errors: the file cannot be read.
    pub fn load(&mut self) -> Result<Saved, StoreError> {
        self.read_all().map_err(|error| {
            StoreError(format!(
                "cannot read the database {}: {error}",
                self.path().display()
            ))
        })
    }

    fn read_all(&mut self) -> rusqlite::Result<Saved> {
        self.let_go_of_expired()?;
        Ok(Saved {
            streams: self.read_streams()?,
            clients: self.read_clients()?,
            memberships: self.read_memberships()?,
            mail: self.read_mail()?,
            used_keys: self.read_keys()?,
        })
    }

    fn let_go_of_expired(&self) -> rusqlite::Result<()> {
        let now = WallTime::now();
        for table in ["publications", "mail", "clients", "idempotency_keys"] {
            self.connection.execute(
                &format!("DELETE FROM {table} WHERE expires <= ?1"),
                params![now],
            )?;
        }
        // publications of streams that were forgotten when the process ended
        self.connection.execute(
            "DELETE FROM publications WHERE stream NOT IN (SELECT id FROM streams)",
            [],
        )?;
        self.connection.execute(
            "DELETE FROM memberships WHERE client NOT IN (SELECT id FROM clients)",
            [],
        )?;
        Ok(())
    }

    fn read_streams(&self) -> rusqlite::Result<Vec<SavedStream>> {
        let mut publications = self.read_publications()?;
        let mut select = self
            .connection
            .prepare("SELECT id, channel, epoch, top, kind, durable FROM streams")?;
        let streams = select.query_map([], |row| {
            let durable: bool = row.get(5)?;
            let mut kept = publications.remove(&row.get(0)?).unwrap_or_default();
            kept.reverse();
            let last = kept.last().map_or(0, |last| last.offset);
            let top = unsigned(row, 3)?.max(last);
            // on a durable channel no subscriber has seen the missing publications
            let broken_through = if durable {
                0
            } else {
                broken_through(&kept, top)
            };
            Ok(SavedStream {
                channel: shared(row, 1)?,
                epoch: unsigned(row, 2)?,
                top,
                kind: ChannelKind::from_name(row.get_ref(4)?.as_str()?).unwrap_or_default(),
                durable,
                broken_through,
                publications: kept,
            })
        })?;
        streams.collect()
    }

    /// The publications of each stream, newest first. Of durable streams only the messages of the window are read: SQLite
    /// reads a long message only if its column is asked for.
    fn read_publications(&self) -> rusqlite::Result<HashMap<i64, Vec<SavedPublication>>> {
        let mut select = self
            .connection
            .prepare("SELECT id FROM streams WHERE durable")?;
        let durable: HashSet<i64> = select
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let mut select = self.connection.prepare(
            "SELECT stream, offset, at, durable, octet_length(message), message FROM publications
            ORDER BY stream DESC, offset DESC",
        )?;
        let mut publications: HashMap<i64, Vec<SavedPublication>> = HashMap::new();
        let mut last = None;
        // messages and bytes of the stream so far; `None` once its window is full
        let mut in_memory = Some((0, 0));
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let stream = row.get(0)?;
            if last.replace(stream) != Some(stream) {
                in_memory = Some((0, 0));
            }
            let payload_len: i64 = row.get(4)?;
            let len = EncodedFrame::text_len(usize::try_from(payload_len).unwrap_or(0));
            in_memory = in_memory
                .filter(|(count, bytes)| {
                    !durable.contains(&stream) || WINDOW.has_room(*count, *bytes, len)
                })
                .map(|(count, bytes)| (count + 1, bytes + len));
            let is_read = in_memory.is_some();
            publications
                .entry(stream)
                .or_default()
                .push(SavedPublication {
                    offset: unsigned(row, 1)?,
                    at: row.get(2)?,
                    is_durable: row.get(3)?,
                    message: if is_read {
                        Message::InMemory(frame(row, 5)?)
                    } else {
                        Message::InLog(len)
                    },
                });
        }
        Ok(publications)
    }

    fn read_clients(&self) -> rusqlite::Result<Vec<SavedClient>> {
        let mut select = self.connection.prepare(
            "SELECT id, root, rotation, expires, joined, last_ping, is_connected, user_data, previous FROM clients ORDER BY expires",
        )?;
        let clients = select.query_map([], |row| {
            Ok(SavedClient {
                id: shared(row, 0)?,
                root: row.get(1)?,
                rotation: unsigned(row, 2)?,
                expires: if row.get(6)? { None } else { row.get(3)? },
                joined: row.get(4)?,
                last_ping: row.get(5)?,
                user_data: row
                    .get::<_, Option<String>>(7)?
                    .map(|text| text.into_bytes().into()),
                previous: row.get::<_, Option<i64>>(8)?.map(i64::cast_unsigned),
            })
        })?;
        clients.collect()
    }

    fn read_memberships(&self) -> rusqlite::Result<HashMap<Arc<str>, Vec<Arc<str>>>> {
        let mut select = self
            .connection
            .prepare("SELECT client, channel FROM memberships ORDER BY client, at, channel")?;
        let mut memberships: HashMap<Arc<str>, Vec<Arc<str>>> = HashMap::new();
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let channels = memberships.entry(shared(row, 0)?).or_default();
            channels.push(shared(row, 1)?);
        }
        Ok(memberships)
    }

    fn read_mail(&self) -> rusqlite::Result<Vec<SavedMail>> {
        let mut select = self.connection.prepare(
            "SELECT client, number, message_id, expires, is_emergency, message FROM mail ORDER BY client, number",
        )?;
        let mail = select.query_map([], |row| {
            Ok(SavedMail {
                client: shared(row, 0)?,
                number: unsigned(row, 1)?,
                message: unsigned(row, 2)?,
                expires: row.get(3)?,
                is_emergency: row.get(4)?,
                frame: frame(row, 5)?,
            })
        })?;
        mail.collect()
    }
}

/// In a stream whose publications are handed over before they are saved, a hole is a loss: only the publications behind
/// the last hole are complete. Publications before the hole are kept, because a caller may have waited until they were
/// saved.
fn broken_through(kept: &[SavedPublication], top: u64) -> u64 {
    if kept.last().is_none_or(|last| last.offset < top) {
        return top;
    }
    let hole = kept
        .windows(2)
        .rfind(|pair| pair[0].offset + 1 != pair[1].offset);
    hole.map_or(0, |pair| pair[1].offset - 1)
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

fn shared(row: &Row<'_>, column: usize) -> rusqlite::Result<Arc<str>> {
    Ok(row.get_ref(column)?.as_str()?.into())
}

fn frame(row: &Row<'_>, column: usize) -> rusqlite::Result<EncodedFrame> {
    Ok(EncodedFrame::text(
        row.get_ref(column)?.as_str()?.as_bytes(),
    ))
}
