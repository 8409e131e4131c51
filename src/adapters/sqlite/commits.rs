//! A small file beside the database that counts commits. It shows that an older copy was put in the place of the database:
//! the copy has fewer commits than the file has counted, or another lineage.
//!
//! The count is written after each commit and outlives the process, but is not synced. A power failure may remove commits
//! from the database that this file has counted. After a power failure only the commits that were synced count.
//!
//! Behind the count is a map of the channels with publications. A kill has lost nothing on other channels.

use super::lock::cannot_open;
use crate::base::random::random_u64;
use crate::ports::durability::StoreError;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

pub(super) struct CommitsFile {
    file: File,
}

/// The record in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The boot of the machine in which the record was written.
    pub boot: [u8; 16],
    /// A random number that the database has too. An older copy may have another number.
    pub lineage: u64,
    pub commits: u64,
    /// The last commit that outlives a power failure.
    pub synced: u64,
}

const MAGIC: &[u8; 8] = b"TANTORC1";
const RECORD_SIZE: usize = 56;

/// Offset and size of the map: one byte for each value of a channel's hash.
const MAP_START: u64 = 4096;
const MAP_SIZE: usize = 1 << 16;

impl CommitsFile {
    /// Opens the file, and creates it if there is none.
    ///
    /// Errors: the file cannot be opened.
    pub fn open(database: &Path) -> Result<Self, StoreError> {
        let path = super::beside::beside(database, "-commits");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| {
                StoreError(cannot_open(
                    database,
                    &format!("{}: {error}", path.display()),
                ))
            })?;
        Ok(Self { file })
    }

    /// Reads the record; `None` if there is none, or if it is not complete.
    pub fn record(&self) -> Option<Record> {
        let mut bytes = [0; RECORD_SIZE];
        read_at(&self.file, &mut bytes, 0).ok()?;
        Record::from_bytes(&bytes)
    }

    /// Writes a record after a commit, by one system call.
    ///
    /// Errors: the file cannot be written.
    pub fn write(&self, record: &Record) -> std::io::Result<()> {
        write_at(&self.file, &record.to_bytes(), 0)
    }

    /// Writes a record and waits until the record is on the disk.
    ///
    /// Errors: the file cannot be written.
    pub fn write_synced(&self, record: &Record) -> std::io::Result<()> {
        self.write(record)?;
        self.file.sync_all()
    }

    /// Reads the map of the channels with publications since `begin`.
    pub fn published(&self) -> PublishedMap {
        let mut map = vec![0; MAP_SIZE];
        let is_whole = read_at(&self.file, &mut map, MAP_START).is_ok();
        PublishedMap(is_whole.then_some(map))
    }

    /// Writes a record, empties the map, and waits until both are on the disk.
    ///
    /// Errors: the file cannot be written.
    pub fn begin(&self, record: &Record) -> std::io::Result<()> {
        self.write(record)?;
        write_at(&self.file, &vec![0; MAP_SIZE], MAP_START)?;
        self.file.sync_all()
    }

    /// Marks a channel before a publication. The mark also tells whether the file may still call the stream durable.
    pub fn note_published(&self, channel: &str, was_durable: bool) {
        let at = MAP_START + slot(channel) as u64;
        let mut marks = [0];
        // if the system fails, the map is cut short; after a kill, a short map makes all streams get new epochs
        let noted = read_at(&self.file, &mut marks, at).and_then(|()| {
            marks[0] |= PUBLISHED | if was_durable { WAS_DURABLE } else { 0 };
            write_at(&self.file, &marks, at)
        });
        if noted.is_err() {
            let _ = self.file.set_len(MAP_START);
        }
    }

    /// Writes a lineage that no database has, so that the next opening renews all epochs.
    ///
    /// Errors: the file cannot be written.
    pub fn disown(&self) -> std::io::Result<()> {
        self.begin(&Record {
            boot: [0; 16],
            lineage: random_u64(),
            commits: 0,
            synced: 0,
        })
    }
}

/// A mark of the map: a stream that is not durable has publications.
const PUBLISHED: u8 = 1;

/// A mark of the map: the row of this stream may still say that the stream is durable.
const WAS_DURABLE: u8 = 2;

/// The channels with publications, by their hash; `None` inside if they are not known.
pub(super) struct PublishedMap(Option<Vec<u8>>);

impl PublishedMap {
    pub fn all() -> Self {
        Self(None)
    }

    /// True if publications on the stream of this channel, whose row says whether the stream is durable, may have been
    /// lost.
    pub fn may_have_lost(&self, channel: &str, is_durable: bool) -> bool {
        let mark = if is_durable { WAS_DURABLE } else { PUBLISHED };
        let map = self.0.as_ref();
        map.map_or(!is_durable, |map| map[slot(channel)] & mark != 0)
    }
}

impl Record {
    fn to_bytes(self) -> [u8; RECORD_SIZE] {
        let mut bytes = [0; RECORD_SIZE];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(&self.boot);
        bytes[24..32].copy_from_slice(&self.lineage.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.commits.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.synced.to_le_bytes());
        let checksum = checksum(&bytes[..48]);
        bytes[48..].copy_from_slice(&checksum);
        bytes
    }

    fn from_bytes(bytes: &[u8; RECORD_SIZE]) -> Option<Self> {
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let mut boot = [0; 16];
        boot.copy_from_slice(&bytes[8..24]);
        let is_whole = bytes.starts_with(MAGIC) && bytes[48..] == checksum(&bytes[..48]);
        is_whole.then(|| Self {
            boot,
            lineage: number(24),
            commits: number(32),
            synced: number(40),
        })
    }

    /// True if a database with this lineage and so many commits is not older than the record.
    pub fn fits(&self, lineage: u64, commits: u64, boot: [u8; 16]) -> bool {
        let expected = if self.boot == boot {
            self.commits
        } else {
            self.synced
        };
        self.lineage == lineage && commits >= expected
    }
}

/// Identifies the boot of the machine. The value is the same for all boots where the system does not tell.
pub(super) fn boot() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digest = Sha256::digest(text.trim());
    let mut boot = [0; 16];
    boot.copy_from_slice(&digest[..16]);
    boot
}

fn slot(channel: &str) -> usize {
    let digest = Sha256::digest(channel);
    usize::from(u16::from_le_bytes([digest[0], digest[1]]))
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let digest = Sha256::digest(bytes);
    let mut checksum = [0; 8];
    checksum.copy_from_slice(&digest[..8]);
    checksum
}

/// To be called while the database is opened, by one thread.
fn read_at(mut file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::windows::fs::FileExt::seek_write(file, bytes, offset).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Record = Record {
        boot: [1; 16],
        lineage: 2,
        commits: 30,
        synced: 20,
    };

    #[test]
    fn a_record_that_is_not_whole_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = CommitsFile::open(&folder.path().join("tantor.db")).unwrap();
        assert_eq!(file.record(), None);
        file.begin(&RECORD).unwrap();
        assert_eq!(file.record(), Some(RECORD));
        for byte in 0..RECORD_SIZE as u64 {
            write_at(&file.file, &[0xA5], byte).unwrap();
            assert_eq!(file.record(), None, "byte {byte}");
            file.write(&RECORD).unwrap();
        }
    }

    #[test]
    fn after_a_power_failure_only_what_was_synced_counts() {
        let (same, other) = ([1; 16], [9; 16]);
        assert!(RECORD.fits(2, 30, same) && RECORD.fits(2, 31, same));
        assert!(!RECORD.fits(2, 29, same));
        assert!(RECORD.fits(2, 20, other));
        assert!(!RECORD.fits(2, 19, other));
        assert!(!RECORD.fits(3, 99, same) && !RECORD.fits(3, 99, other));
    }

    #[test]
    fn the_map_has_what_was_published_since_it_was_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let file = CommitsFile::open(&folder.path().join("tantor.db")).unwrap();
        assert!(
            file.published().may_have_lost("a", false),
            "there is no map yet"
        );
        file.begin(&RECORD).unwrap();
        file.note_published("a", false);
        file.note_published("c", true);
        file.note_published("c", false);
        let map = file.published();
        assert!(map.may_have_lost("a", false) && !map.may_have_lost("b", false));
        assert!(!map.may_have_lost("a", true) && map.may_have_lost("c", true));
        file.begin(&RECORD).unwrap();
        assert!(!file.published().may_have_lost("a", false));
        let all = PublishedMap::all();
        assert!(all.may_have_lost("b", false) && !all.may_have_lost("b", true));
    }
}
