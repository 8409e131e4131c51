//! Opening a SQLite file: files in use, files that cannot be used, and files of earlier schemas.

use crate::sqlite::query;
use crate::stores::{LIMITS, PATIENCE, client, give, offsets, opened, publish, sqlite};
use _tantor::adapters::sqlite::SqliteStore;
use _tantor::ports::saved_sessions::SessionChange;
use _tantor::ports::store::Store;
use rusqlite::Connection;
use std::path::PathBuf;

#[test]
fn one_tantor_at_a_time_has_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (sqlite(folder.path()), sqlite(folder.path()));
    one.open().unwrap();
    let error = other.open().unwrap_err().to_string();
    let process = format!("process {} uses it", std::process::id());
    assert!(
        error.contains(&process) && error.contains("tantor.db"),
        "{error}"
    );
    one.close(PATIENCE);
    other.open().unwrap();
    other.close(PATIENCE);
}

fn refused(prepare: impl FnOnce(&PathBuf)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tantor.db");
    prepare(&path);
    let error = SqliteStore::new(&path, LIMITS)
        .open()
        .unwrap_err()
        .to_string();
    assert!(error.contains("tantor.db"), "{error}");
    error
}

#[test]
fn a_file_that_cannot_be_used_is_told_why() {
    let garbage = refused(|path| std::fs::write(path, "no database ".repeat(1000)).unwrap());
    assert!(
        garbage.contains("not a database") && garbage.contains("move the file away"),
        "{garbage}"
    );
    let foreign = refused(|path| {
        Connection::open(path)
            .unwrap()
            .execute_batch("CREATE TABLE users (id)")
            .unwrap();
    });
    assert!(
        foreign.contains("another application's database"),
        "{foreign}"
    );
    let newer = refused(|path| {
        let store = SqliteStore::new(path, LIMITS);
        store.open().unwrap();
        store.close(PATIENCE);
        Connection::open(path)
            .unwrap()
            .execute_batch("PRAGMA user_version = 99")
            .unwrap();
    });
    assert!(
        newer.contains("newer Tantor") && newer.contains("99"),
        "{newer}"
    );
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nowhere/tantor.db");
    let error = SqliteStore::new(&missing, LIMITS)
        .open()
        .unwrap_err()
        .to_string();
    assert!(error.contains("there is no folder"), "{error}");
}

#[test]
fn a_file_that_was_damaged_is_told_and_not_used() {
    let error = refused(|path| {
        let store = SqliteStore::new(path, LIMITS);
        store.open().unwrap();
        give(&store, opened("a", 1, false), None);
        for offset in 1..=5000 {
            publish(&store, "a", offset, None);
        }
        store.close(PATIENCE);
        // as if it had not been closed, so that it is looked at
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch("UPDATE state SET value = 0; PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
        drop(connection);
        let mut bytes = std::fs::read(path).unwrap();
        let end = bytes.len();
        bytes[8192..end - 8192].fill(0xA5);
        std::fs::write(path, bytes).unwrap();
    });
    assert!(
        error.contains("malformed") || error.contains("page") || error.contains("Tree"),
        "{error}"
    );
}

#[test]
fn files_of_earlier_schemas_are_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let store = sqlite(folder.path());
    store.open().unwrap();
    give(&store, opened("a", 1, true), None);
    publish(&store, "a", 1, None);
    let known = Box::new(client("client_1"));
    give(&store, SessionChange::ClientSaved { client: known }, None);
    store.close(PATIENCE);
    let path = folder.path().join("tantor.db");
    // schema 1 had no views and no keys, knew one token of a client, and had a list of its channels
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "DROP VIEW tantor_messages; DROP VIEW tantor_connections;
            ALTER TABLE clients DROP COLUMN previous; DROP TABLE idempotency_keys; DROP TABLE memberships;
            ALTER TABLE publications DROP COLUMN durable;
            ALTER TABLE clients ADD COLUMN channels TEXT NOT NULL DEFAULT '[\"z\",\"b\"]'; PRAGMA user_version = 1",
        )
        .unwrap();
    let saved = store.open().unwrap();
    assert_eq!(offsets(&saved, "a"), [1]);
    assert_eq!(saved.memberships["client_1"], ["z".into(), "b".into()]);
    store.close(PATIENCE);
    assert_eq!(
        query::<i64>(&path, "SELECT count(*) FROM tantor_messages"),
        1
    );
    assert_eq!(query::<i64>(&path, "PRAGMA user_version"), 6);
}
