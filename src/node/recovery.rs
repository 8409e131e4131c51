//! The past of a channel for its clients: missed publications for a client that joins, and pages of history.

use super::channel::Channel;
use super::client::Joined;
use super::encode::encode;
use super::entry::Entry;
use super::gate::{OpenGate, Place};
use super::question::Question;
use super::wiring::Node;
use crate::base::completion::{Completion, Later, Progress};
use crate::base::error::{Error, argument};
use crate::base::names;
use crate::core::history::{Page, StreamPosition, Unrecovered};
use crate::ports::broker::{Failure, Found, Query, Reading, View};
use crate::ports::calls::HistoryPage;
use crate::ports::presence::Total;
use crate::wire::frame::EncodedFrame;
use crate::wire::messages;
use std::sync::Arc;

/// The content of the reply to a join.
pub(super) struct JoinReply<'a> {
    pub view: &'a View,
    /// The last offset that is part of what was missed.
    pub through: u64,
    pub subscribers: usize,
}

/// Most publications in one page.
pub const MAX_HISTORY_LIMIT: i64 = 1000;

/// Publications in one page when nothing is said.
pub const DEFAULT_HISTORY_LIMIT: i64 = 100;

impl Node {
    /// Returns a page of the history: with `after`, the oldest `limit` publications behind this offset; otherwise the
    /// newest (with `before`, the newest before this offset). A page has at most `max_bytes`, or one publication. The
    /// page of a channel that does not exist is empty, and the channel is not made.
    ///
    /// Errors: a channel name that cannot be one; the storage cannot be opened; the broker cannot be reached.
    pub fn history(
        self: &Arc<Self>,
        channel: &str,
        page: Page,
        max_bytes: usize,
        later: &mut Later<'_, HistoryPage>,
    ) -> Progress<HistoryPage> {
        if let Err(error) = names::check_channel_name(channel)
            .map_err(argument)
            .and_then(|()| self.restore())
        {
            return Progress::Ended(Err(error));
        }
        let query = Query::Page { page, max_bytes };
        let mut page_later = || -> Completion<View, Failure> {
            let completion = later();
            Completion::new(move |outcome: Result<View, Failure>| {
                completion.complete(outcome.map(page_of).map_err(Error::from));
            })
        };
        let known = self.channels.get(channel);
        let reading = match known {
            Some(channel) => match self.stream(&channel).read(query, &mut page_later) {
                // the channel was deleted in this moment
                Reading::Ended(Err(Failure::Closed)) => {
                    self.broker.read(&channel.name, query, &mut page_later)
                }
                reading => reading,
            },
            // a channel that is only asked for is not made; its publications, should it be, come behind this answer
            None => self.broker.read(channel, query, &mut page_later),
        };
        match reading {
            Reading::Ended(outcome) => Progress::Ended(outcome.map(page_of).map_err(Error::from)),
            Reading::Begun(_) => Progress::Begun(None),
        }
    }

    /// Answers a client that is on the channel already: because it was resumed, or because it has noticed a gap.
    pub(super) fn answer_joined(self: &Arc<Self>, joined: &Joined, question: &Question<'_>) {
        // A resumed client gets the publications behind `live.from` live, so the reply ends there. A client whose last
        // offset is not before `live.from` has lost a live publication, so the reply ends at the top.
        let live_from = joined.live.as_ref().map(|live| live.from);
        let through = live_from.filter(|from| {
            let seen = question.last_seen();
            seen.is_some_and(|offset| offset < *from)
        });
        let channel = &joined.channel;
        let counting = channel.presence.count(&mut || {
            let (node, channel) = (Arc::clone(self), Arc::clone(channel));
            let question = question.to_owned();
            Completion::new(move |total| node.read_missed(&channel, &question, through, total))
        });
        if let Progress::Ended(total) = counting {
            self.read_missed(channel, question, through, total);
        }
    }

    /// Reads what a client on a channel has missed, and answers.
    fn read_missed(
        self: &Arc<Self>,
        channel: &Arc<Channel>,
        question: &Question<'_>,
        through: Option<u64>,
        total: Result<Total, Failure>,
    ) {
        let subscribers = match total {
            Ok(total) => total.members,
            Err(failure) => {
                self.refuse_question(question, &channel.name, &failure.to_string());
                return;
            }
        };
        let query = question.query(through, self.max_reply_bytes());
        // what is published meanwhile belongs before the answer, and into it
        let mut entry = Some(Entry::new(channel));
        let reading = self.stream(channel).read(query, &mut || {
            let (node, question, entry) = (Arc::clone(self), question.to_owned(), entry.take());
            Completion::new(move |outcome| {
                if let Some(entry) = entry {
                    node.answer_view((&entry, subscribers), &question, through, outcome);
                }
            })
        });
        if let (Reading::Ended(outcome), Some(entry)) = (reading, entry) {
            self.answer_view((&entry, subscribers), question, through, outcome);
        }
    }

    fn answer_view(
        &self,
        (entry, subscribers): (&Entry, usize),
        question: &Question<'_>,
        through: Option<u64>,
        outcome: Result<View, Failure>,
    ) {
        let channel = entry.channel();
        let mut view = match outcome {
            Ok(view) => view,
            Err(failure) => {
                self.refuse_question(question, &channel.name, &failure.to_string());
                return;
            }
        };
        let gate = entry.lock();
        extend(&mut view, &gate, through.is_none());
        let reply = JoinReply {
            view: &view,
            through: through.unwrap_or(view.position.offset),
            subscribers,
        };
        let frame = self.join_reply(question, &channel.name, &reply);
        self.shards.push_direct(question.connection_id, frame);
    }

    /// The reply to a join; with what was missed, if the client has asked for that.
    pub(super) fn join_reply(
        &self,
        question: &Question<'_>,
        channel: &str,
        reply: &JoinReply<'_>,
    ) -> EncodedFrame {
        let stamp = self.stamps.next();
        let position = reply.view.position;
        encode(|out| {
            messages::write_reply(out, stamp, question.reference(), channel, |out| {
                messages::write_json(out, "epoch", messages::epoch_text(position.epoch));
                messages::write_json(out, "offset", position.offset);
                messages::write_json(out, "subscribers", reply.subscribers);
                match &reply.view.found {
                    Found::Missed(Ok(missed)) => {
                        messages::write_json(out, "recovered", true);
                        messages::write_json(out, "through", reply.through);
                        messages::write_publications(out, missed);
                    }
                    Found::Missed(Err(why)) => {
                        messages::write_json(out, "recovered", false);
                        messages::write_json(out, "reason", why.reason());
                        messages::write_publications(out, []);
                    }
                    Found::Nothing | Found::Page { .. } => {}
                }
            });
        })
    }

    /// Larger replies would make a client too slow at once.
    pub(super) fn max_reply_bytes(&self) -> usize {
        self.config.max_pending_bytes / 2
    }
}

/// Adds to a view what was delivered since it was read, as far as nothing is missing: to the publications only if the
/// client wants all of them.
fn extend(view: &mut View, gate: &OpenGate<'_>, wants_all: bool) {
    let mut missed = match &mut view.found {
        Found::Missed(missed) if wants_all => Some(missed),
        _ => None,
    };
    let Ok(gated) = gate.behind(view.position) else {
        if let Some(missed) = missed {
            *missed = Err(Unrecovered::TooLarge);
        }
        view.position = gate.newest_behind(view.position).unwrap_or(view.position);
        return;
    };
    for gated in gated {
        let next = StreamPosition {
            offset: view.position.offset + 1,
            ..view.position
        };
        match gated.place {
            Place::At(position) if position == next => view.position = next,
            Place::Behind(_) => continue,
            // the client gets a gap, and asks again
            Place::At(_) | Place::Gap => return,
        }
        if let Some(Ok(frames)) = missed.as_deref_mut() {
            frames.push(gated.frame.clone());
        }
    }
}

fn page_of(view: View) -> HistoryPage {
    let (publications, is_cut) = match view.found {
        Found::Page {
            publications,
            is_cut,
        } => (publications, is_cut),
        Found::Nothing | Found::Missed(_) => (Vec::new(), false),
    };
    HistoryPage {
        epoch: view.position.epoch,
        offset: view.position.offset,
        publications,
        is_cut,
    }
}
