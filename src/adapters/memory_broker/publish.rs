//! Publishing on a stream in memory: the publication is handed over at once, or after it is saved.

use super::keys::{KeyInUse, Keys, Repeat};
use super::stream::{MemoryStream, StreamState};
use crate::base::clock::{SteadyTime, WallTime};
use crate::base::completion::{Later, Progress};
use crate::base::sync::MutexGuard;
use crate::core::history::{Kept, Message, StreamPosition};
use crate::ports::broker::{Delivered, Failure, Outgoing, Publishing, Receipt};
use crate::ports::durability::{Committed, NotTaken, StoreError, UsedKey};
use crate::ports::stream_log::StreamChange;
use crate::wire::frame::EncodedFrame;
use std::sync::Arc;

type Published = Progress<Receipt, Failure>;

impl MemoryStream {
    pub(super) fn publish_once(
        &self,
        publication: &Outgoing<'_>,
        later: &mut Later<'_, Receipt, Failure>,
    ) -> Published {
        let Some(key) = &publication.key else {
            return self.publish_new(publication, None, later);
        };
        let needs_saved = publication.is_durable || self.saves_first;
        match self.keys.begin(key, needs_saved, later) {
            Ok(used) => self.publish_new(publication, Some(&Arc::new(used)), later),
            Err(Repeat::Known(receipt)) => Progress::Ended(Ok(receipt)),
            // a caller that waits for saving gets the receipt of the first publication, if it is known
            Err(Repeat::Queued(None)) if needs_saved => Progress::Begun(Some(Receipt {
                position: None,
                recipients: self.subscribers(),
                is_duplicate: true,
            })),
            Err(Repeat::Queued(receipt)) => Progress::Begun(receipt),
        }
    }

    fn publish_new(
        &self,
        publication: &Outgoing<'_>,
        used: Option<&Arc<KeyInUse>>,
        later: &mut Later<'_, Receipt, Failure>,
    ) -> Published {
        let state = self.state.lock();
        if state.is_closed {
            drop(state);
            return self.fail(used, Failure::Closed);
        }
        if self.saves_first {
            self.publish_saved(state, publication, used, later)
        } else {
            self.publish_now(state, publication, used, later)
        }
    }

    /// Hands a publication over, keeps it, and saves it.
    fn publish_now(
        &self,
        mut state: MutexGuard<'_, StreamState>,
        publication: &Outgoing<'_>,
        used: Option<&Arc<KeyInUse>>,
        later: &mut Later<'_, Receipt, Failure>,
    ) -> Published {
        let position = state.next();
        let kept_at = self.keeps.then_some(position);
        let frame = publication.body.seal(kept_at.map(|kept| kept.offset));
        let at = SteadyTime::now();
        let is_durable = self.saves && publication.is_durable;
        // the bytes are reserved before the delivery; `reserved` is dropped once `keep` has counted the publication
        let reserved = match is_durable.then(|| self.reserve(&mut state, &frame, at)) {
            None => None,
            Some(Ok(reserved)) => Some(reserved),
            Some(Err(error)) => {
                drop(state);
                return self.fail(used, error.into());
            }
        };
        state.assigned = position.offset;
        if self.saves {
            self.note_published(&mut state);
        }
        let receipt = Receipt {
            position: kept_at,
            recipients: self.hand_over(publication, position, &frame),
            is_duplicate: false,
        };
        if !self.keeps {
            state.history.pass(position.offset);
            drop(state);
            return self.ended(used, receipt);
        }
        let mut not_taken = None;
        let mut is_saving = false;
        if self.saves {
            let to_save = used.and_then(|used| used.to_save(receipt));
            let saved = is_durable.then(|| {
                is_saving = true;
                self.when_saved(used.cloned(), receipt, later())
            });
            not_taken = self
                .save(&mut state, (position, &frame, to_save), is_durable, saved)
                .err();
        }
        let kept = Kept {
            offset: position.offset,
            at,
            is_durable,
            message: Message::InMemory(frame),
        };
        self.keep(&mut state, kept);
        drop(reserved);
        drop(state);
        if let Some(not_taken) = not_taken {
            not_taken.complete();
        }
        self.make_room();
        if is_saving {
            if let Some(used) = used {
                self.keys.saving(used, receipt);
            }
            return Progress::Begun(Some(receipt));
        }
        self.ended(used, receipt)
    }

    /// Saves a publication, then hands it over and keeps it.
    fn publish_saved(
        &self,
        mut state: MutexGuard<'_, StreamState>,
        publication: &Outgoing<'_>,
        used: Option<&Arc<KeyInUse>>,
        later: &mut Later<'_, Receipt, Failure>,
    ) -> Published {
        let position = state.next();
        let frame = publication.body.seal(Some(position.offset));
        let at = SteadyTime::now();
        let reserved = match self.reserve(&mut state, &frame, at) {
            Ok(reserved) => reserved,
            Err(error) => {
                drop(state);
                return self.fail(used, error.into());
            }
        };
        let Some(stream) = self.me.upgrade() else {
            // the last owner of the stream is about to drop it
            drop(state);
            return self.fail(used, Failure::Closed);
        };
        state.assigned = position.offset;
        let receipt = Receipt {
            position: Some(position),
            recipients: self.subscribers(),
            is_duplicate: false,
        };
        let to_save = used.and_then(|used| used.to_save(receipt));
        let (saved_frame, saved_key) = (frame.clone(), used.cloned());
        let (priority, kind) = (publication.priority, publication.kind);
        let completion = later();
        let committed = Committed::new(move |outcome| {
            let outcome = match outcome {
                Ok(()) => {
                    let mut state = stream.state.lock();
                    let delivered = Delivered {
                        position,
                        is_kept: true,
                        priority,
                        kind,
                        frame: &saved_frame,
                    };
                    let recipients = stream.sink.deliver(&delivered);
                    let kept = Kept {
                        offset: position.offset,
                        at,
                        is_durable: true,
                        message: Message::InMemory(saved_frame),
                    };
                    // under the lock: the next publication must see the updated budget
                    stream.keep(&mut state, kept);
                    stream.finish_saving(reserved);
                    Ok(Receipt {
                        recipients,
                        ..receipt
                    })
                }
                Err(error) => {
                    stream.finish_saving(reserved);
                    // the channel may have stayed for this publication alone
                    stream.note_emptied();
                    Err(error.into())
                }
            };
            complete(&stream.keys, saved_key.as_deref(), outcome, completion);
        });
        self.begin_saving();
        let saved = self.save(
            &mut state,
            (position, &frame, to_save),
            true,
            Some(committed),
        );
        drop(state);
        match saved {
            Ok(()) => {
                if let Some(used) = used {
                    self.keys.saving(used, receipt);
                }
            }
            Err(not_taken) => not_taken.complete(),
        }
        Progress::Begun(Some(receipt))
    }

    fn hand_over(
        &self,
        publication: &Outgoing<'_>,
        position: StreamPosition,
        frame: &EncodedFrame,
    ) -> usize {
        self.sink.deliver(&Delivered {
            position,
            is_kept: self.keeps,
            priority: publication.priority,
            kind: publication.kind,
            frame,
        })
    }

    fn ended(&self, used: Option<&Arc<KeyInUse>>, receipt: Receipt) -> Published {
        if let Some(used) = used {
            self.keys.done(used, receipt);
        }
        Progress::Ended(Ok(receipt))
    }

    fn fail(&self, used: Option<&Arc<KeyInUse>>, failure: Failure) -> Published {
        let outcome = Err(failure);
        if let Some(used) = used {
            self.keys.ended(used, &outcome);
        }
        Progress::Ended(outcome)
    }

    /// Completes a publication that was handed over and is durable once it is saved.
    fn when_saved(
        &self,
        used: Option<Arc<KeyInUse>>,
        receipt: Receipt,
        completion: Publishing,
    ) -> Committed {
        let keys = Arc::clone(&self.keys);
        Committed::new(move |outcome: Result<(), StoreError>| {
            let outcome = outcome.map(|()| receipt).map_err(Failure::from);
            complete(&keys, used.as_deref(), outcome, completion);
        })
    }

    fn save(
        &self,
        state: &mut StreamState,
        (position, frame, used_key): (StreamPosition, &EncodedFrame, Option<Box<UsedKey>>),
        is_durable: bool,
        committed: Option<Committed>,
    ) -> Result<(), NotTaken> {
        // a full store refuses the announcement; then it refuses the publication too, and reports that
        self.announce(state);
        let at = WallTime::now();
        let change = StreamChange::Published {
            stream: self.key,
            position,
            at,
            expires: at + self.settings.message_ttl,
            is_durable,
            frame,
            used_key,
        };
        self.log.append(change, committed)
    }
}

/// Reports the outcome of a publication to the callers with its key, and to its own caller.
fn complete(
    keys: &Keys,
    used: Option<&KeyInUse>,
    outcome: Result<Receipt, Failure>,
    completion: Publishing,
) {
    if let Some(used) = used {
        keys.ended(used, &outcome);
    }
    completion.complete(outcome);
}
