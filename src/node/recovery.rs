//! What a client is given of a channel's past: what it missed, when it joins, and pages of history.

use super::asker::Asker;
use super::client::Joined;
use super::delivery::ConnectionId;
use super::encode::encode;
use super::wiring::Node;
use crate::base::error::{Error, ErrorCode, Refusal, argument};
use crate::base::names;
use crate::core::history::{History, Page};
use crate::ports::calls::HistoryPage;
use crate::wire::command::Recover;
use crate::wire::frame::EncodedFrame;
use crate::wire::messages::{self, Reference};
use std::sync::Arc;

/// What a client wants to know when it joins a channel.
pub(super) struct Asked<'a> {
    /// The connection that it asks by.
    pub connection_id: ConnectionId,
    pub reference: Option<Reference<'a>>,
    /// Where it was.
    pub recover: Option<Recover<'a>>,
}

impl Asked<'_> {
    /// A bare join is told of by the notice alone.
    pub fn wants_reply(&self) -> bool {
        self.reference.is_some() || self.recover.is_some()
    }
}

/// Most publications in one page.
pub const MAX_HISTORY_LIMIT: i64 = 1000;

/// Publications in one page when nothing is said.
pub const DEFAULT_HISTORY_LIMIT: i64 = 100;

impl Node {
    /// What is kept of a channel: at most `limit` publications, with `after` the oldest behind that offset, otherwise
    /// the newest (before the offset `before`, if given). `max_bytes` bounds the page, but for its first publication. Of a
    /// channel that does not exist nothing is kept, and none is made.
    ///
    /// Errors: a channel name that cannot be one; the storage cannot be opened.
    pub fn history(
        &self,
        channel: &str,
        page: Page,
        max_bytes: usize,
    ) -> Result<HistoryPage, Error> {
        names::check_channel_name(channel).map_err(argument)?;
        self.restore()?;
        let Some(channel) = self.channels.get(channel) else {
            // a channel that is only asked for is not made; its publications, should it be, come behind this answer
            return Ok(HistoryPage::empty(self.broker.next_epoch(channel)));
        };
        let mut found = HistoryPage::empty(0);
        self.stream(&channel).read(&mut |history| {
            let (kept, is_cut) = history.page(page, max_bytes);
            found = HistoryPage {
                epoch: history.epoch,
                offset: history.top,
                publications: kept.into_iter().map(|kept| kept.frame.clone()).collect(),
                is_cut,
            };
        });
        Ok(found)
    }

    /// Answers a client that asks for a page.
    ///
    /// Errors: a limit that cannot be.
    pub(super) fn answer_history(
        &self,
        asker: Asker<'_>,
        channel: &str,
        (limit, after, before): (Option<i64>, Option<u64>, Option<u64>),
    ) -> Result<(), Refusal> {
        let limit = limit.unwrap_or(DEFAULT_HISTORY_LIMIT);
        if !(1..=MAX_HISTORY_LIMIT).contains(&limit) {
            return Err(Refusal::new(
                ErrorCode::BadLimit,
                format!("limit is {limit}; it takes a whole number from 1 to {MAX_HISTORY_LIMIT}"),
            ));
        }
        let page = Page {
            limit: usize::try_from(limit).unwrap_or_default(),
            after,
            before,
        };
        let page = self
            .history(channel, page, self.max_reply_bytes())
            .map_err(|error| match error {
                Error::Argument(message) => Refusal::new(ErrorCode::BadChannel, message),
                error => Refusal::new(ErrorCode::NotRead, error.to_string()),
            })?;
        self.answer(asker, channel, |out| {
            messages::write_json(out, "epoch", messages::epoch_text(page.epoch));
            messages::write_json(out, "offset", page.offset);
            messages::write_publications(out, &page.publications);
            if page.is_cut {
                messages::write_json(out, "more", true);
            }
        });
        Ok(())
    }

    /// Answers a client that is on the channel already: because it was resumed, or because it has noticed a gap.
    pub(super) fn answer_joined(&self, joined: &Joined, asked: &Asked<'_>) {
        let channel = &joined.channel;
        self.stream(channel).read(&mut |history| {
            let subscribers = channel.members.lock().roster.len();
            // one that was resumed has had, or will have, what was published since it went live; one that has
            // missed something after that needs all
            let is_resuming = asked
                .recover
                .as_ref()
                .is_some_and(|recover| recover.offset < joined.live_from);
            let through = if is_resuming {
                joined.live_from
            } else {
                history.top
            };
            let frame = self.join_reply(asked, &channel.name, history, through, subscribers);
            self.shards.push_direct(asked.connection_id, frame);
        });
    }

    /// The answer to a join; with what was missed up to `through`, if that was asked.
    pub(super) fn join_reply(
        &self,
        asked: &Asked<'_>,
        channel: &str,
        history: &History,
        through: u64,
        subscribers: usize,
    ) -> EncodedFrame {
        let stamp = self.stamps.next();
        encode(|out| {
            messages::write_reply(out, stamp, asked.reference, channel, |out| {
                messages::write_json(out, "epoch", messages::epoch_text(history.epoch));
                messages::write_json(out, "offset", history.top);
                messages::write_json(out, "subscribers", subscribers);
                let Some(recover) = &asked.recover else {
                    return;
                };
                let missed = history.since(
                    epoch_number(&recover.epoch),
                    recover.offset,
                    through,
                    self.max_reply_bytes(),
                );
                match missed {
                    Ok(missed) => {
                        messages::write_json(out, "recovered", true);
                        messages::write_json(out, "through", through);
                        messages::write_publications(out, missed.map(|kept| &kept.frame));
                    }
                    Err(why) => {
                        messages::write_json(out, "recovered", false);
                        messages::write_json(out, "reason", why.reason());
                        messages::write_publications(out, []);
                    }
                }
            });
        })
    }

    /// Larger replies would make a client too slow at once.
    fn max_reply_bytes(&self) -> usize {
        self.config.max_pending_bytes / 2
    }

    /// How many are on a channel, and the first of them.
    pub(super) fn answer_presence(&self, asker: Asker<'_>, name: &str) {
        let channel = self.channels.get(name);
        let (online, users) = channel.map_or_else(<(usize, Vec<Arc<str>>)>::default, |channel| {
            let members = channel.members.lock();
            let users = members.roster.ids().take(MAX_PRESENT).cloned().collect();
            (members.roster.len(), users)
        });
        self.answer(asker, name, |out| {
            let users: Vec<&str> = users.iter().map(|id| &**id).collect();
            messages::write_json(out, "online", online);
            messages::write_json(out, "users", users);
        });
    }
}

/// Most names in the answer to `presence`.
const MAX_PRESENT: usize = 1000;

/// An epoch as the client wrote it; one that is no epoch is nobody's.
fn epoch_number(text: &str) -> Option<u64> {
    let is_epoch = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_epoch
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}
