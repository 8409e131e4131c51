//! Letters of the application to the clients of the property test.

use super::{Outcome, World};
use crate::adversarial_mail::AdversarialMail;
use crate::adversary::Behaviour;
use crate::whole_node_client::{Fate, fate};
use _tantor::adapters::memory_mail::{MailLimits, MemoryMail};
use _tantor::base::completion::{Completion, Progress};
use _tantor::base::error::Error;
use _tantor::ports::calls::{PublishOptions, Sent};
use _tantor::ports::store::Store;
use _tantor::settings::config::Config;
use _tantor::wire::messages::{Body, message_id_text};
use std::sync::Arc;

/// A letter of the application to a client.
pub(super) struct Letter {
    to: usize,
    key: Option<String>,
    /// Known once the call has ended.
    id: Option<String>,
    fate: Fate,
    /// The call has failed once: the letter may come behind later ones.
    has_failed: bool,
}

/// Mail that is late and fails, of most seeds; `None` for mail in memory.
pub(super) fn mail_on(
    store: Arc<dyn Store>,
    config: &Config,
    behaviour: Behaviour,
) -> Option<Arc<AdversarialMail>> {
    let memory = || MemoryMail::new(store, MailLimits::of_settings(config));
    (behaviour.seed % 4 != 1).then(|| Arc::new(AdversarialMail::new(memory(), behaviour)))
}

impl World {
    pub(super) fn send_new(&mut self, to: usize) {
        let number = self.letters.len();
        let has_key = self.random.percent(50);
        self.letters.push(Letter {
            to,
            key: has_key.then(|| format!("letter {number}")),
            id: None,
            fate: Fate::UnderWay,
            has_failed: false,
        });
        self.send(number);
    }

    /// A new letter, or one that is tried again under its key.
    fn send(&mut self, number: usize) {
        let text = format!("\"{number}\"");
        let letter = &mut self.letters[number];
        letter.fate = Fate::UnderWay;
        let options = PublishOptions {
            idempotency_key: letter.key.as_deref(),
            ..PublishOptions::default()
        };
        let tell = self.tell.clone();
        let mut later = || {
            let tell = tell.clone();
            Completion::new(move |outcome| tell.send(Outcome::Sent(number, outcome)).unwrap())
        };
        let (node, id) = (&self.node, &self.visitors[letter.to].id);
        let body = Body::Message(text.as_bytes());
        let progress = node.send(id, "mail", body, &options, &mut later);
        self.under_way += 1;
        if let Progress::Ended(outcome) = progress {
            self.tell.send(Outcome::Sent(number, outcome)).unwrap();
        }
    }

    /// Takes in the outcome of a letter; a letter with a key is tried again until it is sent.
    pub(super) fn sent(&mut self, number: usize, outcome: Result<Sent, Error>) {
        let letter = &mut self.letters[number];
        match outcome {
            Ok(sent) => {
                letter.id = Some(message_id_text(sent.stamp.id));
                letter.fate = Fate::Made;
            }
            Err(error) => {
                letter.fate = fate(Some(&error.to_string()));
                letter.has_failed = true;
                if letter.key.is_some() {
                    self.send(number);
                }
            }
        }
    }

    /// Each client has its letters, in their order, and has acknowledged each once.
    pub(super) fn check_letters(&self) {
        for (number, letter) in self.letters.iter().enumerate() {
            let visitor = &self.visitors[letter.to];
            let is_there = visitor.letters.contains_key(&number.to_string());
            let is_right = match letter.fate {
                Fate::Made => is_there,
                Fate::Failed => !is_there,
                Fate::Unknown => true,
                Fate::UnderWay => false,
            };
            assert!(is_right, "mail {number}, {:?}: {is_there}", letter.fate);
            if let Some(id) = &letter.id {
                let report = self.node.delivery(id).unwrap();
                assert_eq!((report.acknowledged, report.waiting), (1, 0), "{number}");
            }
        }
        for visitor in &self.visitors {
            let came = visitor
                .came
                .iter()
                .map(|text| text.parse::<usize>().unwrap());
            let came: Vec<usize> = came
                .filter(|number| !self.letters[*number].has_failed)
                .collect();
            assert!(came.is_sorted(), "out of order: {came:?}");
        }
    }
}
