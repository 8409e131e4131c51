//! The thread that owns the file. It takes the changes that wait, commits them in groups, and completes the calls that wait
//! for them.

use super::batch::{Batch, Entry};
use super::changes::Failure;
use super::deletions;
use super::file::DatabaseFile;
use super::gauges::Gauges;
use super::lock::FileLock;
use super::queue::{Gather, Queue, Taken};
use super::reader::Reader;
use crate::base::fork::ForkGuard;
use crate::ports::durability::StoreError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub(super) struct Writer {
    /// Stopped before the file is closed, also where the writer is dropped without having run: fields drop in this order.
    reader: Option<Reader>,
    file: DatabaseFile,
    // dropped after the file is closed
    _lock: FileLock,
    queue: Arc<Queue>,
    gauges: Arc<Gauges>,
    /// The changes that were taken from the queue and are not saved yet.
    backlog: VecDeque<Batch>,
    /// The most changes of the next transaction: fewer while the file has little room.
    together: usize,
    measured: Instant,
    /// When old idempotency keys were last deleted; `None` while there may be more.
    swept: Option<Instant>,
    /// When the last batch was taken.
    busy: Instant,
    /// The number of completions of the last commit, and how long the commit took.
    told: (usize, Duration),
}

/// The place of a change in the backlog: its batch, and its index there.
#[derive(Clone, Copy, Default)]
struct BacklogPosition {
    batch: usize,
    entry: usize,
}

/// The size of the smallest message that did not fit, and the error.
struct Misfit {
    weight: usize,
    problem: String,
}

/// The most changes of one transaction. More would delay the callers that wait.
const TOGETHER: usize = 4096;

/// If a change of at most so many bytes does not fit alone, the file is full, and no other change is tried.
const SMALL: usize = 16 << 10;

/// How long the thread waits for changes before it does regular work.
const IDLE: Duration = Duration::from_secs(1);

/// The same, while regular work is left.
const TIDY_INTERVAL: Duration = Duration::from_millis(20);

/// The longest time that a commit waits for the callers of the commit before.
const MOST_PATIENCE: Duration = Duration::from_millis(2);

/// The time between two attempts to write to a file that cannot be written.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// How long the capacity of an empty batch is kept.
const KEPT_ROOM: Duration = Duration::from_secs(30);

/// The time between two looks at the size of the file.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// The time between two deletions of old idempotency keys, and the most keys of one deletion.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const SWEPT_TOGETHER: usize = 4096;

/// How often the thread tries to save the remaining changes at its end.
const LAST_TRIES: u32 = 3;

impl Writer {
    pub fn new(
        (file, lock): (DatabaseFile, FileLock),
        reader: Reader,
        queue: Arc<Queue>,
        gauges: Arc<Gauges>,
    ) -> Self {
        Self {
            file,
            reader: Some(reader),
            _lock: lock,
            queue,
            gauges,
            backlog: VecDeque::new(),
            together: TOGETHER,
            measured: Instant::now(),
            swept: Some(Instant::now()),
            busy: Instant::now(),
            told: (0, Duration::ZERO),
        }
    }

    /// Runs until the queue is closed and empty.
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
                Taken::Nothing if self.gauges.is_degraded.load(Ordering::Relaxed) => {
                    self.tidy();
                    self.probe();
                }
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
        drop(self.reader.take());
        // a trim that was reported as saved must hold at the next opening
        while self.file.has_trims() && self.delete_leftovers().is_ok() {}
        let _whole = ForkGuard::new();
        let is_complete = self.gauges.lost.load(Ordering::Relaxed) == 0;
        if let Err(error) = self.file.end_use(is_complete) {
            self.degrade(&error.to_string());
        }
        drop(self);
    }

    /// Saves the backlog, the oldest change first. While the file has no room, deletions go before everything else,
    /// transactions shrink until they fit, and a large message that alone does not fit is passed over until the next
    /// time. Any other change that alone does not fit, deletions among them, ends the attempt as an unwritable file does.
    fn save_backlog(&mut self) {
        let mut at = BacklogPosition::default();
        let mut misfit: Option<Misfit> = None;
        while let Some(batch) = self.backlog.get(at.batch) {
            let Some(first) = batch.entries.get(at.entry) else {
                at = BacklogPosition {
                    batch: at.batch + 1,
                    entry: 0,
                };
                continue;
            };
            if let Some(misfit) = &misfit
                && first.weight >= misfit.weight
            {
                self.pass_over(&mut at, &misfit.problem);
                continue;
            }
            let most = misfit.as_ref().map_or(usize::MAX, |misfit| misfit.weight);
            let together = batch.entries[at.entry..]
                .iter()
                .take(self.together)
                .take_while(|entry| entry.weight < most);
            // a change with a completion has to outlive a power failure
            let (count, is_durable) = together.fold((0, false), |(count, is_durable), entry| {
                (count + 1, is_durable || entry.committed.is_some())
            });
            let begun = Instant::now();
            let which = at.entry..at.entry + count;
            match self.file.save(batch, which, is_durable) {
                Ok(()) => {
                    let told = self.saved(at, count);
                    self.told = (told, begun.elapsed());
                    self.together = (self.together * 2).min(TOGETHER);
                }
                Err(Failure::Change(index, error)) => {
                    self.drop_culprit(at.batch, index, &error.to_string());
                }
                Err(Failure::File(error)) => return self.fail(&error.to_string()),
                Err(Failure::NoRoom(error)) => {
                    let problem = error.to_string();
                    if let Some((count, weight)) = deletions::put_first(&mut self.backlog) {
                        self.gauges.saved.fetch_add(count as u64, Ordering::Relaxed);
                        self.queue.release(count, weight);
                        at = BacklogPosition::default();
                    } else if self.file.has_leftovers() {
                        if self.delete_leftovers().is_err() {
                            return self.fail(&problem);
                        }
                    } else if count > 1 {
                        self.together = count / 2;
                    } else {
                        let entry = &self.backlog[at.batch].entries[at.entry];
                        let weight = entry.weight;
                        if weight <= SMALL || !entry.item.may_be_passed() {
                            return self.fail(&problem);
                        }
                        self.pass_over(&mut at, &problem);
                        misfit = Some(Misfit { weight, problem });
                    }
                }
            }
        }
        match misfit {
            Some(misfit) => self.degrade(&misfit.problem),
            // deletions can be saved where nothing else can
            None if self.gauges.is_degraded.load(Ordering::Relaxed) => self.probe(),
            None => {}
        }
    }

    /// Sets a message aside that alone has no room in the file. Its completion, if it has one, fails.
    fn pass_over(&mut self, at: &mut BacklogPosition, problem: &str) {
        // before any completion
        self.degrade(problem);
        let error = self.error(problem);
        let Some(batch) = self.backlog.get_mut(at.batch) else {
            return;
        };
        if let Some(committed) = batch.entries[at.entry].committed.take() {
            let entry = batch.entries.remove(at.entry);
            self.gauges.lost.fetch_add(1, Ordering::Relaxed);
            lose(&entry);
            self.queue.release(1, entry.weight);
            committed.complete(Err(error));
        } else {
            at.entry += 1;
        }
        self.drop_if_empty(at.batch);
    }

    /// Tests whether the file can be written and has room, where no change waits that would show this.
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

    /// Completes changes that are in the file; returns the number of callers that waited for them.
    fn saved(&mut self, at: BacklogPosition, count: usize) -> usize {
        self.gauges.commits.fetch_add(1, Ordering::Relaxed);
        self.gauges.saved.fetch_add(count as u64, Ordering::Relaxed);
        let Some(batch) = self.backlog.get_mut(at.batch) else {
            return 0;
        };
        let (mut told, mut weight) = (0, 0);
        for entry in batch.entries.drain(at.entry..at.entry + count) {
            weight += entry.weight;
            if let Some(committed) = entry.committed {
                committed.complete(Ok(()));
                told += 1;
            }
        }
        self.queue.release(count, weight);
        self.drop_if_empty(at.batch);
        told
    }

    fn drop_if_empty(&mut self, index: usize) {
        let is_empty = |batch: &Batch| batch.entries.is_empty();
        if self.backlog.get(index).is_some_and(is_empty)
            && let Some(batch) = self.backlog.remove(index)
        {
            self.queue.recycle(batch);
        }
    }

    /// Fails the changes with completions, because the file cannot be written. The other changes are tried again.
    fn fail(&mut self, problem: &str) {
        self.degrade(problem);
        let error = self.error(problem);
        let mut failed = Vec::new();
        let (mut count, mut weight) = (0, 0);
        for batch in &mut self.backlog {
            batch.entries.retain_mut(|entry| {
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
            committed.complete(Err(error.clone()));
        }
        self.tidy();
    }

    /// Removes one change that cannot be saved although the file can be written.
    fn drop_culprit(&mut self, batch: usize, index: usize, problem: &str) {
        let error = self.error(problem);
        let Some(entries) = self.backlog.get_mut(batch).map(|batch| &mut batch.entries) else {
            return;
        };
        let entry = entries.remove(index);
        self.drop_if_empty(batch);
        self.gauges.lost.fetch_add(1, Ordering::Relaxed);
        lose(&entry);
        self.queue.release(1, entry.weight);
        *self.gauges.error.lock() = Some(error.0.clone());
        if let Some(committed) = entry.committed {
            committed.complete(Err(error));
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
            // a failure is tried again, and is reported when a change is to be saved
            let _ = self.delete_leftovers();
        } else if self.backlog.is_empty() {
            let _ = self.file.shrink();
        }
    }

    fn delete_leftovers(&mut self) -> Result<(), Failure> {
        self.file.save(&Batch::default(), 0..0, false)
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
            // a failure is tried again, and is reported when a change is to be saved
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

/// Marks the idempotency key of a change that will not be saved, for later callers with the key.
fn lose(entry: &Entry) {
    if let Some(used) = entry.item.used_key() {
        used.lost_flag.lose();
    }
}
