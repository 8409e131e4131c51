//! One order per channel, the same for every subscriber, whoever publishes.

use crate::peer::{Served, broadcast};
use std::sync::Arc;

const PUBLISHERS: usize = 8;
const EACH: usize = 500;

#[test]
fn every_subscriber_sees_the_same_order_under_eight_publishing_threads() {
    let served = Served::with(&[("shards", 4), ("max_pending_bytes", 1 << 28)]);
    let mut peers: Vec<_> = (0..12).map(|_| served.client()).collect();
    for peer in &mut peers {
        peer.text(r#"{"action":"join_channel","channel":"ordered"}"#);
        peer.json_where(|message| message["channel"] == "ordered");
    }
    let readers: Vec<_> = peers
        .into_iter()
        .map(|mut peer| {
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                while seen.len() < PUBLISHERS * EACH {
                    let message = peer.json();
                    if message["event"] == "n" {
                        seen.push(
                            message["data"]
                                .as_array()
                                .unwrap()
                                .iter()
                                .map(|n| n.as_u64().unwrap())
                                .collect::<Vec<_>>(),
                        );
                    }
                }
                seen
            })
        })
        .collect();
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| {
            let node = Arc::clone(served.0.node());
            std::thread::spawn(move || {
                for number in 0..EACH {
                    let recipients = broadcast(
                        &node,
                        "ordered",
                        "n",
                        format!("[{publisher},{number}]").as_bytes(),
                    );
                    assert_eq!(recipients, 12);
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.join().unwrap();
    }
    let seen: Vec<_> = readers
        .into_iter()
        .map(|reader| reader.join().unwrap())
        .collect();
    for other in &seen[1..] {
        assert!(*other == seen[0], "two subscribers saw different orders");
    }
    // and each publisher's own messages in the order in which it published them
    for publisher in 0..PUBLISHERS as u64 {
        let own: Vec<u64> = seen[0]
            .iter()
            .filter(|pair| pair[0] == publisher)
            .map(|pair| pair[1])
            .collect();
        assert_eq!(own, (0..EACH as u64).collect::<Vec<_>>());
    }
}
