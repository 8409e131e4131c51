//! What the application does with the sessions of clients: tokens, data of its own, and saved subscriptions.

use super::client::{Client, ClientState};
use super::token::token_text;
use super::wiring::Node;
use crate::base::completion::{Completion, Later, Progress};
use crate::base::error::{Error, argument};
use crate::base::names;
use crate::base::sync::MutexGuard;
use crate::core::resume_secrets::Secret;
use crate::ports::broker::Failure;
use crate::ports::sessions::Change;
use bytes::Bytes;
use std::sync::Arc;

impl Node {
    /// The token with which a client can connect under this id. A client that was never connected begins on the default
    /// channel, as every client does.
    ///
    /// Errors: an id that cannot be one; `resume_ttl` is 0; the storage cannot be opened; the sessions cannot be reached.
    pub fn resume_token(
        self: &Arc<Self>,
        client_id: &str,
        later: &mut Later<'_, String>,
    ) -> Progress<String> {
        if let Err(error) = self.check_token_call(client_id) {
            return Progress::Ended(Err(error));
        }
        loop {
            let client = self.clients.get_or_add(client_id);
            let state = client.state.lock();
            if state.removed {
                continue;
            }
            client.set_spoken();
            let make = &|| client.session_state(&state, self.expected_channels(&state));
            let mut token_later = || self.token_later(&client.id, later());
            let progress = self.sessions.token(&client.id, make, &mut token_later);
            return match progress {
                Progress::Ended(Ok(secret)) => {
                    Progress::Ended(Ok(self.hand_out(&client, state, &secret)))
                }
                Progress::Ended(Err(failure)) => {
                    self.drop_if_idle(&client, state);
                    Progress::Ended(Err(no_token(&failure)))
                }
                Progress::Begun(_) => Progress::Begun(None),
            };
        }
    }

    /// The data that the application attached to a client, as JSON; `None` for an unknown client.
    pub fn user_data(&self, client_id: &str) -> Option<Bytes> {
        let client = self.clients.get(client_id)?;
        client.state.lock().user_data.as_deref().cloned()
    }

    /// Attaches data of the application to a client, as JSON, for as long as the client is known.
    pub fn set_user_data(&self, client_id: &str, json: Vec<u8>) {
        let client = self.clients.get(client_id);
        if let Some(client) = client {
            let mut state = client.state.lock();
            let json = Bytes::from(json);
            state.user_data = Some(Box::new(json.clone()));
            self.save_change(&client, &state, Change::UserData(&json));
        }
    }

    /// Saves that a client is on a channel.
    pub(super) fn save_joined(&self, client: &Client, state: &ClientState, channel: &Arc<str>) {
        self.save_change(client, state, Change::Joined(channel));
    }

    /// Saves that a client is not on a channel any more.
    pub(super) fn save_left(&self, client: &Client, state: &ClientState, channel: &str) {
        self.save_change(client, state, Change::Left(channel));
    }

    fn save_change(&self, client: &Client, state: &ClientState, change: Change<'_>) {
        if state.has_session() {
            self.sessions.save(&client.id, state.claim, change);
        }
    }

    fn check_token_call(self: &Arc<Self>, client_id: &str) -> Result<(), Error> {
        names::check_client_id(client_id).map_err(argument)?;
        self.restore()?;
        if self.config.resume_ttl.is_zero() {
            return Err(Error::Argument(
                "there are no resume tokens: resume_ttl is 0".to_owned(),
            ));
        }
        Ok(())
    }

    fn token_later(
        self: &Arc<Self>,
        id: &Arc<str>,
        completion: Completion<String>,
    ) -> Completion<Secret, Failure> {
        let (node, id) = (Arc::clone(self), Arc::clone(id));
        Completion::new(move |outcome: Result<Secret, Failure>| {
            let secret = outcome.map_err(|failure| no_token(&failure));
            completion.complete(secret.map(|secret| {
                loop {
                    let client = node.clients.get_or_add(&id);
                    let state = client.state.lock();
                    if state.removed {
                        continue;
                    }
                    // what has changed since the call was not saved without a session
                    node.save_state(&client, &state, &node.expected_channels(&state));
                    return node.hand_out(&client, state, &secret);
                }
            }));
        })
    }

    /// Expects a client from now on that has a session; returns its token as text.
    fn hand_out(
        self: &Arc<Self>,
        client: &Arc<Client>,
        mut state: MutexGuard<'_, ClientState>,
        secret: &Secret,
    ) -> String {
        self.expect(client, &mut state, self.first_channels());
        drop(state);
        self.forget_surplus();
        token_text(&client.id, secret)
    }

    /// The channels of a client once it is expected.
    fn expected_channels(&self, state: &ClientState) -> Vec<Arc<str>> {
        let mut channels = state.channel_names();
        if state.connection_id.is_none() && state.away.is_none() {
            let first = self.first_channels().into_iter();
            channels.extend(first.filter(|name| state.position(name).is_none()));
        }
        channels
    }
}

fn no_token(failure: &Failure) -> Error {
    Error::Storage(format!("there is no resume token: {}", failure.problem()))
}
