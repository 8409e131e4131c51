//! Histories without a broker.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

/// No publication is older.
const OLDEST: SteadyTime = SteadyTime::START;

fn time(micros: u64) -> SteadyTime {
    SteadyTime::START + Duration::from_micros(micros)
}

fn kept(offset: u64, at: u64, size: usize) -> Kept {
    Kept {
        offset,
        at: time(at),
        is_durable: false,
        message: Message::InMemory(EncodedFrame::text(&vec![b'x'; size])),
    }
}

fn offsets<'a>(kept: impl IntoIterator<Item = &'a Kept>) -> Vec<u64> {
    kept.into_iter().map(|kept| kept.offset).collect()
}

fn filled(from: u64, to: u64) -> History {
    let mut history = History::new(7, from - 1);
    for offset in from..=to {
        history.push(kept(offset, offset, 10));
    }
    history
}

#[test]
fn all_that_was_missed_or_nothing() {
    let mut history = filled(1, 10);
    history.trim(5, OLDEST);
    let since =
        |epoch, offset, through, bytes| history.since(epoch, offset, through, bytes).map(offsets);
    assert_eq!(since(Some(7), 7, 10, 1000), Ok(vec![8, 9, 10]));
    assert_eq!(since(Some(7), 5, 10, 1000), Ok(vec![6, 7, 8, 9, 10]));
    assert_eq!(since(Some(7), 7, 8, 1000), Ok(vec![8]));
    assert_eq!(since(Some(7), 10, 10, 0), Ok(vec![]));
    assert_eq!(since(Some(7), 4, 10, 1000), Err(Unrecovered::Expired));
    assert_eq!(since(Some(7), 11, 10, 1000), Err(Unrecovered::OffsetAhead));
    assert_eq!(since(Some(8), 10, 10, 1000), Err(Unrecovered::Epoch));
    assert_eq!(since(Some(7), 7, 10, 25), Err(Unrecovered::TooLarge));
}

#[test]
fn pages_are_oldest_first_from_either_end() {
    let history = filled(3, 12);
    let page = |limit, after, before| {
        offsets(
            history
                .page(
                    Page {
                        limit,
                        after,
                        before,
                    },
                    10_000,
                )
                .0,
        )
    };
    assert_eq!(page(3, None, None), [10, 11, 12]);
    assert_eq!(page(3, Some(4), None), [5, 6, 7]);
    assert_eq!(page(3, None, Some(6)), [3, 4, 5]);
    assert_eq!(page(100, Some(4), Some(7)), [5, 6]);
    assert_eq!(page(3, Some(12), None), [0_u64; 0]);
    assert_eq!(page(3, Some(9), Some(5)), [0_u64; 0]);
    assert_eq!(page(3, None, Some(0)), [0_u64; 0]);
    let (cut, is_cut) = history.page(
        Page {
            limit: 10,
            after: Some(0),
            before: None,
        },
        25,
    );
    assert_eq!((offsets(cut), is_cut), (vec![3, 4], true));
    let (one, is_cut) = history.page(
        Page {
            limit: 10,
            after: None,
            before: None,
        },
        1,
    );
    assert_eq!((offsets(one), is_cut), (vec![12], true));
}

#[test]
fn what_is_not_kept_cannot_be_recovered() {
    let mut history = History::new(7, 0);
    history.pass(1);
    assert!(matches!(
        history.since(Some(7), 0, 1, 100).map(offsets),
        Err(Unrecovered::Expired)
    ));
    assert_eq!(history.since(Some(7), 1, 1, 100).map(offsets), Ok(vec![]));
}

#[test]
fn nothing_is_recovered_across_a_hole_but_pages_have_what_is_kept() {
    let saved = [1, 2, 4, 5].map(|offset| kept(offset, offset, 10));
    let mut history = History::restored(7, 5, 3, saved);
    let since = |history: &History, offset| history.since(Some(7), offset, 5, 1000).map(offsets);
    assert_eq!(since(&history, 2), Err(Unrecovered::Expired));
    assert_eq!(since(&history, 3), Ok(vec![4, 5]));
    let page = Page {
        limit: 10,
        after: None,
        before: None,
    };
    assert_eq!(offsets(history.page(page, 1000).0), [1, 2, 4, 5]);
    history.trim(3, OLDEST);
    assert_eq!(since(&history, 2), Err(Unrecovered::Expired));
    history.trim(1, OLDEST);
    assert_eq!(since(&history, 3), Err(Unrecovered::Expired));
    assert_eq!(since(&history, 4), Ok(vec![5]));
}

#[test]
fn an_eviction_leaves_durable_publications_and_their_offsets() {
    let mut history = History::new(7, 0);
    for offset in 1..=6 {
        history.push(Kept {
            is_durable: offset == 2 || offset == 5,
            ..kept(offset, offset, 10)
        });
    }
    let all = Page {
        limit: 10,
        after: None,
        before: None,
    };
    assert_eq!(history.evict(1), 1);
    assert_eq!((history.gone(), history.emptied_through()), (1, 1));
    assert_eq!(history.evict(usize::MAX), 3);
    assert_eq!(offsets(history.page(all, 1000).0), [2, 5]);
    assert_eq!((history.gone(), history.emptied_through()), (6, 1));
    assert_eq!(history.bytes().evictable, 0);
    assert_eq!(history.evict(usize::MAX), 0);
    assert_eq!(
        history.since(Some(7), 4, 6, 1000).map(offsets),
        Err(Unrecovered::Expired)
    );
    history.trim(1, OLDEST);
    assert_eq!(history.emptied_through(), 4);
    assert_eq!(history.displaced(1, 0), history.bytes().durable);
    assert_eq!((history.displaced(2, 0), history.displaced(1, 1)), (0, 0));
    history.clear();
    assert_eq!((history.len(), history.bytes()), (0, Bytes::default()));
}

#[test]
fn only_the_messages_of_the_window_stay_in_memory() {
    let window = Window {
        messages: 3,
        bytes: 30,
    };
    let mut history = filled(1, 6);
    let bytes = history.bytes();
    history.leave_to_log(window);
    // two frames of 12 bytes fit into 30 bytes
    assert_eq!((history.in_log(), history.in_memory_bytes), (4, 24));
    assert_eq!((history.len(), history.bytes()), (6, bytes));
    assert_eq!(
        history.since(Some(7), 2, 6, 48).map(offsets),
        Ok(vec![3, 4, 5, 6])
    );
    assert!(history.since(Some(7), 2, 6, 47).is_err());
    history.push(kept(7, 7, 100));
    history.leave_to_log(window);
    assert_eq!((history.in_log(), history.in_memory_bytes), (6, 102));
    history.trim(5, OLDEST);
    assert_eq!((history.in_log(), history.len()), (4, 5));
    assert_eq!(history.evict(1), 1);
    assert_eq!((history.in_log(), history.len()), (3, 4));
    history.clear();
    assert_eq!((history.in_log(), history.in_memory_bytes), (0, 0));
    assert_eq!(history.bytes(), Bytes::default());
}

proptest! {
    #[test]
    fn agrees_with_a_plain_list(steps in prop::collection::vec((0_u8..5, 0_u64..20), 1..60)) {
        let mut history = History::new(1, 0);
        let mut model: Vec<(u64, u64)> = Vec::new();
        let (mut top, mut gone) = (0_u64, 0_u64);
        for (step, (action, number)) in steps.into_iter().enumerate() {
            let at = step as u64;
            match action {
                // offsets may skip: a publication that could not be saved was never handed over
                0..=2 => {
                    top += 1 + number % 2;
                    history.push(kept(top, at, 10));
                    model.push((top, at));
                }
                3 => {
                    let oldest = at.saturating_sub(number);
                    history.trim(8, time(oldest));
                    while model.len() > 8 || model.first().is_some_and(|first| first.1 < oldest) {
                        gone = model.remove(0).0;
                    }
                }
                _ => {
                    history.evict(number as usize * 10);
                    let target: usize = (model.len() * (12 + KEPT_OVERHEAD)).saturating_sub(number as usize * 10);
                    while model.len() * (12 + KEPT_OVERHEAD) > target {
                        gone = model.remove(0).0;
                    }
                }
            }
            prop_assert_eq!((history.top, history.len(), history.gone()), (top, model.len(), gone));
            prop_assert_eq!(history.bytes().evictable, model.len() * (12 + KEPT_OVERHEAD));
            let wanted: Vec<u64> = model.iter().map(|kept| kept.0).filter(|offset| *offset > number).collect();
            let seen = history.since(Some(1), number, u64::MAX, usize::MAX).map(offsets);
            if number > top {
                prop_assert_eq!(seen, Err(Unrecovered::OffsetAhead));
            } else if number < gone {
                prop_assert_eq!(seen, Err(Unrecovered::Expired));
            } else {
                prop_assert_eq!(seen, Ok(wanted));
            }
        }
    }
}
