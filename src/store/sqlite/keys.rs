//! Idempotency keys, saved with what was published under them.

use super::file::DatabaseFile;
use super::load::unsigned;
use crate::broker::StreamPosition;
use crate::fork::Whole;
use crate::protocol::{Stamp, now_micros};
use crate::store::{KeyResult, UsedKey};
use rusqlite::{Row, params};

/// Rows of one kind are bounded apart, so that clients cannot have the application's forgotten.
const KINDS: [i64; 3] = [PUBLISHED, PUBLISHED_BY_CLIENT, SENT];

const PUBLISHED: i64 = 0;
const PUBLISHED_BY_CLIENT: i64 = 1;
const SENT: i64 = 2;

impl DatabaseFile {
    pub(super) fn save_key(&mut self, used: &UsedKey) -> rusqlite::Result<()> {
        let (kind, position, recipients, stamp) = match used.result {
            KeyResult::Published {
                by_client,
                position,
                recipients,
            } => {
                let kind = if by_client {
                    PUBLISHED_BY_CLIENT
                } else {
                    PUBLISHED
                };
                (kind, Some(position), Some(recipients), None)
            }
            KeyResult::Sent(stamp) => (SENT, None, None, Some(stamp)),
        };
        self.has_keys = true;
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO idempotency_keys
                    (kind, scope, key, expires, epoch, offset, recipients, message_id, at)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                kind,
                &*used.scope,
                &*used.key,
                i64::try_from(used.expires).unwrap_or(i64::MAX),
                position.map(|position| position.epoch.cast_signed()),
                position.map(|position| position.offset.cast_signed()),
                recipients.map(as_sql),
                stamp.map(|stamp| stamp.id.cast_signed()),
                stamp.map(|stamp| stamp.micros.cast_signed()),
            ])
            .map(drop)
    }

    /// Lets go of keys that have expired and, of each kind, of the oldest beyond the bound; of each at most `budget`.
    /// True while there may be more.
    pub(super) fn forget_old_keys(&self, budget: u32) -> rusqlite::Result<bool> {
        if !self.has_keys {
            return Ok(false);
        }
        let _whole = Whole::new();
        let expired = self
            .connection
            .prepare_cached(
                "DELETE FROM idempotency_keys WHERE expires <= ?1
                AND id IN (SELECT id FROM idempotency_keys ORDER BY id LIMIT ?2)",
            )?
            .execute(params![now_micros().cast_signed(), budget])?;
        let mut has_more = expired == budget as usize;
        for kind in KINDS {
            let deleted = self
                .connection
                .prepare_cached(
                    "DELETE FROM idempotency_keys WHERE id IN (
                        SELECT id FROM idempotency_keys WHERE kind = ?1 ORDER BY id DESC LIMIT ?2 OFFSET ?3
                    )",
                )?
                .execute(params![kind, budget, as_sql(self.max_keys)])?;
            has_more |= deleted == budget as usize;
        }
        Ok(has_more)
    }

    /// Those that have not expired, oldest first. Positions are told in the epochs that their streams have now.
    pub(super) fn read_keys(&mut self) -> rusqlite::Result<Vec<UsedKey>> {
        let keys = {
            let mut select = self.connection.prepare(
                "SELECT keys.kind, scope, key, expires, coalesce(streams.epoch, keys.epoch), offset, recipients, message_id, at
                FROM idempotency_keys AS keys LEFT JOIN streams ON keys.kind <> ?1 AND channel = scope ORDER BY keys.id",
            )?;
            let keys = select.query_map([SENT], used_key)?;
            keys.collect::<rusqlite::Result<Vec<_>>>()?
        };
        self.has_keys = !keys.is_empty();
        Ok(keys)
    }
}

fn as_sql(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn used_key(row: &Row<'_>) -> rusqlite::Result<UsedKey> {
    let kind: i64 = row.get(0)?;
    let result = if kind == SENT {
        KeyResult::Sent(Stamp {
            id: unsigned(row, 7)?,
            micros: unsigned(row, 8)?,
        })
    } else {
        KeyResult::Published {
            by_client: kind == PUBLISHED_BY_CLIENT,
            position: StreamPosition {
                epoch: unsigned(row, 4)?,
                offset: unsigned(row, 5)?,
            },
            recipients: usize::try_from(row.get::<_, i64>(6)?).unwrap_or_default(),
        }
    };
    Ok(UsedKey {
        scope: row.get::<_, String>(1)?.into(),
        key: row.get::<_, String>(2)?.into(),
        expires: unsigned(row, 3)?,
        result,
    })
}
