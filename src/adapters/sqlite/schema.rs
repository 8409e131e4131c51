//! The schema of the file, a step for each version of the schema, and the storage format of times.

use crate::base::clock::WallTime;
use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef};

/// The expiry of a row that does not expire.
pub(super) const NEVER: WallTime = WallTime::from_micros(i64::MAX.cast_unsigned());

impl ToSql for WallTime {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(i64::try_from(self.as_micros()).unwrap_or(i64::MAX).into())
    }
}

impl FromSql for WallTime {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let micros = i64::column_result(value)?;
        Ok(WallTime::from_micros(micros.cast_unsigned()))
    }
}

/// Kinds of idempotency keys. The rows of each kind have a bound of their own, so that the keys of clients cannot displace
/// those of the application.
pub(super) const KEY_KINDS: usize = 3;

/// Rows of each kind of idempotency key.
pub(super) type KeyCounts = [usize; KEY_KINDS];

/// `PRAGMA application_id` of Tantor's files: "TANT".
pub(super) const APPLICATION_ID: i32 = 0x5441_4e54;

/// The steps of the schema. `PRAGMA user_version` is the number of steps that a file has taken.
pub(super) const MIGRATIONS: &[&str] = &[
    TABLES,
    VIEWS,
    PREVIOUS_TOKENS,
    IDEMPOTENCY_KEYS,
    DURABLE_PUBLICATIONS,
    MEMBERSHIPS,
];

/// Times are microseconds since 1970. Offsets, epochs and ids are unsigned and stored as the signed numbers of the same
/// bits. `message` is the JSON that goes over the wire.
const TABLES: &str = "
CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE streams (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    channel TEXT NOT NULL UNIQUE,
    epoch INTEGER NOT NULL,
    top INTEGER NOT NULL,
    kind TEXT NOT NULL,
    durable INTEGER NOT NULL
);
CREATE TABLE publications (
    stream INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    at INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (stream, offset)
) WITHOUT ROWID;
CREATE TABLE mail (
    client TEXT NOT NULL,
    number INTEGER NOT NULL,
    message_id INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    is_emergency INTEGER NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (client, number)
) WITHOUT ROWID;
CREATE TABLE clients (
    id TEXT PRIMARY KEY,
    root BLOB NOT NULL,
    rotation INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    joined INTEGER NOT NULL,
    last_ping INTEGER NOT NULL,
    is_connected INTEGER NOT NULL,
    channels TEXT NOT NULL,
    user_data TEXT
) WITHOUT ROWID;
";

/// Views for the tools of Flask-TSK: the columns of its `elephant_services.sql`.
const VIEWS: &str = "
CREATE VIEW tantor_messages AS
SELECT
    json_extract(publications.message, '$.id') AS id,
    streams.channel AS channel,
    coalesce(json_extract(publications.message, '$.data.message'), json_extract(publications.message, '$.data'), '') AS message,
    coalesce(json_extract(publications.message, '$.from'), 'tantor') AS sender,
    json_extract(publications.message, '$.timestamp') AS timestamp,
    json_extract(publications.message, '$.event') AS message_type,
    json_extract(publications.message, '$.data') AS data
FROM publications JOIN streams ON streams.id = publications.stream
UNION ALL
SELECT
    json_extract(message, '$.id'),
    json_extract(message, '$.channel'),
    coalesce(json_extract(message, '$.message'), json_extract(message, '$.data.message'), message),
    coalesce(json_extract(message, '$.from'), json_extract(message, '$.sender'), 'tantor'),
    json_extract(message, '$.timestamp'),
    coalesce(json_extract(message, '$.event'), 'chat'),
    message
FROM mail;
CREATE VIEW tantor_connections AS
SELECT
    id AS client_id,
    is_connected AS handshake_complete,
    last_ping / 1000000 AS last_ping,
    joined / 1000000 AS joined_at,
    channels,
    coalesce(user_data, '{}') AS user_data
FROM clients;
";

/// The rotation of the resume token before the latest, while that token is still valid.
const PREVIOUS_TOKENS: &str = "ALTER TABLE clients ADD COLUMN previous INTEGER;";

/// Idempotency keys with their results: `epoch`, `offset` and `recipients` of a publication, `message_id` and `at` of a
/// message to a client. `keys.rs` has the numbers of the kinds.
const IDEMPOTENCY_KEYS: &str = "
CREATE TABLE idempotency_keys (
    kind INTEGER NOT NULL,
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    expires INTEGER NOT NULL,
    epoch INTEGER,
    offset INTEGER,
    recipients INTEGER,
    message_id INTEGER,
    at INTEGER,
    PRIMARY KEY (kind, scope, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (kind, expires);
";

/// Marks publications that no budget removes, also on channels that are not durable. Earlier versions did not mark them.
const DURABLE_PUBLICATIONS: &str =
    "ALTER TABLE publications ADD COLUMN durable INTEGER NOT NULL DEFAULT 0;";

/// A row for each channel of a client, so that a join does not write a list of all channels of the client. Other programs
/// read the view with their own SQLite, which may not support `ORDER BY` in an aggregate.
const MEMBERSHIPS: &str = "
CREATE TABLE memberships (
    client TEXT NOT NULL,
    channel TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (client, channel)
) WITHOUT ROWID;
INSERT OR IGNORE INTO memberships
SELECT clients.id, json_each.value, json_each.key FROM clients, json_each(clients.channels);
DROP VIEW tantor_connections;
ALTER TABLE clients DROP COLUMN channels;
CREATE VIEW tantor_connections AS
SELECT
    id AS client_id,
    is_connected AS handshake_complete,
    last_ping / 1000000 AS last_ping,
    joined / 1000000 AS joined_at,
    (
        SELECT json_group_array(channel) FROM (
            SELECT channel FROM memberships WHERE client = clients.id ORDER BY at, channel
        )
    ) AS channels,
    coalesce(user_data, '{}') AS user_data
FROM clients;
";
