//! Copies of the SQLite file: how they are made and put back, and how an older one in its place is noticed.

use crate::stores::{PATIENCE, give, offsets, opened, publish, publish_and_wait, reopen, sqlite};
use _tantor::adapters::sqlite::{SqliteStore, back_up, restore};
use _tantor::ports::store::{Saved, Store};
use _tantor::ports::stream_log::StreamLog;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// A store with a durable channel and one that is not, with one publication each, in epoch 5.
fn begun(folder: &Path) -> (SqliteStore, PathBuf) {
    let store = sqlite(folder);
    store.open().unwrap();
    for (channel, durable) in [("plain", false), ("durable", true)] {
        give(&store, opened(channel, 5, durable), None);
        store.note_published(channel, false);
        publish_and_wait(&store, channel, 1).unwrap();
    }
    (store, folder.join("tantor.db"))
}

fn are_new(saved: &Saved) -> bool {
    assert_eq!(saved.streams.len(), 2);
    let is_new = saved.streams[0].epoch != 5;
    assert_eq!(saved.streams[1].epoch != 5, is_new, "{saved:?}");
    is_new
}

#[test]
fn an_older_copy_in_the_place_of_the_file_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = begun(folder.path());
    store.close(PATIENCE);
    let copy = fs::read(&path).unwrap();
    store.open().unwrap();
    give(&store, opened("durable", 5, true), None);
    publish_and_wait(&store, "durable", 2).unwrap();
    store.close(PATIENCE);
    fs::write(&path, &copy).unwrap();
    let saved = store.open().unwrap();
    assert!(are_new(&saved));
    assert_eq!(offsets(&saved, "durable"), [1]);
    let epochs = |saved: &Saved| saved.streams.iter().map(|s| s.epoch).collect::<Vec<_>>();
    assert_eq!(
        epochs(&reopen(&store)),
        epochs(&saved),
        "it is noticed once"
    );
    // more commits than the copy that is put in its place once more
    store.close(PATIENCE);
    fs::write(&path, &copy).unwrap();
    assert!(are_new(&store.open().unwrap()));
    store.close(PATIENCE);
}

/// Makes the count beside the database one of an earlier start of the machine.
fn reboot(database: &Path) {
    let mut path = database.as_os_str().to_owned();
    path.push("-commits");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8..24].fill(b'Z');
    let checksum = Sha256::digest(&bytes[..48]);
    bytes[48..56].copy_from_slice(&checksum[..8]);
    fs::write(&path, bytes).unwrap();
}

#[test]
fn an_older_copy_is_noticed_after_a_reboot_too() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = begun(folder.path());
    store.close(PATIENCE);
    let copy = fs::read(&path).unwrap();
    reboot(&path);
    assert!(!are_new(&store.open().unwrap()), "nothing is missing");
    // nobody waits for these commits, so only the end of the use syncs them
    give(&store, opened("plain", 5, false), None);
    for offset in 2..=30 {
        publish(&store, "plain", offset, None);
    }
    store.close(PATIENCE);
    fs::write(&path, &copy).unwrap();
    reboot(&path);
    assert!(are_new(&store.open().unwrap()));
    store.close(PATIENCE);
}

#[test]
fn a_copy_that_lacks_nothing_keeps_its_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = begun(folder.path());
    store.close(PATIENCE);
    let copy = fs::read(&path).unwrap();
    assert!(!are_new(&store.open().unwrap()));
    store.close(PATIENCE);
    fs::write(&path, copy).unwrap();
    assert!(!are_new(&store.open().unwrap()));
    store.close(PATIENCE);
}

#[test]
fn a_file_whose_count_is_missing_or_damaged_has_other_epochs() {
    let missing: fn(&Path) = |path| fs::remove_file(path).unwrap();
    let damaged: fn(&Path) = |path| fs::write(path, [1; 100]).unwrap();
    for harm in [missing, damaged] {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = begun(folder.path());
        store.close(PATIENCE);
        harm(&folder.path().join("tantor.db-commits"));
        assert!(are_new(&store.open().unwrap()));
        store.close(PATIENCE);
    }
}

#[test]
fn a_file_of_a_version_that_counted_nothing_keeps_its_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = begun(folder.path());
    store.close(PATIENCE);
    fs::remove_file(folder.path().join("tantor.db-commits")).unwrap();
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute("DELETE FROM state WHERE name IN ('lineage', 'commits')", [])
        .unwrap();
    assert!(!are_new(&store.open().unwrap()));
    store.close(PATIENCE);
}

#[test]
fn a_backup_of_a_database_in_use_is_restored_with_other_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = begun(folder.path());
    let backup = folder.path().join("backup.db");
    back_up(&path, &backup).unwrap();
    let error = back_up(&path, &backup).unwrap_err().0;
    assert!(error.contains("backup.db exists already"), "{error}");
    publish_and_wait(&store, "durable", 2).unwrap();
    let error = restore(&backup, &path).unwrap_err().0;
    assert!(error.contains("uses it"), "{error}");
    assert_eq!(offsets(&reopen(&store), "durable"), [1, 2]);
    store.close(PATIENCE);
    restore(&backup, &path).unwrap();
    let saved = store.open().unwrap();
    assert!(are_new(&saved));
    assert_eq!(offsets(&saved, "durable"), [1]);
    store.close(PATIENCE);
    // to a place where there is no database
    let other = tempfile::tempdir().unwrap();
    restore(&backup, &other.path().join("tantor.db")).unwrap();
    let store = sqlite(other.path());
    assert!(are_new(&store.open().unwrap()));
    store.close(PATIENCE);
}

#[test]
fn what_is_no_backup_is_not_restored() {
    let folder = tempfile::tempdir().unwrap();
    let (store, path) = begun(folder.path());
    store.close(PATIENCE);
    let refused = |backup: &Path, problem: &str| {
        let error = restore(backup, &path).unwrap_err().0;
        assert!(error.contains(problem), "{error}");
    };
    let other = folder.path().join("other");
    refused(&other, "unable to open");
    fs::write(&other, "no database".repeat(1000)).unwrap();
    refused(&other, "not a database");
    fs::remove_file(&other).unwrap();
    rusqlite::Connection::open(&other)
        .unwrap()
        .execute_batch("CREATE TABLE users (id)")
        .unwrap();
    refused(&other, "not a database of Tantor");
    refused(&path, "is the database itself");
    assert!(!are_new(&store.open().unwrap()), "nothing was changed");
    store.close(PATIENCE);
}
