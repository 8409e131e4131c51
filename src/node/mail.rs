//! Messages to one client, and their acknowledgements: checked here, carried out by the port for mail.

use super::client::{Client, ClientState};
use super::connecting::ConnectRequest;
use super::encode::with_direct;
use super::wiring::Node;
use crate::base::completion::{Completion, Later, Progress};
use crate::base::error::{Error, ErrorCode, Refusal, argument};
use crate::base::names;
use crate::base::priority::Priority;
use crate::ports::broker::Failure;
use crate::ports::calls::{DeliveryReport, PublishOptions, Sent};
use crate::ports::mail::{Acknowledged, Backlog, Letter, Opening};
use crate::wire::messages::{self, Body};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Node {
    /// Sends to one client. A message to a client that is not connected is kept, and handed over when the client returns.
    /// A durable message that is kept ends when it is saved.
    ///
    /// Errors: a client id or channel name that cannot be one; a message over the limit; `durable` where nothing can be
    /// saved; the storage cannot be opened; a failure of the port.
    pub fn send(
        self: &Arc<Self>,
        client_id: &str,
        channel: &str,
        body: Body<'_>,
        options: &PublishOptions<'_>,
        later: &mut Later<'_, Sent>,
    ) -> Progress<Sent> {
        let checked = || -> Result<(), Error> {
            names::check_client_id(client_id).map_err(argument)?;
            names::check_channel_name(channel).map_err(argument)?;
            let (Body::Message(bytes) | Body::Fields(bytes, _)) = body;
            self.check_size(bytes.len())?;
            self.check_options(options, || !self.ttl_of(options).is_zero())?;
            self.restore()
        };
        if let Err(error) = checked() {
            return Progress::Ended(Err(error));
        }
        if options.priority < Priority::Emergency {
            self.shards.wait_for_room();
        }
        let stamp = self.stamps.next();
        let mut sent_later = || {
            let (node, completion) = (Arc::clone(self), later());
            Completion::new(move |outcome: Result<Sent, Failure>| {
                if let Ok(sent) = &outcome {
                    // the sink may hear of the letter only later
                    node.mailroom.open_receipt(sent.stamp.id, 0);
                }
                completion.complete(outcome.map_err(Error::from));
            })
        };
        let progress = with_direct(stamp, channel, body, |body| {
            let letter = Letter {
                client: client_id,
                channel,
                stamp,
                body,
                priority: options.priority,
                ttl: self.ttl_of(options),
                is_durable: options.durable || self.config.durable && self.store.is_durable(),
                key: options.idempotency_key,
            };
            self.mail.send(&letter, &mut sent_later)
        });
        match progress {
            Progress::Ended(outcome) => Progress::Ended(outcome.map_err(Error::from)),
            Progress::Begun(sent) => Progress::Begun(sent),
        }
    }

    /// The progress of a message of `send` or `emergency`; `None` for a message that is unknown or too long ago.
    pub fn delivery(&self, message_id: &str) -> Option<DeliveryReport> {
        let receipt = self
            .mailroom
            .receipt(messages::parse_message_id(message_id)?)?;
        Some(DeliveryReport {
            handed_over: receipt.handed_over.load(Ordering::Relaxed) as usize,
            written: receipt.written.load(Ordering::Relaxed) as usize,
            acknowledged: receipt.acknowledged.load(Ordering::Relaxed) as usize,
            waiting: receipt.waiting.load(Ordering::Relaxed) as usize,
        })
    }

    /// A client has taken messages; the outcome is how many of them were waiting for that. `malformed` is a text among
    /// their ids that is none.
    ///
    /// Errors: an id that nothing waits for; the others count all the same. The port has failed.
    pub(super) fn acknowledge(
        &self,
        client: &Client,
        ids: &[u64],
        malformed: Option<&str>,
        later: &mut Later<'_, usize>,
    ) -> Progress<usize> {
        let mut counted_later = || {
            let (completion, malformed) = (later(), malformed.map(str::to_owned));
            Completion::new(move |outcome| {
                completion.complete(counted(outcome, malformed.as_deref()));
            })
        };
        // an emergency is acknowledged only after it was kept
        let _emergencies = self.emergencies.hold_back();
        let claim = client.state.lock().claim;
        let progress = match claim {
            Some(claim) => self
                .mail
                .acknowledge(&client.id, claim, ids, &mut counted_later),
            None => Progress::Ended(Ok(Acknowledged {
                count: 0,
                unknown: ids.last().copied(),
            })),
        };
        match progress {
            Progress::Ended(outcome) => Progress::Ended(counted(outcome, malformed)),
            Progress::Begun(_) => Progress::Begun(None),
        }
    }

    /// Has the mail of a client come to its connection: through the inbox of the shard, which queues the welcome before
    /// it looks into its inbox. Returns what the welcome tells of the mail.
    pub(super) fn open_mail(
        &self,
        client: &Client,
        state: &ClientState,
        request: &ConnectRequest<'_>,
    ) -> Backlog {
        let opened = state.claim.zip(state.connection_id);
        let backlog = opened.and_then(|(claim, connection_id)| {
            let opening = Opening {
                claim,
                address: connection_id.address(),
                acknowledges: request.acknowledges,
            };
            self.mail.open(&client.id, opening)
        });
        backlog.unwrap_or_default()
    }

    /// The time for which a message is kept.
    fn ttl_of(&self, options: &PublishOptions<'_>) -> Duration {
        if options.priority == Priority::Emergency {
            self.config.emergency_ttl
        } else {
            self.config.message_ttl
        }
    }
}

/// The number of acknowledged messages, or why the client is refused.
fn counted(
    outcome: Result<Acknowledged, Failure>,
    malformed: Option<&str>,
) -> Result<usize, Error> {
    let Acknowledged { count, unknown } = outcome.map_err(|failure| {
        let problem = format!("the messages could not be acknowledged: {failure}");
        Refusal::new(ErrorCode::NotSaved, problem)
    })?;
    let unknown = unknown.map(messages::message_id_text);
    let Some(id) = unknown.as_deref().or(malformed) else {
        return Ok(count);
    };
    let problem =
        format!("nothing waits for {id:?} to be acknowledged; {count} of the ids were known");
    Err(Refusal::new(ErrorCode::UnknownMessage, problem).into())
}
