//! The thread that owns the file: it takes what waits, commits it in groups, and tells who wants to hear.

use super::Gauges;
use super::changes::Failure;
use super::file::DatabaseFile;
use super::lock::FileLock;
use super::queue::{Batch, Entry, Gather, Queue, Taken};
use crate::fork::Whole;
use crate::store::StoreError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub(super) struct Writer {
    file: DatabaseFile,
    // let go of after the file
    _lock: FileLock,
    queue: Arc<Queue>,
    gauges: Arc<Gauges>,
    /// Taken from the queue and not yet saved.
    backlog: VecDeque<Batch>,
    measured: Instant,
    /// When old idempotency keys were last let go of; `None` while there may be more.
    swept: Option<Instant>,
    /// When something was last to be saved.
    busy: Instant,
    /// Whom the last commit has told, and how long it took.
    told: (usize, Duration),
}

/// Changes of one transaction: more would make those that are waited for wait too long.
const TOGETHER: usize = 4096;

/// How long the thread waits for something to do before it looks at what is left to tidy.
const IDLE: Duration = Duration::from_secs(1);

/// The same, while something is left.
const TIDY_INTERVAL: Duration = Duration::from_millis(20);

/// The longest that a commit waits for those whom the one before has told.
const MOST_PATIENCE: Duration = Duration::from_millis(2);

/// How often it is tried again to write to a file that cannot be written.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// How long the room of batches is kept for the next ones.
const KEPT_ROOM: Duration = Duration::from_secs(30);

/// How often the size of the file is looked at.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// How often old idempotency keys are let go of, and how many together.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const SWEPT_TOGETHER: usize = 4096;

/// Tries to save what is left, at the end.
const LAST_TRIES: u32 = 3;

impl Writer {
    pub fn new(file: DatabaseFile, lock: FileLock, queue: Arc<Queue>, gauges: Arc<Gauges>) -> Self {
        Self {
            file,
            _lock: lock,
            queue,
            gauges,
            backlog: VecDeque::new(),
            measured: Instant::now(),
            swept: Some(Instant::now()),
            busy: Instant::now(),
            told: (0, Duration::ZERO),
        }
    }

    /// Until the queue is closed, and empty.
    pub fn run(mut self) {
        let mut tries_left = LAST_TRIES;
        loop {
            let is_behind = !self.backlog.is_empty();
            let timeout = if is_behind {
                RETRY_INTERVAL
            } else if self.file.has_leftovers() || self.swept.is_none() {
                TIDY_INTERVAL
            } else {
                IDLE
            };
            let gather = match self.told {
                _ if is_behind => Gather::No,
                (0, _) => Gather::Usually,
                (count, took) => Gather::For(count, (took / 2).min(MOST_PATIENCE)),
            };
            match self.queue.take(timeout, gather) {
                Taken::Batch(batch) => {
                    self.backlog.push_back(batch);
                    self.save_backlog();
                    self.busy = Instant::now();
                }
                Taken::Nothing if is_behind => self.save_backlog(),
                Taken::Nothing if self.gauges.is_degraded.load(Ordering::Relaxed) => self.probe(),
                Taken::Nothing => {
                    if self.busy.elapsed() >= KEPT_ROOM {
                        self.queue.let_go();
                    }
                    self.tidy();
                }
                Taken::Closed if !is_behind => break,
                Taken::Closed if tries_left == 0 => {
                    self.give_up();
                    break;
                }
                Taken::Closed => {
                    tries_left -= 1;
                    std::thread::sleep(RETRY_INTERVAL);
                    self.save_backlog();
                }
            }
            self.measure();
            self.forget_old_keys();
        }
        let _whole = Whole::new();
        let is_complete = self.gauges.lost.load(Ordering::Relaxed) == 0;
        if let Err(error) = self.file.end_use(is_complete) {
            self.degrade(&error.to_string());
        }
        drop(self);
    }

    fn save_backlog(&mut self) {
        while let Some(batch) = self.backlog.front() {
            let count = batch.entries.len().min(TOGETHER);
            let mut entries = batch.entries.iter().take(count);
            // what somebody waits for is to outlive a power failure
            let is_durable = entries.any(|entry| entry.committed.is_some());
            let begun = Instant::now();
            match self.file.save(batch, count, is_durable) {
                Ok(()) => {
                    let told = self.saved(count);
                    self.told = (told, begun.elapsed());
                }
                Err(Failure {
                    error,
                    culprit: Some(place),
                }) => self.drop_culprit(place, &error.to_string()),
                Err(Failure {
                    error,
                    culprit: None,
                }) => {
                    self.fail(&error.to_string());
                    return;
                }
            }
        }
        self.recover();
    }

    /// Nothing waits to be tried again: a look whether the file can be written now.
    fn probe(&mut self) {
        match self.file.probe() {
            Ok(()) => self.recover(),
            Err(error) => self.degrade(&error.to_string()),
        }
    }

    fn recover(&self) {
        if self.gauges.is_degraded.swap(false, Ordering::Relaxed) {
            *self.gauges.error.lock() = None;
        }
    }

    /// The first changes of the first batch are in the file; returns how many were waited for.
    fn saved(&mut self, count: usize) -> usize {
        self.gauges.commits.fetch_add(1, Ordering::Relaxed);
        self.gauges.saved.fetch_add(count as u64, Ordering::Relaxed);
        let Some(batch) = self.backlog.front_mut() else {
            return 0;
        };
        let (mut told, mut weight) = (0, 0);
        for entry in batch.entries.drain(..count) {
            weight += entry.weight;
            if let Some(committed) = entry.committed {
                committed(Ok(()));
                told += 1;
            }
        }
        self.queue.release(count, weight);
        if batch.entries.is_empty()
            && let Some(batch) = self.backlog.pop_front()
        {
            self.queue.recycle(batch);
        }
        told
    }

    /// The file cannot be written: what is waited for has failed, the rest is tried again.
    fn fail(&mut self, problem: &str) {
        self.degrade(problem);
        let error = self.error(problem);
        let mut failed = Vec::new();
        let (mut count, mut weight) = (0, 0);
        for batch in &mut self.backlog {
            batch.entries.retain_mut(|entry| {
                self.file.note_freed(&entry.item);
                let Some(committed) = entry.committed.take() else {
                    return true;
                };
                failed.push(committed);
                count += 1;
                weight += entry.weight;
                false
            });
        }
        self.backlog.retain(|batch| !batch.entries.is_empty());
        self.gauges.lost.fetch_add(count as u64, Ordering::Relaxed);
        self.queue.release(count, weight);
        for committed in failed {
            committed(Err(error.clone()));
        }
        self.tidy();
    }

    /// One change of the first batch cannot be saved though the file can be written.
    fn drop_culprit(&mut self, place: usize, problem: &str) {
        let error = self.error(problem);
        let Some(batch) = self.backlog.front_mut() else {
            return;
        };
        let entry = batch.entries.remove(place);
        if batch.entries.is_empty() {
            self.backlog.pop_front();
        }
        self.gauges.lost.fetch_add(1, Ordering::Relaxed);
        lose(&entry);
        self.queue.release(1, entry.weight);
        *self.gauges.error.lock() = Some(error.0.clone());
        if let Some(committed) = entry.committed {
            committed(Err(error));
        }
    }

    fn give_up(&mut self) {
        let entries = self.backlog.drain(..).flat_map(|batch| batch.entries);
        let (count, weight) = entries.fold((0, 0), |(count, weight), entry| {
            lose(&entry);
            (count + 1, weight + entry.weight)
        });
        self.gauges.lost.fetch_add(count as u64, Ordering::Relaxed);
        self.queue.release(count, weight);
    }

    fn tidy(&mut self) {
        if self.file.has_leftovers() {
            // what fails is tried again, and shows when something is to be saved
            let _ = self.file.save(&Batch::default(), 0, false);
        } else if self.backlog.is_empty() {
            let _ = self.file.shrink();
        }
    }

    fn measure(&mut self) {
        if self.measured.elapsed() >= MEASURE_INTERVAL {
            self.measured = Instant::now();
            let size = self.file.size();
            self.gauges.file_bytes.store(size, Ordering::Relaxed);
        }
    }

    fn forget_old_keys(&mut self) {
        if self
            .swept
            .is_none_or(|swept| swept.elapsed() >= SWEEP_INTERVAL)
        {
            // what fails is tried again, and shows when something is to be saved
            let has_more = self.file.forget_old_keys(SWEPT_TOGETHER).unwrap_or(false);
            self.swept = (!has_more).then(Instant::now);
        }
    }

    fn degrade(&self, problem: &str) {
        *self.gauges.error.lock() = Some(self.error(problem).0);
        self.gauges.is_degraded.store(true, Ordering::Relaxed);
    }

    fn error(&self, problem: &str) -> StoreError {
        StoreError(format!(
            "the database {} cannot be written: {problem}",
            self.file.path().display()
        ))
    }
}

/// Tells whoever may ask later under its key that it will not be saved.
fn lose(entry: &Entry) {
    if let Some(used) = entry.item.used_key() {
        used.fate.lose();
    }
}
