//! What every broker and every store must do, run against each that there is.

use _tantor::broker::{Broker, MemoryBroker, StreamPosition};
use _tantor::frame::EncodedFrame;
use _tantor::store::{MemoryStore, Store};
use std::sync::{Arc, Mutex};

fn stores() -> Vec<(&'static str, Arc<dyn Store>)> {
    vec![("memory", Arc::new(MemoryStore::default()))]
}

fn brokers() -> Vec<(&'static str, Arc<dyn Broker>)> {
    stores()
        .into_iter()
        .map(|(name, store)| {
            (
                name,
                Arc::new(MemoryBroker::new(store, 7)) as Arc<dyn Broker>,
            )
        })
        .collect()
}

fn frame() -> EncodedFrame {
    EncodedFrame::text(b"{}")
}

#[test]
fn positions_are_gapless_and_handed_over_in_order_from_eight_threads() {
    for (name, broker) in brokers() {
        let handed_over = Arc::new(Mutex::new(Vec::new()));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (broker, handed_over) = (Arc::clone(&broker), Arc::clone(&handed_over));
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        let mut seen = None;
                        let returned = broker.open("a").publish(&mut |position| {
                            seen = position;
                            handed_over.lock().unwrap().push(position.unwrap().offset);
                            frame()
                        });
                        assert_eq!(returned, seen);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(
            *handed_over.lock().unwrap(),
            (1..=1600).collect::<Vec<_>>(),
            "{name}"
        );
        assert_eq!(broker.open("a").top().offset, 1600, "{name}");
        assert_eq!(
            broker.open("b").top().offset,
            0,
            "{name}: channels count apart"
        );
    }
}

#[test]
fn notices_take_no_position() {
    for (name, broker) in brokers() {
        let stream = broker.open("a");
        let mut positions = Vec::new();
        stream.publish(&mut |position| {
            positions.push(position);
            frame()
        });
        stream.notify(&mut |position| {
            positions.push(position);
            frame()
        });
        assert!(positions[0].is_some() && positions[1].is_none(), "{name}");
        assert_eq!(stream.top().offset, 1, "{name}");
    }
}

#[test]
fn a_closed_channel_takes_nothing_and_begins_anew() {
    for (name, broker) in brokers() {
        let old = broker.open("a");
        old.publish(&mut |_| frame());
        broker.close("a");
        let published = old.publish(&mut |_| panic!("handed over on a closed channel"));
        assert_eq!(published, None, "{name}");
        let again = broker.open("a").publish(&mut |_| frame());
        assert_eq!(again.map(|position| position.offset), Some(1), "{name}");
    }
}

#[test]
fn a_store_knows_the_last_position_until_it_forgets() {
    for (name, store) in stores() {
        assert_eq!(store.top("a"), None, "{name}");
        for offset in 1..=3 {
            store.append("a", StreamPosition { epoch: 5, offset }, &frame());
        }
        store.append(
            "b",
            StreamPosition {
                epoch: 5,
                offset: 1,
            },
            &frame(),
        );
        assert_eq!(
            store.top("a"),
            Some(StreamPosition {
                epoch: 5,
                offset: 3
            }),
            "{name}"
        );
        store.forget("a");
        assert_eq!(store.top("a"), None, "{name}");
        assert_eq!(
            store.top("b"),
            Some(StreamPosition {
                epoch: 5,
                offset: 1
            }),
            "{name}"
        );
    }
}

#[test]
fn a_broker_goes_on_where_its_store_left_off() {
    for (name, store) in stores() {
        store.append(
            "a",
            StreamPosition {
                epoch: 3,
                offset: 41,
            },
            &frame(),
        );
        let broker = MemoryBroker::new(store, 9);
        let position = broker.open("a").publish(&mut |_| frame());
        assert_eq!(
            position.unwrap(),
            StreamPosition {
                epoch: 3,
                offset: 42
            },
            "{name}"
        );
        assert_eq!(
            broker.open("new").publish(&mut |_| frame()).unwrap(),
            StreamPosition {
                epoch: 9,
                offset: 1
            },
            "{name}"
        );
    }
}
