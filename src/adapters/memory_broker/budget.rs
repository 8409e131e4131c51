//! The budget of the histories of all channels: the bytes in use, and their bounds.

use super::keys::KeyLimits;
use crate::core::history::{Bytes, History};
use crate::ports::broker::CHANNEL_SIZE;
use crate::ports::durability::StoreError;
use crate::settings::config::Config;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The settings that bound the histories of all channels together, and their idempotency keys.
#[derive(Clone, Copy, Debug)]
pub struct BrokerLimits {
    /// The bound on the bytes of publications that are not durable. Beyond the bound, publications are evicted.
    pub history_bytes: usize,
    /// The bound on the bytes of durable publications. Beyond the bound, new publications are refused.
    pub durable_bytes: usize,
    pub keys: KeyLimits,
}

impl BrokerLimits {
    pub fn of_settings(config: &Config) -> Self {
        Self {
            history_bytes: config.history_bytes,
            durable_bytes: config.durable_bytes,
            keys: KeyLimits {
                ttl: config.idempotency_ttl,
                total: config.max_idempotency_keys,
                of_one_client: config.max_client_keys,
            },
        }
    }
}

/// The memory of the histories of all channels.
pub(super) struct Budget {
    pub limits: BrokerLimits,
    evictable: AtomicUsize,
    /// Includes the bytes that are reserved for publications that are not in a history yet.
    durable: AtomicUsize,
}

/// The part of `history_bytes` that stays in use after an eviction, so that not every publication has to evict.
const KEPT_PERCENT: usize = 90;

impl Budget {
    pub fn new(limits: BrokerLimits) -> Self {
        Self {
            limits,
            evictable: AtomicUsize::new(0),
            durable: AtomicUsize::new(0),
        }
    }

    pub fn used(&self) -> Bytes {
        Bytes {
            evictable: self.evictable.load(Ordering::Relaxed),
            durable: self.durable.load(Ordering::Relaxed),
        }
    }

    /// Replaces a channel's previous charge by its present one.
    pub fn recount(&self, before: Bytes, now: Bytes) {
        for (total, before, now) in [
            (&self.evictable, before.evictable, now.evictable),
            (&self.durable, before.durable, now.durable),
        ] {
            if now != before {
                // wraps to a subtraction
                total.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
            }
        }
    }

    /// Counts a durable publication of `bytes` before it is in its history, where it will remove `displaced` bytes of its
    /// own channel.
    ///
    /// Errors: `durable_bytes` has no room for the publication.
    pub fn reserve(
        self: &Arc<Self>,
        bytes: usize,
        displaced: usize,
    ) -> Result<Reserved, StoreError> {
        let limit = self.limits.durable_bytes;
        let added = bytes.saturating_sub(displaced);
        let reserve = |used: usize| (used + added <= limit).then_some(used + added);
        self.durable
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve)
            .map(|_| Reserved {
                budget: Arc::clone(self),
                bytes: added,
            })
            .map_err(|used| {
                StoreError(format!(
                    "durable_bytes is {limit}, of which durable history uses {used}, and this publication takes {bytes}; \
                     raise durable_bytes, or lower history_size or message_ttl of durable channels"
                ))
            })
    }

    /// The bytes to evict; 0 while `history_bytes` is not exceeded.
    pub fn excess(&self) -> usize {
        let (used, limit) = (self.used().evictable, self.limits.history_bytes);
        if used > limit {
            used - limit / 100 * KEPT_PERCENT
        } else {
            0
        }
    }
}

/// Bytes that are counted as durable until this is dropped.
pub(super) struct Reserved {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.budget.durable.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The bytes that a channel is charged; none while the channel keeps nothing.
pub(super) fn charge(history: &History) -> Bytes {
    let mut charged = history.bytes();
    if charged.durable > 0 {
        charged.durable += CHANNEL_SIZE;
    } else if charged.evictable > 0 {
        charged.evictable += CHANNEL_SIZE;
    }
    charged
}

/// The size to which the largest of `sizes` are to be cut, so that `excess` is freed. `sizes` are sorted, largest first.
pub(super) fn level(sizes: impl IntoIterator<Item = usize>, excess: usize) -> usize {
    let mut sizes = sizes.into_iter().peekable();
    let (mut cut, mut freed) = (0, 0);
    while let Some(size) = sizes.next() {
        cut += 1;
        let next = sizes.peek().copied().unwrap_or(0);
        let step = (size - next).saturating_mul(cut);
        if freed + step >= excess {
            return size - (excess - freed).div_ceil(cut);
        }
        freed += step;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_are_cut_to_one_size() {
        assert_eq!(level([100, 10, 10], 50), 50);
        assert_eq!(level([100, 80, 10], 60), 60);
        assert_eq!(level([100, 80, 10], 61), 59);
        assert_eq!(level([10, 10], 100), 0);
        assert_eq!(level([], 1), 0);
    }

    proptest! {
        #[test]
        fn enough_is_freed_and_not_more_than_one_byte_of_each_too_much(
            mut sizes in prop::collection::vec(0_usize..1000, 1..20), excess in 1_usize..5000,
        ) {
            sizes.sort_unstable_by_key(|size| std::cmp::Reverse(*size));
            let level = level(sizes.iter().copied(), excess);
            let freed = |level: usize| -> usize { sizes.iter().map(|size| size.saturating_sub(level)).sum() };
            let total: usize = sizes.iter().sum();
            prop_assert!(freed(level) >= excess.min(total));
            prop_assert!(freed(level + 1) < excess);
        }
    }
}
