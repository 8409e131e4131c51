//! The publications that a query selects from a history, and those of them that are read from the log.

use crate::base::completion::{Abandoned, Completion, Later, Progress};
use crate::core::history::{History, Kept, Message, StreamPosition, Unrecovered};
use crate::ports::broker::{Failure, Found, Query, Reading, View};
use crate::ports::durability::StoreError;
use crate::ports::stream_log::{Logged, StreamLog};
use crate::wire::frame::EncodedFrame;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A view of a stream whose oldest messages may still have to be read from the log.
pub(super) struct Selected {
    /// The view, with the messages that are in memory.
    view: View,
    in_log: Option<InLog>,
}

/// The selected publications whose messages only the log has. They are older than those in memory.
struct InLog {
    offsets: RangeInclusive<u64>,
    count: usize,
}

impl Selected {
    pub fn new(history: &History, query: Query) -> Self {
        let mut in_log = None;
        let mut frames = |kept: &[&Kept]| split(kept, &mut in_log);
        let found = match query {
            Query::Position => Found::Nothing,
            Query::Since {
                epoch,
                offset,
                through,
                max_bytes,
            } => {
                let through = through.unwrap_or(history.top);
                let missed = history.since(epoch, offset, through, max_bytes);
                Found::Missed(missed.map(|missed| frames(&missed.collect::<Vec<_>>())))
            }
            Query::Page { page, max_bytes } => {
                let (kept, is_cut) = history.page(page, max_bytes);
                Found::Page {
                    publications: frames(&kept),
                    is_cut,
                }
            }
        };
        Self {
            view: View {
                position: StreamPosition {
                    epoch: history.epoch,
                    offset: history.top,
                },
                found,
            },
            in_log,
        }
    }

    /// Ends at once if all messages are in memory, else when the log has been read. `is_closed` is called then, and tells
    /// whether the stream has ended meanwhile.
    pub fn complete(
        self,
        log: &dyn StreamLog,
        channel: &Arc<str>,
        is_closed: impl Fn() -> bool + Send + 'static,
        later: &mut Later<'_, View, Failure>,
    ) -> Reading {
        let Selected { view, in_log } = self;
        let Some(InLog { offsets, count }) = in_log else {
            return Reading::Ended(Ok(view));
        };
        let mut rest = Some((view, is_closed));
        let reading = log.read(channel, offsets, &mut || {
            let (completion, rest) = (later(), rest.take());
            Completion::new(move |outcome: Result<Vec<Logged>, StoreError>| {
                completion.complete(match (outcome, rest) {
                    (Ok(_), Some((_, is_closed))) if is_closed() => Err(Failure::Closed),
                    (Ok(logged), Some((view, _))) => Ok(add_logged(view, count, logged)),
                    (Ok(_), None) => Err(Failure::abandoned()),
                    (Err(error), _) => Err(Failure::Unavailable(error.0)),
                });
            })
        });
        match (reading, rest) {
            (Progress::Begun(_), _) => Reading::Begun(None),
            (Progress::Ended(Ok(logged)), Some((view, _))) => {
                Reading::Ended(Ok(add_logged(view, count, logged)))
            }
            (Progress::Ended(Ok(_)), None) => Reading::Ended(Err(Failure::abandoned())),
            (Progress::Ended(Err(error)), _) => Reading::Ended(Err(Failure::Unavailable(error.0))),
        }
    }
}

/// Returns the messages in memory, and notes those that only the log has.
fn split(kept: &[&Kept], in_log: &mut Option<InLog>) -> Vec<EncodedFrame> {
    let mut frames = Vec::with_capacity(kept.len());
    for kept in kept {
        match (&kept.message, &mut *in_log) {
            (Message::InMemory(frame), _) => frames.push(frame.clone()),
            (Message::InLog(_), Some(before)) => {
                before.offsets = *before.offsets.start()..=kept.offset;
                before.count += 1;
            }
            (Message::InLog(_), None) => {
                *in_log = Some(InLog {
                    offsets: kept.offset..=kept.offset,
                    count: 1,
                });
            }
        }
    }
    frames
}

/// Puts the messages that were read from the log before those in memory. Publications that were trimmed meanwhile are
/// missing from the log: a page goes without them, a recovery cannot.
fn add_logged(mut view: View, expected: usize, logged: Vec<Logged>) -> View {
    let is_whole = logged.len() == expected;
    let logged = logged.into_iter().map(|logged| logged.frame);
    match &mut view.found {
        Found::Nothing | Found::Missed(Err(_)) => {}
        Found::Missed(missed) if !is_whole => *missed = Err(Unrecovered::Expired),
        Found::Missed(Ok(publications)) | Found::Page { publications, .. } => {
            publications.splice(..0, logged);
        }
    }
    view
}
