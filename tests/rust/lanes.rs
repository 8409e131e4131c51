//! The outbound queue against a model: frames in lanes, whatever is pushed, written and dropped in whatever order.

use _tantor::base::priority::{Priority, SlowConsumer};
use _tantor::core::hub::ChannelKey;
use _tantor::core::outbound::{Chunk, Dropped, Outbound};
use _tantor::wire::frame::{EncodedFrame, frame_end, read_header};
use proptest::prelude::*;
use std::io::IoSlice;
use std::num::NonZeroU64;

const LANES: [Priority; 4] = [
    Priority::Emergency,
    Priority::High,
    Priority::Normal,
    Priority::Low,
];

const POLICIES: [SlowConsumer; 3] = [
    SlowConsumer::Disconnect,
    SlowConsumer::DropOldest,
    SlowConsumer::Latest,
];

#[derive(Clone, Debug)]
enum Step {
    /// Lane, policy (also the channel), and frames in a run of those that are never dropped.
    Push(usize, usize, u32),
    Write(usize),
    Dropped(usize),
    Conflate,
    Clear,
}

#[derive(Clone, Debug)]
struct Frame {
    name: String,
    bytes: Vec<u8>,
    lane: usize,
    policy: SlowConsumer,
    offset: u64,
}

/// Frames in the order in which they are to leave, and how much of the first has left.
#[derive(Default)]
struct Model {
    frames: Vec<Frame>,
    written: usize,
    left: Vec<String>,
}

impl Model {
    fn push(&mut self, frame: Frame) {
        let begun = usize::from(self.written > 0);
        let ahead = |other: &&Frame| other.lane <= frame.lane;
        let at = begun + self.frames[begun..].iter().take_while(ahead).count();
        self.frames.insert(at, frame);
    }

    fn write(&mut self, mut count: usize) {
        while count > 0 {
            let rest = self.frames[0].bytes.len() - self.written;
            if count < rest {
                self.written += count;
                return;
            }
            count -= rest;
            self.written = 0;
            self.left.push(self.frames.remove(0).name);
        }
    }

    /// Takes out the first `count`, in the order in which they are dropped, of those that `goes` says.
    fn drop(&mut self, count: usize, goes: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let mut dropped = Vec::new();
        for lane in (1..LANES.len()).rev() {
            let mut at = usize::from(self.written > 0);
            while at < self.frames.len() && dropped.len() < count {
                if self.frames[at].lane == lane && goes(&self.frames[at]) {
                    dropped.push(self.frames.remove(at));
                } else {
                    at += 1;
                }
            }
        }
        dropped
    }

    fn bytes(&self) -> usize {
        self.frames
            .iter()
            .map(|frame| frame.bytes.len())
            .sum::<usize>()
            - self.written
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..LANES.len(), 0..POLICIES.len(), 1_u32..4).prop_map(|(lane, policy, frames)| Step::Push(lane, policy, frames)),
        4 => (0_usize..60).prop_map(Step::Write),
        2 => (0_usize..1500).prop_map(Step::Dropped),
        1 => Just(Step::Conflate),
        1 => Just(Step::Clear),
    ]
}

fn payloads(mut wire: &[u8]) -> Vec<String> {
    let mut payloads = Vec::new();
    while !wire.is_empty() {
        let end = frame_end(wire, 1);
        let header = read_header(wire).unwrap().unwrap().header_len;
        payloads.push(String::from_utf8_lossy(&wire[header..end]).into_owned());
        wire = &wire[end..];
    }
    payloads
}

fn write(queue: &mut Outbound, count: usize, wire: &mut Vec<u8>) -> usize {
    let mut slices = [IoSlice::new(&[]); 8];
    let filled = queue.fill(&mut slices);
    let bytes: Vec<u8> = slices[..filled]
        .iter()
        .flat_map(|slice| slice.to_vec())
        .take(count)
        .collect();
    queue.advance(bytes.len());
    wire.extend(&bytes);
    bytes.len()
}

/// The key of a channel: in the property test, of the one with a policy.
fn key(channel: usize) -> ChannelKey {
    ChannelKey::nth(channel as u64)
}

/// What a queue says that it dropped, against what the model says.
fn check_dropped(told: &[Dropped], model: &[Frame]) -> Result<(), TestCaseError> {
    let frames: usize = told.iter().map(|dropped| dropped.frames).sum();
    prop_assert_eq!(frames, model.len());
    for dropped in told {
        let channels = POLICIES.iter().enumerate();
        let mut channels = channels.map(|(number, policy)| (key(number), *policy));
        prop_assert!(
            channels
                .any(|channel| (dropped.channel, dropped.policy) == (Some(channel.0), channel.1))
        );
        let of_channel = model.iter().filter(|frame| frame.policy == dropped.policy);
        prop_assert_eq!(dropped.frames, of_channel.clone().count());
        prop_assert_eq!(
            dropped.offset,
            of_channel
                .filter_map(|frame| NonZeroU64::new(frame.offset))
                .max()
        );
    }
    Ok(())
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (mut queue, mut model, mut wire) = (Outbound::default(), Model::default(), Vec::new());
    let mut counted = 0_usize;
    let mut offset = 0;
    for (number, step) in steps.into_iter().enumerate() {
        let before = queue.frames();
        match step {
            Step::Push(lane, policy, frames) => {
                let is_run = POLICIES[policy] == SlowConsumer::Disconnect;
                let frames = if is_run { frames } else { 1 };
                let mut bytes = Vec::new();
                for part in 0..frames {
                    offset += 1;
                    let name = format!("{number}.{part}");
                    let encoded = EncodedFrame::text(name.as_bytes()).bytes().to_vec();
                    bytes.extend(&encoded);
                    model.push(Frame {
                        name,
                        bytes: encoded,
                        lane,
                        policy: POLICIES[policy],
                        offset,
                    });
                }
                let source = (key(policy), Some(offset), POLICIES[policy]);
                let chunk = Chunk::published(bytes.into(), frames, LANES[lane], source);
                counted = counted.wrapping_add_signed(queue.push(chunk));
                prop_assert_eq!(counted, queue.frames());
                continue;
            }
            Step::Write(count) => {
                let written = write(&mut queue, count, &mut wire);
                model.write(written);
            }
            Step::Dropped(limit) => {
                let told = queue.drop_oldest(limit);
                let goes = |frame: &Frame| frame.policy == SlowConsumer::DropOldest;
                let count = told.iter().map(|dropped| dropped.frames).sum();
                check_dropped(&told, &model.drop(count, goes))?;
                // no more than had to be, and as many as could be
                if queue.weight_behind() > limit {
                    prop_assert!(model.drop(usize::MAX, goes).is_empty());
                }
            }
            Step::Conflate => {
                let told = queue.conflate(key(2));
                let goes = |frame: &Frame| frame.policy == SlowConsumer::Latest;
                check_dropped(&told, &model.drop(usize::MAX, goes))?;
                prop_assert!(
                    !queue.has_older(key(2))
                        || model
                            .frames
                            .iter()
                            .any(|frame| goes(frame) && frame.lane == 0)
                );
            }
            Step::Clear => {
                let told = queue.clear_waiting();
                check_dropped(&told, &model.drop(usize::MAX, |_| true))?;
            }
        }
        counted = counted + queue.frames() - before;
        prop_assert_eq!(queue.bytes(), model.bytes());
        prop_assert!(queue.frames() >= model.frames.len());
        prop_assert_eq!(queue.is_empty(), model.frames.is_empty());
    }
    while !queue.is_empty() {
        let written = write(&mut queue, 50, &mut wire);
        model.write(written);
    }
    prop_assert_eq!(payloads(&wire), model.left);
    prop_assert_eq!((queue.bytes(), queue.frames(), queue.weight()), (0, 0, 0));
    Ok(())
}

fn frame(content: &str) -> Vec<u8> {
    EncodedFrame::text(content.as_bytes()).bytes().to_vec()
}

fn publication(content: &str, channel: usize, offset: u64, policy: SlowConsumer) -> Chunk {
    let source = (key(channel), Some(offset), policy);
    Chunk::published(frame(content).into(), 1, Priority::Normal, source)
}

#[test]
fn only_the_newest_of_a_channel_that_is_conflated_waits_but_for_what_is_begun() {
    let mut queue = Outbound::default();
    let mut wire = Vec::new();
    queue.push(publication("one", 1, 1, SlowConsumer::Latest));
    write(&mut queue, 2, &mut wire);
    assert!(!queue.has_older(key(1)) && queue.conflate(key(1)).is_empty());
    queue.push(publication("two", 1, 2, SlowConsumer::Latest));
    queue.push(publication("notice", 1, 0, SlowConsumer::DropOldest));
    queue.push(publication("other", 2, 5, SlowConsumer::Latest));
    assert!(queue.has_older(key(1)));
    let dropped = Dropped {
        channel: Some(key(1)),
        frames: 1,
        offset: NonZeroU64::new(2),
        policy: SlowConsumer::Latest,
    };
    assert_eq!(queue.conflate(key(1)), [dropped]);
    queue.push(publication("three", 1, 3, SlowConsumer::Latest));
    write(&mut queue, 1000, &mut wire);
    assert_eq!(payloads(&wire), ["one", "notice", "other", "three"]);
}

#[test]
fn frames_are_counted_right_when_a_run_that_is_half_written_is_overtaken() {
    let mut queue = Outbound::default();
    let run: Vec<u8> = (0..10).flat_map(|_| frame("run")).collect();
    let source = (key(1), Some(10), SlowConsumer::Disconnect);
    let mut waiting = queue.push(Chunk::published(run.into(), 10, Priority::Normal, source));
    write(&mut queue, 3 * frame("run").len() + 1, &mut Vec::new());
    let urgent = EncodedFrame::text(b"fire");
    waiting += queue.push(Chunk::direct(&urgent, Priority::Emergency, None));
    assert_eq!((waiting, queue.frames()), (8, 8));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_is_pushed_written_and_dropped_leaves_whole_and_in_order(steps in prop::collection::vec(step(), 1..80)) {
        run(steps)?;
    }
}
