//! What a broker promises when it fails, and when it loses deliveries.

use crate::adversary::{Adversary, Behaviour};
use crate::contract::{BODY, attach, kept, offset, outcome, outgoing, publish, settings};
use crate::peer::history_limits;
use crate::stores::every_store;
use _tantor::adapters::memory_broker::MemoryBroker;
use _tantor::core::history::StreamPosition;
use _tantor::ports::broker::{Broker, Delivered, Failure, IdempotencyKey, Sink};
use _tantor::settings::channel_kind::ChannelKind;
use std::sync::{Arc, Mutex};

/// An adversary over each store.
fn adversaries(behaviour: Behaviour) -> Vec<(&'static str, Adversary, tempfile::TempDir)> {
    let adversary =
        |(name, store, folder): (&'static str, Arc<dyn _tantor::ports::store::Store>, _)| {
            store.open().unwrap();
            let broker = MemoryBroker::new(store, history_limits(1 << 20));
            (name, Adversary::new(Arc::new(broker), behaviour), folder)
        };
    every_store().into_iter().map(adversary).collect()
}

fn failing(unavailable: u64, unknown: u64, lost: u64) -> Behaviour {
    Behaviour {
        seed: 3,
        unavailable,
        unknown,
        lost,
        ..Behaviour::LATE
    }
}

#[test]
fn an_unavailable_broker_has_done_nothing() {
    for (name, broker, _folder) in adversaries(failing(50, 0, 0)) {
        let stream = attach(&broker, "a");
        let mut made = Vec::new();
        for _ in 0..100 {
            match publish(&*stream) {
                Ok(receipt) => made.push(offset(Ok(receipt))),
                Err(Failure::Unavailable(_)) => {}
                Err(other) => panic!("{name}: {other:?}"),
            }
        }
        assert!((10..90).contains(&made.len()), "{name}: {}", made.len());
        let wanted: Vec<u64> = (1..=made.len() as u64).collect();
        assert_eq!(made, wanted, "{name}: a failure takes no position");
    }
}

#[test]
fn a_retry_after_unknown_gives_the_first_receipt() {
    for (name, broker, _folder) in adversaries(failing(20, 50, 0)) {
        let stream = attach(&broker, "a");
        let mut unknown = 0;
        for number in 1..=50 {
            let text = number.to_string();
            let key = IdempotencyKey {
                client: None,
                channel: "a",
                key: &text,
            };
            let mut may_be_made = false;
            let receipt = loop {
                match outcome(|later| stream.publish(&outgoing(BODY, Some(key)), later)) {
                    Ok(receipt) => break receipt,
                    Err(Failure::Unknown(_)) => may_be_made = true,
                    Err(Failure::Unavailable(_)) => {}
                    Err(other) => panic!("{name}: {other:?}"),
                }
            };
            unknown += usize::from(may_be_made);
            assert_eq!(receipt.is_duplicate, may_be_made, "{name}");
            assert_eq!(offset(Ok(receipt)), number, "{name}: published once");
        }
        assert!(unknown > 10, "{name}: {unknown}");
    }
}

/// What came to a sink: deliveries, and gaps up to an offset.
#[derive(Default)]
struct Heard(Mutex<Vec<(bool, u64)>>);

impl Sink for Heard {
    fn deliver(&self, delivered: &Delivered<'_>) -> usize {
        let position = delivered.position;
        self.0.lock().unwrap().push((true, position.offset));
        1
    }

    fn gap(&self, top: Option<StreamPosition>) {
        self.0.lock().unwrap().push((false, top.unwrap().offset));
    }

    fn subscribers(&self) -> usize {
        1
    }
}

#[test]
fn a_gap_is_told_for_what_is_lost_before_the_next_delivery() {
    for (name, broker, _folder) in adversaries(failing(0, 0, 30)) {
        let heard = Arc::new(Heard::default());
        let sink = Arc::clone(&heard) as Arc<dyn Sink>;
        let stream = broker.attach(&Arc::from("a"), ChannelKind::Public, settings(), &sink);
        for _ in 0..100 {
            publish(&*stream).unwrap();
        }
        assert_eq!(kept(&*stream).len(), 100, "{name}: the history has all");
        let mut reached = 0;
        let mut gaps = 0;
        for (is_delivered, offset) in heard.0.lock().unwrap().iter() {
            if *is_delivered {
                assert_eq!(*offset, reached + 1, "{name}: no gap was told");
            } else {
                assert!(*offset > reached, "{name}: nothing was lost");
                gaps += 1;
            }
            reached = *offset;
        }
        assert!(gaps > 10, "{name}: {gaps}");
    }
}
