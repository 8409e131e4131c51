//! What every implementation of the port for mail must do.

use crate::adversary::Behaviour;
use crate::mail_tested::{
    HOUR, Process, Tested, address, claim_number, ids, letter, limits, memory, send_all,
    send_counted, tested, tested_with, while_sending,
};
use crate::peer::eventually;
use _tantor::adapters::memory_mail::MailLimits;
use _tantor::base::clock::WallTime;
use _tantor::base::priority::Priority;
use _tantor::core::idempotency::LostFlag;
use _tantor::core::outbound::Unwritten;
use _tantor::ports::calls::Sent;
use _tantor::ports::claim::ClaimNumber;
use _tantor::ports::durability::{KeyResult, UsedKey};
use _tantor::ports::mail::{Acknowledged, Backlog, Instead, Letter, MailDrop, MailStep, Opening};
use _tantor::ports::saved_sessions::SavedMail;
use _tantor::wire::frame::EncodedFrame;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

#[test]
fn what_waits_comes_first_and_all_in_the_order_of_sending() {
    for Tested { name, one, .. } in tested() {
        send_all(&one, "dumbo", 0..20);
        assert_eq!(one.backlog("dumbo").waiting, 20, "{name}");
        one.open("dumbo", 1, false);
        send_all(&one, "dumbo", 20..40);
        one.settle();
        assert_eq!(one.sink.at(1), ids(0..40), "{name}");
        assert_eq!(one.mail.size().messages, 0, "{name}");
        let absent = one.sink.absent.lock().unwrap().clone();
        assert_eq!(
            absent,
            ids(0..20)
                .iter()
                .map(|id| (*id, Instead::Kept))
                .collect::<Vec<_>>()
        );
        assert_eq!(one.sink.steps(MailStep::Removed), ids(0..20), "{name}");
    }
}

#[test]
fn a_client_that_acknowledges_gets_everything_again_until_it_does() {
    for Tested { name, one, .. } in tested() {
        one.open("dumbo", 1, true);
        send_all(&one, "dumbo", 0..4);
        let wants_ack = |frame: &EncodedFrame| frame.payload().ends_with(b",\"ack\":true}");
        one.settle();
        assert!(
            one.sink
                .handed_over
                .lock()
                .unwrap()
                .iter()
                .all(|got| wants_ack(&got.2))
        );
        let taken = one.acknowledge("dumbo", 1, &[1, 7, 3]);
        let wanted = Acknowledged {
            count: 2,
            unknown: Some(7),
        };
        assert_eq!(taken, wanted, "{name}");
        one.close("dumbo", 1);
        one.open("dumbo", 2, true);
        one.settle();
        assert_eq!(one.sink.at(2), [0, 2], "{name}");
        assert_eq!(one.acknowledge("dumbo", 2, &[0, 2]).count, 2, "{name}");
        one.settle();
        assert_eq!(
            one.sink.steps(MailStep::Acknowledged),
            [1, 3, 0, 2],
            "{name}"
        );
        assert_eq!(one.mail.size().messages, 0, "{name}");
    }
}

#[test]
fn nothing_is_lost_while_a_connection_opens() {
    for Tested { name, one, .. } in tested() {
        let sent = AtomicU64::new(0);
        let last = thread::scope(|scope| {
            scope.spawn(|| send_counted(&one, "dumbo", 0..500, &sent));
            while_sending(&sent, 500, |claim| {
                one.open("dumbo", claim, false);
                if claim % 2 == 0 {
                    one.close("dumbo", claim);
                }
            })
        });
        one.open("dumbo", last + 1, false);
        one.settle();
        let got: Vec<u64> = (1..=last + 1)
            .flat_map(|claim| one.sink.at(claim as u32))
            .collect();
        assert_eq!(got, ids(0..500), "{name}: {last} connections");
    }
}

#[test]
fn a_stale_claim_changes_nothing() {
    for Tested { name, one, .. } in tested() {
        one.open("dumbo", 2, true);
        send_all(&one, "dumbo", 0..1);
        one.open("dumbo", 1, false);
        one.open("dumbo", 2, false);
        one.close("dumbo", 1);
        one.mail.forget("dumbo", Some(claim_number(1)));
        one.mail.forget("dumbo", None);
        let stale = Acknowledged {
            count: 0,
            unknown: Some(0),
        };
        assert_eq!(one.acknowledge("dumbo", 1, &[0]), stale, "{name}");
        send_all(&one, "dumbo", 1..2);
        one.settle();
        assert_eq!(one.sink.at(2), [0, 1], "{name}");
        assert_eq!(one.acknowledge("dumbo", 2, &[0, 1]).count, 2, "{name}");
        // a claim that has ended does not open again
        one.close("dumbo", 2);
        one.open("dumbo", 2, true);
        send_all(&one, "dumbo", 2..3);
        assert_eq!(one.backlog("dumbo").waiting, 1, "{name}");
        // nor does one whose connection did not come
        one.close("dumbo", 3);
        one.open("dumbo", 3, true);
        assert_eq!(one.backlog("dumbo").waiting, 1, "{name}");
        // the client does not return; the next one of this id gets its mail
        one.mail.forget("dumbo", Some(claim_number(3)));
        one.open("dumbo", 1, false);
        one.settle();
        assert_eq!(one.sink.at(1), [2], "{name}");
    }
}

#[test]
fn nothing_is_lost_while_a_client_moves_between_two_processes() {
    const SENT: u64 = 1500;
    for Tested { name, one, other } in tested() {
        let sent = AtomicU64::new(0);
        let claim = thread::scope(|scope| {
            for (process, first) in [(&one, 0), (&other, SENT)] {
                let sent = &sent;
                scope.spawn(move || {
                    send_counted(process, "dumbo", first..first + SENT, sent);
                });
            }
            while_sending(&sent, 2 * SENT, |claim| {
                let process = if claim % 2 == 0 { &one } else { &other };
                process.open("dumbo", claim, claim % 7 == 0);
                if claim % 5 == 0 {
                    process.close("dumbo", claim);
                }
            })
        });
        one.settle();
        other.settle();
        one.open("dumbo", claim + 1, false);
        one.settle();
        let mut first: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for claim in 1..=claim + 1 {
            let at = |process: &Process| process.sink.at(claim as u32);
            for id in at(&one).into_iter().chain(at(&other)) {
                if seen.insert(id) {
                    first.entry(id / SENT).or_default().push(id);
                }
            }
        }
        assert_eq!(seen.len() as u64, 2 * SENT, "{name}: after {claim} moves");
        for (sender, got) in first {
            assert!(got.is_sorted(), "{name}: out of order from {sender}");
        }
    }
}

#[test]
fn a_repeat_under_a_key_sends_nothing_and_waits_for_the_first() {
    for Tested { name, one, .. } in tested() {
        one.open("dumbo", 1, false);
        let keyed = |client, id| Letter {
            key: Some("order 7"),
            ..letter(client, id)
        };
        let sent: Vec<Sent> = thread::scope(|scope| {
            let one = &one;
            let threads: Vec<_> = (0..8)
                .map(|id| scope.spawn(move || one.send(&keyed("dumbo", id)).unwrap()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        one.settle();
        let first = one.sink.at(1);
        assert_eq!(first.len(), 1, "{name}");
        assert!(sent.iter().all(|sent| sent.stamp.id == first[0]), "{name}");
        assert_eq!(
            sent.iter().filter(|sent| !sent.is_duplicate).count(),
            1,
            "{name}"
        );
        assert!(
            !one.send(&keyed("jumbo", 9)).unwrap().is_duplicate,
            "{name}: keys count apart"
        );
        assert_eq!(one.mail.keys(), (2, 0), "{name}");
    }
}

#[test]
fn after_an_unknown_outcome_a_retry_under_the_key_sends_once() {
    for seed in 1..=20 {
        let behaviour = Behaviour {
            seed,
            unavailable: 30,
            unknown: 50,
            ..Behaviour::LATE
        };
        let one = Process::adversary(memory(limits()), behaviour);
        let opening = Opening {
            claim: ClaimNumber::FIRST,
            address: address(1),
            acknowledges: false,
        };
        one.mail.open(&Arc::from("dumbo"), opening);
        let mut reported = Vec::new();
        for number in 0..20 {
            let key = number.to_string();
            let retries = (0..1000).find_map(|retry| {
                let letter = Letter {
                    key: Some(&key),
                    ..letter("dumbo", number * 1000 + retry)
                };
                one.send(&letter).ok()
            });
            reported.push(retries.unwrap().stamp.id);
        }
        one.settle();
        assert_eq!(one.sink.at(1), reported, "seed {seed}");
    }
}

#[test]
fn nothing_is_handed_over_after_its_time_and_the_welcome_tells_of_it_until_confirmed() {
    for Tested { name, one, .. } in tested() {
        let short = Letter {
            ttl: Duration::from_millis(1),
            ..letter("dumbo", 1)
        };
        one.send(&short).unwrap();
        send_all(&one, "dumbo", 2..3);
        eventually("the first has expired", || {
            one.backlog("dumbo").waiting == 1
        });
        let mut is_told = false;
        for claim in 1..=2 {
            assert_eq!(one.backlog("dumbo").dropped, 1, "{name}");
            let opened = one.open("dumbo", claim, false);
            is_told = opened.is_some_and(|backlog| backlog.dropped == 1);
            one.close("dumbo", claim);
        }
        one.open("dumbo", 3, false);
        one.mail.confirm("dumbo", claim_number(3));
        let untold = u64::from(!is_told);
        assert_eq!(one.backlog("dumbo").dropped, untold, "{name}");
        assert_eq!(is_told, name == "memory", "{name}");
        one.settle();
        assert_eq!(
            [one.sink.at(1), one.sink.at(2)],
            [vec![2], vec![]],
            "{name}"
        );
        assert_eq!(
            *one.sink.dropped.lock().unwrap(),
            [(1, MailDrop::Expired)],
            "{name}"
        );
        // what expires alone goes at a tick
        one.send(&Letter {
            client: "jumbo",
            ..short
        })
        .unwrap();
        eventually("a tick lets go of what has expired", || {
            one.mail.tick();
            one.mail.size().messages == 0
        });
    }
}

#[test]
fn a_welcome_tells_exactly_what_was_dropped_before_the_first_message_that_follows() {
    let limits = MailLimits {
        mailbox_size: 2,
        ..limits()
    };
    let one = Process::memory(memory(limits));
    let sent = AtomicU64::new(0);
    let opened = AtomicU64::new(0);
    thread::scope(|scope| {
        // a busy system may run one of the threads alone for long
        let ids = (0..4000).inspect(|id| {
            if *id == 2000 {
                eventually("some were opened", || opened.load(Ordering::Relaxed) > 1);
            }
        });
        scope.spawn(|| send_counted(&one, "dumbo", ids, &sent));
        while_sending(&sent, 4000, |claim| {
            let backlog = one.open("dumbo", claim, true).unwrap();
            if backlog.waiting > 0 {
                let first = one.sink.at(claim as u32)[0];
                assert_eq!(backlog.dropped, first, "those before the first");
            }
            one.close("dumbo", claim);
            opened.store(claim, Ordering::Relaxed);
        });
    });
}

#[test]
fn what_is_not_to_be_kept_is_told_to_be_lost() {
    for Tested { name, one, .. } in tested() {
        let unkept = |id| Letter {
            ttl: Duration::ZERO,
            ..letter("dumbo", id)
        };
        one.send(&unkept(1)).unwrap();
        one.open("dumbo", 1, true);
        one.send(&unkept(2)).unwrap();
        one.close("dumbo", 1);
        one.open("dumbo", 2, true);
        one.settle();
        assert_eq!(
            [one.sink.at(1), one.sink.at(2)],
            [vec![2], vec![]],
            "{name}"
        );
        assert_eq!(
            *one.sink.absent.lock().unwrap(),
            [(1, Instead::Lost)],
            "{name}"
        );
    }
}

#[test]
fn full_mailboxes_lose_the_oldest_and_emergencies_last() {
    let limits = MailLimits {
        mailbox_size: 3,
        ..limits()
    };
    for Tested { name, one, .. } in tested_with(limits) {
        let urgent = Letter {
            priority: Priority::Emergency,
            ..letter("dumbo", 0)
        };
        one.send(&urgent).unwrap();
        send_all(&one, "dumbo", 1..6);
        let wanted = Backlog {
            waiting: 3,
            dropped: 3,
        };
        assert_eq!(one.backlog("dumbo"), wanted, "{name}");
        one.open("dumbo", 1, false);
        one.settle();
        assert_eq!(one.sink.at(1), [0, 4, 5], "{name}");
        assert_eq!(
            *one.sink.dropped.lock().unwrap(),
            [(1, MailDrop::MailboxFull); 3],
            "{name}"
        );
    }
    let limits = MailLimits {
        mailboxes_bytes: 100_000,
        ..crate::mail_tested::limits()
    };
    for Tested { name, one, .. } in tested_with(limits) {
        for client in 0..200 {
            send_all(&one, &format!("client {client}"), 0..1);
        }
        one.settle();
        assert!(one.mail.size().bytes <= 100_000, "{name}");
        assert_eq!(one.backlog("client 0").waiting, 0, "{name}: the oldest");
        assert_eq!(one.backlog("client 199").waiting, 1, "{name}: the newest");
        let dropped = one.sink.dropped.lock().unwrap().clone();
        assert!(dropped.iter().all(|drop| drop.1 == MailDrop::MailboxesFull));
        assert_eq!(dropped.len() + one.mail.size().messages, 200, "{name}");
    }
}

#[test]
fn emergencies_are_kept_for_those_that_may_return_or_acknowledge() {
    let limits = MailLimits {
        ack_timeout: Duration::from_millis(2),
        ..limits()
    };
    let frame = EncodedFrame::text(b"{\"fire\":1,\"ack\":true}");
    for Tested { name, one, .. } in tested_with(limits) {
        for (client, claim, acknowledges) in
            [("away", 1, true), ("plain", 2, false), ("careful", 3, true)]
        {
            one.open(client, claim, acknowledges);
        }
        one.close("away", 1);
        one.mail.expect(&Arc::from("expected"));
        send_all(&one, "unknown", 100..101);
        one.mail.keep_emergency(7, &frame);
        let waiting = ["away", "plain", "careful", "expected", "unknown"]
            .map(|client| one.backlog(client).waiting);
        assert_eq!(waiting, [1, 0, 1, 1, 1], "{name}");
        eventually("the emergency comes again", || {
            one.mail.tick();
            one.sink.at(3).len() >= 2
        });
        for (client, claim) in [("plain", 2), ("careful", 3)] {
            assert_eq!(one.acknowledge(client, claim, &[7]).count, 1, "{name}");
        }
        let again = one.acknowledge("plain", 2, &[7]);
        assert_eq!((again.count, again.unknown), (0, Some(7)), "{name}");
        // a lost connection had not taken the emergency
        let unwritten = Unwritten {
            message: 7,
            frame: frame.clone(),
        };
        one.mail
            .close(&Arc::from("plain"), claim_number(2), vec![unwritten]);
        one.open("plain", 4, false);
        one.open("away", 5, false);
        one.settle();
        assert_eq!([one.sink.at(4), one.sink.at(5)], [[7], [7]], "{name}");
        one.mail.forget("expected", None);
        one.mail.keep_emergency(8, &frame);
        assert_eq!(one.backlog("expected").waiting, 1, "{name}: only the first");
    }
}

#[test]
fn saved_mail_and_keys_come_back() {
    for Tested { name, one, .. } in tested() {
        let saved = |number| SavedMail {
            client: "dumbo".into(),
            number,
            message: 10 + number,
            expires: WallTime::now() + HOUR,
            is_emergency: false,
            frame: EncodedFrame::text(b"{}"),
        };
        let used = UsedKey {
            client: None,
            target: "dumbo".into(),
            key: "order 7".into(),
            expires: WallTime::now() + HOUR,
            result: KeyResult::Sent(letter("dumbo", 11).stamp),
            lost_flag: LostFlag::default(),
        };
        one.mail.restore(vec![saved(1), saved(2)], &[used]);
        // the storage was opened anew
        one.mail.restore(vec![saved(2), saved(3)], &[]);
        let repeat = Letter {
            key: Some("order 7"),
            ..letter("dumbo", 99)
        };
        let sent = one.send(&repeat).unwrap();
        assert_eq!((sent.stamp.id, sent.is_duplicate), (11, true), "{name}");
        one.open("dumbo", 1, false);
        one.settle();
        assert_eq!(one.sink.at(1), [11, 12, 13], "{name}");
    }
}
