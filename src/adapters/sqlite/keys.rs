//! Idempotency keys, saved in the transaction of their publication or message.

use super::file::DatabaseFile;
use super::load::unsigned;
use super::schema::{KEY_KINDS, KeyCounts, NEVER};
use crate::base::clock::WallTime;
use crate::base::fork::ForkGuard;
use crate::core::history::StreamPosition;
use crate::core::idempotency::LostFlag;
use crate::ports::durability::{KeyResult, UsedKey};
use crate::wire::messages::Stamp;
use rusqlite::{Row, params};
use std::borrow::Cow;

const PUBLISHED: usize = 0;
const PUBLISHED_BY_CLIENT: usize = 1;
const SENT: usize = 2;

/// The least number of rows beyond the bound that are deleted together.
const SURPLUS: usize = 32;

/// Separates a client's id from the channel in a row's `scope`. Neither contains control characters.
const SEPARATOR: char = '\n';

impl DatabaseFile {
    /// Saves a key. Where its kind has too many keys, the oldest keys of its own client are deleted first, then the oldest of
    /// the kind.
    pub(super) fn save_key(&mut self, used: &UsedKey) -> rusqlite::Result<()> {
        let (kind, position, recipients, stamp) = match used.result {
            KeyResult::Published {
                position,
                recipients,
            } => {
                let kind = if used.client.is_some() {
                    PUBLISHED_BY_CLIENT
                } else {
                    PUBLISHED
                };
                (kind, Some(position), Some(recipients), None)
            }
            KeyResult::Sent(stamp) => (SENT, None, None, Some(stamp)),
        };
        let scope = scope_of(used);
        let known = self
            .connection
            .prepare_cached(
                "DELETE FROM idempotency_keys WHERE kind = ?1 AND scope = ?2 AND key = ?3",
            )?
            .execute(params![as_sql(kind), scope, &*used.key])?;
        self.connection
            .prepare_cached(
                "INSERT INTO idempotency_keys VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                as_sql(kind),
                scope,
                &*used.key,
                used.expires,
                position.map(|position| position.epoch.cast_signed()),
                position.map(|position| position.offset.cast_signed()),
                recipients.map(as_sql),
                stamp.map(|stamp| stamp.id.cast_signed()),
                stamp.map(|stamp| stamp.at),
            ])?;
        self.key_counts[kind] = (self.key_counts[kind] + 1).saturating_sub(known);
        let surplus = SURPLUS.max(self.max_keys / 16);
        if self.key_counts[kind] >= self.max_keys.saturating_add(surplus) {
            if let Some(client) = &used.client {
                self.forget_client_keys(client, self.key_counts[kind] - self.max_keys)?;
            }
            let left = self.key_counts[kind].saturating_sub(self.max_keys);
            self.forget_keys(kind, NEVER, left)?;
        }
        Ok(())
    }

    /// Deletes keys that have expired, at most `budget` of each kind; true while there may be more.
    pub(super) fn forget_old_keys(&mut self, budget: usize) -> rusqlite::Result<bool> {
        let mut has_more = false;
        for kind in 0..KEY_KINDS {
            if self.key_counts[kind] > 0 {
                let _whole = ForkGuard::new();
                has_more |= self.forget_keys(kind, WallTime::now(), budget)? == budget;
            }
        }
        Ok(has_more)
    }

    /// Reads the keys that have not expired, the oldest of each kind first.
    pub(super) fn read_keys(&mut self) -> rusqlite::Result<Vec<UsedKey>> {
        // a key from a time with a longer `idempotency_ttl` would outlive the keys of today
        let latest = WallTime::now() + self.key_ttl;
        self.connection.execute(
            "UPDATE idempotency_keys SET expires = ?1 WHERE expires > ?1",
            [latest],
        )?;
        let mut select = self
            .connection
            .prepare("SELECT * FROM idempotency_keys ORDER BY kind, expires")?;
        let mut counts = KeyCounts::default();
        let mut keys = Vec::new();
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let kind = row.get::<_, i64>(0)?;
            if let Some(count) = usize::try_from(kind)
                .ok()
                .and_then(|kind| counts.get_mut(kind))
            {
                *count += 1;
                let used = used_key(row)?;
                // the key is of a version whose clients shared their keys
                let is_ownerless = kind == as_sql(PUBLISHED_BY_CLIENT) && used.client.is_none();
                if !is_ownerless {
                    keys.push(used);
                }
            }
        }
        drop(rows);
        drop(select);
        self.key_counts = counts;
        Ok(keys)
    }

    /// Moves the positions of a stream's keys to its new epoch.
    pub(super) fn move_keys(&self, stream: i64, epoch: u64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "UPDATE idempotency_keys SET epoch = ?2 FROM streams
                WHERE streams.id = ?1 AND idempotency_keys.kind IN (?3, ?4) 
                    AND channel = substr(scope, 1 + instr(scope, ?5))
                    AND idempotency_keys.epoch = streams.epoch",
            )?
            .execute(params![
                stream,
                epoch.cast_signed(),
                as_sql(PUBLISHED),
                as_sql(PUBLISHED_BY_CLIENT),
                SEPARATOR.to_string()
            ])
            .map(drop)
    }

    /// Deletes the oldest keys of a client, up to `count` of them.
    pub(super) fn forget_client_keys(
        &mut self,
        client: &str,
        count: usize,
    ) -> rusqlite::Result<()> {
        let after = |separator: char| format!("{client}{separator}");
        let forgotten = self
            .connection
            .prepare_cached(
                "DELETE FROM idempotency_keys WHERE (kind, scope, key) IN (
                    SELECT kind, scope, key FROM idempotency_keys
                    WHERE kind = ?1 AND scope >= ?2 AND scope < ?3 ORDER BY expires LIMIT ?4
                )",
            )?
            .execute(params![
                as_sql(PUBLISHED_BY_CLIENT),
                after(SEPARATOR),
                after('\u{b}'),
                as_sql(count)
            ])?;
        let known = &mut self.key_counts[PUBLISHED_BY_CLIENT];
        *known = known.saturating_sub(forgotten);
        Ok(())
    }

    /// Deletes the oldest keys of a kind, up to `count` of those that expire at `through` or before.
    fn forget_keys(
        &mut self,
        kind: usize,
        through: WallTime,
        count: usize,
    ) -> rusqlite::Result<usize> {
        let forgotten = self
            .connection
            .prepare_cached(
                "DELETE FROM idempotency_keys WHERE (kind, scope, key) IN (
                    SELECT kind, scope, key FROM idempotency_keys
                    WHERE kind = ?1 AND expires <= ?2 ORDER BY expires LIMIT ?3
                )",
            )?
            .execute(params![as_sql(kind), through, as_sql(count)])?;
        self.key_counts[kind] = self.key_counts[kind].saturating_sub(forgotten);
        Ok(forgotten)
    }
}

fn as_sql(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The scope of a key as a column: the channel, the client that was sent to, or the publishing client and the channel.
fn scope_of(used: &UsedKey) -> Cow<'_, str> {
    match &used.client {
        Some(client) => format!("{client}{SEPARATOR}{}", used.target).into(),
        None => (&*used.target).into(),
    }
}

fn used_key(row: &Row<'_>) -> rusqlite::Result<UsedKey> {
    let kind: i64 = row.get(0)?;
    let result = if kind == as_sql(SENT) {
        KeyResult::Sent(Stamp {
            id: unsigned(row, 7)?,
            at: row.get(8)?,
        })
    } else {
        KeyResult::Published {
            position: StreamPosition {
                epoch: unsigned(row, 4)?,
                offset: unsigned(row, 5)?,
            },
            recipients: usize::try_from(row.get::<_, i64>(6)?).unwrap_or_default(),
        }
    };
    let scope: String = row.get(1)?;
    let (client, target) = match scope.split_once(SEPARATOR) {
        Some((client, channel)) => (Some(client.into()), channel),
        None => (None, &*scope),
    };
    Ok(UsedKey {
        client,
        target: target.into(),
        key: row.get::<_, String>(2)?.into(),
        expires: row.get(3)?,
        result,
        lost_flag: LostFlag::default(),
    })
}
