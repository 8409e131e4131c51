//! The calls that a client makes by its commands.

use super::asker::Asker;
use super::backpressure::FanOut;
use super::publish::NewPublication;
use super::question::Question;
use super::recovery::{DEFAULT_HISTORY_LIMIT, MAX_HISTORY_LIMIT};
use super::wiring::Node;
use crate::base::clock::WallTime;
use crate::base::completion::{Completion, Later, Progress};
use crate::base::error::{Error, ErrorCode, Refusal};
use crate::base::misspelling::nearest;
use crate::base::names;
use crate::base::priority::SlowConsumer;
use crate::base::sync::Mutex;
use crate::core::events::{Detail, LogLevel};
use crate::core::history::Page;
use crate::ports::calls::{Call, Calls, PublishOptions, Published, Reply};
use crate::wire::command::ACTIONS;
use std::sync::Arc;

/// The calls of one client, on one of its connections. Their errors are refusals, which become error messages to the client.
pub struct ClientCalls<'a> {
    node: &'a Arc<Node>,
    asker: Asker<'a>,
    /// What the last call has put in the queues of shards.
    fan_out: Mutex<Option<FanOut>>,
}

impl<'a> ClientCalls<'a> {
    pub fn new(node: &'a Arc<Node>, asker: Asker<'a>) -> Self {
        Self {
            node,
            asker,
            fan_out: Mutex::default(),
        }
    }

    /// The publication or notice that the last call has put in the queues of shards.
    pub fn take_fan_out(&self) -> Option<FanOut> {
        self.fan_out.lock().take()
    }

    fn join(&self, channel: &str, question: &Question<'_>) -> Result<Reply, Error> {
        let fan_out = self.node.join(self.asker.client, channel, question)?;
        *self.fan_out.lock() = fan_out;
        Ok(Reply::Joining)
    }

    fn leave(&self, channel: &str) -> Reply {
        *self.fan_out.lock() = self.node.leave(self.asker.client, channel);
        Reply::Done
    }

    fn broadcast(&self, new: &NewPublication<'_>, later: &mut Later<'_, Reply>) -> Progress<Reply> {
        let mut published_later = || {
            let completion = later();
            Completion::new(move |outcome: Result<Published, Error>| {
                completion.complete(
                    outcome
                        .map(Reply::Published)
                        .map_err(|error| not_saved(&error)),
                );
            })
        };
        let (progress, channel) = self.node.publish(new, &mut published_later);
        let published = match &progress {
            Progress::Ended(Ok(published)) | Progress::Begun(Some(published)) => Some(published),
            Progress::Ended(Err(_)) | Progress::Begun(None) => None,
        };
        *self.fan_out.lock() = Some(FanOut {
            recipients: published
                .filter(|published| !published.is_duplicate)
                .map_or(0, |published| published.recipients),
            can_be_joined: channel.settings.slow_consumer == SlowConsumer::Disconnect,
            channel,
        });
        match progress {
            Progress::Ended(outcome) => Progress::Ended(
                outcome
                    .map(Reply::Published)
                    .map_err(|error| not_saved(&error)),
            ),
            Progress::Begun(known) => Progress::Begun(known.map(Reply::Published)),
        }
    }

    fn history(
        &self,
        channel: &str,
        (limit, after, before): (Option<i64>, Option<u64>, Option<u64>),
        later: &mut Later<'_, Reply>,
    ) -> Progress<Reply> {
        let limit = limit.unwrap_or(DEFAULT_HISTORY_LIMIT);
        if !(1..=MAX_HISTORY_LIMIT).contains(&limit) {
            return refused(
                ErrorCode::BadLimit,
                format!("limit is {limit}; it takes a whole number from 1 to {MAX_HISTORY_LIMIT}"),
            );
        }
        let page = Page {
            limit: usize::try_from(limit).unwrap_or_default(),
            after,
            before,
        };
        let mut page_later = || {
            let completion = later();
            Completion::new(move |outcome: Result<_, Error>| {
                completion.complete(outcome.map(Reply::History).map_err(not_read));
            })
        };
        let max_bytes = self.node.max_reply_bytes();
        match self.node.history(channel, page, max_bytes, &mut page_later) {
            Progress::Ended(page) => Progress::Ended(page.map(Reply::History).map_err(not_read)),
            Progress::Begun(page) => Progress::Begun(page.map(Reply::History)),
        }
    }

    fn acknowledge(
        &self,
        ids: &[u64],
        malformed: Option<&str>,
        later: &mut Later<'_, Reply>,
    ) -> Progress<Reply> {
        let mut counted_later = || {
            let completion = later();
            Completion::new(move |outcome: Result<usize, Error>| {
                completion.complete(outcome.map(Reply::Acknowledged));
            })
        };
        let client = self.asker.client;
        match self
            .node
            .acknowledge(client, ids, malformed, &mut counted_later)
        {
            Progress::Ended(count) => Progress::Ended(count.map(Reply::Acknowledged)),
            Progress::Begun(count) => Progress::Begun(count.map(Reply::Acknowledged)),
        }
    }

    fn present(&self, channel: &str, later: &mut Later<'_, Reply>) -> Progress<Reply> {
        let mut present_later = || {
            let completion = later();
            Completion::new(move |present: Result<Reply, Error>| {
                completion.complete(present.map_err(not_read));
            })
        };
        match self.node.present(channel, &mut present_later) {
            Progress::Ended(present) => Progress::Ended(present.map_err(not_read)),
            begun @ Progress::Begun(_) => begun,
        }
    }

    fn ping(&self) -> Reply {
        self.asker.client.ping(WallTime::now());
        self.emit("ping", Some(names::SYSTEM_CHANNEL), || Detail::None);
        Reply::Pong
    }

    fn message(&self, action: Option<&str>, text: &str) -> Result<Reply, Error> {
        self.check_spelling(action)?;
        self.node.counters.messages_received.add(1);
        self.emit("message", None, || Detail::Frame(text.as_bytes().into()));
        Ok(Reply::Done)
    }

    /// Refuses an action that looks like a misspelled known one, where the application has no handler for actions of
    /// its own. A command without a reference gets no error; the log has a line instead.
    fn check_spelling(&self, action: Option<&str>) -> Result<(), Error> {
        if self.node.events.wanted("message").is_some() {
            return Ok(());
        }
        let Some((action, known)) =
            action.and_then(|action| Some((action, nearest(action, ACTIONS)?)))
        else {
            return Ok(());
        };
        let problem =
            format!("the action {action:?}, which nothing handles; the nearest is {known:?}");
        if self.asker.reference.is_some() {
            let message =
                format!("action is {action:?}, which nothing handles; the nearest is {known:?}");
            return Err(Refusal::new(ErrorCode::BadField, message).into());
        }
        let id = &self.asker.client.id;
        self.node.events.log(LogLevel::Warning, "connections", || {
            format!("{id} sent {problem}")
        });
        Ok(())
    }

    fn emit(&self, event: &str, channel: Option<&str>, detail: impl FnOnce() -> Detail) {
        let id = Some(&self.asker.client.id);
        self.node.events.emit(event, id, channel, detail);
    }
}

impl Calls for ClientCalls<'_> {
    fn call(&self, call: Call<'_>, later: &mut Later<'_, Reply>) -> Progress<Reply> {
        let Asker {
            client,
            connection_id,
            reference,
        } = self.asker;
        match call {
            Call::Join { channel, recover } => {
                let question = Question::new(connection_id, reference, recover);
                Progress::Ended(self.join(channel, &question))
            }
            Call::Leave { channel } => Progress::Ended(Ok(self.leave(channel))),
            Call::Broadcast {
                channel,
                event,
                data,
                options,
            } => {
                let options = PublishOptions {
                    idempotency_key: options.idempotency_key,
                    ..PublishOptions::default()
                };
                let new = NewPublication {
                    channel,
                    event,
                    data,
                    from: Some(client),
                    options: &options,
                };
                self.broadcast(&new, later)
            }
            Call::Ping => Progress::Ended(Ok(self.ping())),
            Call::Present { channel } => self.present(channel, later),
            Call::Page {
                channel,
                limit,
                after,
                before,
            } => self.history(channel, (limit, after, before), later),
            Call::Acknowledge { ids, malformed } => self.acknowledge(ids, malformed, later),
            Call::Message { action, text } => Progress::Ended(self.message(action, text)),
            _ => refused(
                ErrorCode::BadField,
                "only the application can make this call".to_owned(),
            ),
        }
    }
}

fn refused(code: ErrorCode, message: String) -> Progress<Reply> {
    Progress::Ended(Err(Refusal::new(code, message).into()))
}

fn not_saved(error: &Error) -> Error {
    Error::Refused(Refusal::new(
        ErrorCode::NotSaved,
        format!("the message could not be saved and was not published: {error}"),
    ))
}

fn not_read(error: Error) -> Error {
    Error::Refused(match error {
        Error::Argument(message) => Refusal::new(ErrorCode::BadChannel, message),
        error => Refusal::new(ErrorCode::NotRead, error.to_string()),
    })
}
