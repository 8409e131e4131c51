//! The thread that owns the file: it takes what waits, commits it in groups, and tells who wants to hear.

use super::Gauges;
use super::changes::Failure;
use super::file::DatabaseFile;
use super::queue::{Entry, Queue, Taken};
use crate::store::StoreError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub(super) struct Writer {
    file: DatabaseFile,
    queue: Arc<Queue>,
    gauges: Arc<Gauges>,
    /// Taken from the queue and not yet saved.
    backlog: VecDeque<Entry>,
    measured: Instant,
}

/// Changes of one transaction: more would make those that are waited for wait too long.
const TOGETHER: usize = 4096;

/// How long the thread waits for something to do before it looks at what is left to tidy.
const IDLE: Duration = Duration::from_secs(1);

/// The same, while something is left.
const TIDY_INTERVAL: Duration = Duration::from_millis(20);

/// How often it is tried again to write to a file that cannot be written.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// How often the size of the file is looked at.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// Tries to save what is left, at the end.
const LAST_TRIES: u32 = 3;

impl Writer {
    pub fn new(file: DatabaseFile, queue: Arc<Queue>, gauges: Arc<Gauges>) -> Self {
        Self {
            file,
            queue,
            gauges,
            backlog: VecDeque::new(),
            measured: Instant::now(),
        }
    }

    /// Until the queue is closed, and empty.
    pub fn run(mut self) {
        let mut tries_left = LAST_TRIES;
        loop {
            let is_behind = !self.backlog.is_empty();
            let timeout = if is_behind {
                RETRY_INTERVAL
            } else if self.file.has_leftovers() {
                TIDY_INTERVAL
            } else {
                IDLE
            };
            let taken = self.queue.take(&mut self.backlog, timeout, !is_behind);
            if !self.backlog.is_empty() {
                self.save_backlog();
            } else if taken == Taken::Nothing {
                self.tidy();
            }
            if taken == Taken::Closed {
                if self.backlog.is_empty() {
                    break;
                }
                tries_left -= 1;
                if tries_left == 0 {
                    self.give_up();
                    break;
                }
                std::thread::sleep(RETRY_INTERVAL);
            }
            self.measure();
        }
        let is_complete = self.gauges.lost.load(Ordering::Relaxed) == 0;
        if let Err(error) = self.file.end_use(is_complete) {
            self.degrade(&error.to_string());
        }
    }

    fn save_backlog(&mut self) {
        while !self.backlog.is_empty() {
            let count = self.backlog.len().min(TOGETHER);
            let entries = || self.backlog.iter().take(count);
            // what somebody waits for is to outlive a power failure
            let is_durable = entries().any(|entry| entry.committed.is_some());
            let changes: Vec<_> = entries().map(|entry| &entry.change).collect();
            match self.file.save(changes.into_iter(), is_durable) {
                Ok(()) => self.saved(count),
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
        if self.gauges.is_degraded.swap(false, Ordering::Relaxed) {
            *self.gauges.error.lock() = None;
        }
    }

    fn saved(&mut self, count: usize) {
        self.gauges.commits.fetch_add(1, Ordering::Relaxed);
        self.gauges.saved.fetch_add(count as u64, Ordering::Relaxed);
        let bytes = self
            .backlog
            .iter()
            .take(count)
            .map(|entry| entry.bytes)
            .sum();
        self.queue.release(count, bytes);
        for entry in self.backlog.drain(..count) {
            if let Some(committed) = entry.committed {
                committed(Ok(()));
            }
        }
    }

    /// The file cannot be written: what is waited for has failed, the rest is tried again.
    fn fail(&mut self, problem: &str) {
        self.degrade(problem);
        let error = self.error(problem);
        let mut kept = VecDeque::with_capacity(self.backlog.len());
        for mut entry in self.backlog.drain(..) {
            self.file.note_freed(&entry.change);
            match entry.committed.take() {
                Some(committed) => {
                    self.gauges.lost.fetch_add(1, Ordering::Relaxed);
                    self.queue.release(1, entry.bytes);
                    committed(Err(error.clone()));
                }
                None => kept.push_back(entry),
            }
        }
        self.backlog = kept;
        self.tidy();
    }

    /// One change cannot be saved though the file can be written.
    fn drop_culprit(&mut self, place: usize, problem: &str) {
        if let Some(entry) = self.backlog.remove(place) {
            self.gauges.lost.fetch_add(1, Ordering::Relaxed);
            self.queue.release(1, entry.bytes);
            let error = self.error(problem);
            *self.gauges.error.lock() = Some(error.0.clone());
            if let Some(committed) = entry.committed {
                committed(Err(error));
            }
        }
    }

    fn give_up(&mut self) {
        let lost = self.backlog.len();
        self.gauges.lost.fetch_add(lost as u64, Ordering::Relaxed);
        let bytes = self.backlog.drain(..).map(|entry| entry.bytes).sum();
        self.queue.release(lost, bytes);
    }

    fn tidy(&mut self) {
        if self.file.has_leftovers() {
            // what fails is tried again, and shows when something is to be saved
            let _ = self.file.save([].into_iter(), false);
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
