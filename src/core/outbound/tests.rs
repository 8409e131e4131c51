//! Outbound queues without sockets.

use super::*;

fn text(content: &str) -> EncodedFrame {
    EncodedFrame::text(content.as_bytes())
}

fn urgent(content: &str) -> Chunk {
    Chunk::direct(&text(content), Priority::Emergency, None)
}

fn run_of(bytes: Vec<u8>, frames: u32) -> Chunk {
    let source = (ChannelKey::nth(0), None, SlowConsumer::Disconnect);
    Chunk::published(bytes.into(), frames, Priority::Normal, source)
}

fn published(content: &str, channel: u64, offset: u64, policy: SlowConsumer) -> Chunk {
    let source = (ChannelKey::nth(channel), Some(offset), policy);
    Chunk::published(text(content).bytes().clone(), 1, Priority::Normal, source)
}

fn drops(channel: u64, frames: usize, offset: u64, policy: SlowConsumer) -> Dropped {
    Dropped {
        channel: Some(ChannelKey::nth(channel)),
        frames,
        offset: NonZeroU64::new(offset),
        policy,
    }
}

/// Writes up to `count` bytes as a socket would.
fn write(queue: &mut Outbound, count: usize, wire: &mut Vec<u8>) {
    let mut slices = [IoSlice::new(&[]); 8];
    let filled = queue.fill(&mut slices);
    let bytes: Vec<u8> = slices[..filled]
        .iter()
        .flat_map(|slice| slice.to_vec())
        .take(count)
        .collect();
    queue.advance(bytes.len());
    wire.extend(bytes);
}

fn payloads(mut wire: &[u8]) -> Vec<String> {
    let mut payloads = Vec::new();
    while !wire.is_empty() {
        let end = frame::frame_end(wire, 1);
        let header = frame::read_header(wire)
            .expect("valid")
            .expect("whole")
            .header_len;
        payloads.push(String::from_utf8_lossy(&wire[header..end]).into_owned());
        wire = &wire[end..];
    }
    payloads
}

#[test]
fn an_urgent_frame_overtakes_at_the_next_frame_boundary() {
    let mut queue = Outbound::default();
    let run = [text("one"), text("two"), text("three")];
    let bytes: Vec<u8> = run
        .iter()
        .flat_map(|frame| frame.bytes().to_vec())
        .collect();
    queue.push(run_of(bytes, 3));
    let mut wire = Vec::new();
    write(&mut queue, 7, &mut wire);
    queue.push(urgent("fire"));
    queue.push(urgent("flood"));
    assert_eq!(queue.frames(), 4);
    write(&mut queue, 1000, &mut wire);
    assert_eq!(payloads(&wire), ["one", "two", "fire", "flood", "three"]);
    assert_eq!((queue.bytes(), queue.frames()), (0, 0));
}

#[test]
fn an_urgent_frame_stays_behind_the_first_words() {
    for written in [0, 1, 8] {
        let mut queue = Outbound::default();
        queue.push(Chunk::first_words(Bytes::from_static(b"HTTP/1.1 101")));
        queue.push(Chunk::first_words(text("welcome").bytes().clone()));
        queue.push(text("later").into());
        let mut wire = Vec::new();
        write(&mut queue, written, &mut wire);
        queue.push(urgent("fire"));
        write(&mut queue, 1000, &mut wire);
        assert_eq!(&wire[..12], b"HTTP/1.1 101");
        assert_eq!(payloads(&wire[12..]), ["welcome", "fire", "later"]);
    }
}

#[test]
fn clearing_keeps_the_half_written_frame_whole() {
    let mut queue = Outbound::default();
    queue.push(text("one").into());
    queue.push(text("two").into());
    let mut wire = Vec::new();
    write(&mut queue, 2, &mut wire);
    let dropped: usize = queue
        .clear_waiting()
        .iter()
        .map(|dropped| dropped.frames)
        .sum();
    assert_eq!(dropped, 1);
    queue.push(text("end").into());
    write(&mut queue, 1000, &mut wire);
    assert_eq!(payloads(&wire), ["one", "end"]);
}

#[test]
fn higher_lanes_go_first_and_last_words_last() {
    let mut queue = Outbound::default();
    let mut wire = Vec::new();
    queue.push(text("begun").into());
    write(&mut queue, 2, &mut wire);
    queue.push(Chunk::last_words(text("bye").bytes().clone()));
    for (name, priority) in [
        ("low", Priority::Low),
        ("normal", Priority::Normal),
        ("high", Priority::High),
        ("emergency", Priority::Emergency),
        ("low 2", Priority::Low),
        ("high 2", Priority::High),
    ] {
        queue.push(Chunk::direct(&text(name), priority, None));
    }
    write(&mut queue, 1000, &mut wire);
    let wanted = [
        "begun",
        "emergency",
        "high",
        "high 2",
        "normal",
        "low",
        "low 2",
        "bye",
    ];
    assert_eq!(payloads(&wire), wanted);
}

#[test]
fn what_is_dropped_follows_the_channels_policies() {
    let mut queue = Outbound::default();
    queue.push(text("begun").into());
    let mut wire = Vec::new();
    write(&mut queue, 2, &mut wire);
    for offset in 1..=3 {
        queue.push(published("old", 2, offset, SlowConsumer::DropOldest));
        queue.push(published("kept", 3, offset, SlowConsumer::Disconnect));
    }
    queue.push(urgent("fire"));
    let one = CHUNK_OVERHEAD + text("old").len();
    let dropped = queue.drop_oldest(queue.weight_behind() - one - 1);
    assert_eq!(dropped, [drops(2, 2, 2, SlowConsumer::DropOldest)]);
    let dropped = queue.drop_oldest(0);
    assert_eq!(dropped, [drops(2, 1, 3, SlowConsumer::DropOldest)]);
    write(&mut queue, 1000, &mut wire);
    assert_eq!(payloads(&wire), ["begun", "fire", "kept", "kept", "kept"]);
    assert_eq!((queue.bytes(), queue.frames()), (0, 0));
}

#[test]
fn the_lowest_lane_is_dropped_first_and_emergencies_never_are() {
    let mut queue = Outbound::default();
    for (content, priority) in [
        ("high", Priority::High),
        ("low", Priority::Low),
        ("fire", Priority::Emergency),
        ("normal", Priority::Normal),
    ] {
        let source = (ChannelKey::nth(1), Some(1), SlowConsumer::DropOldest);
        let bytes = text(content).bytes().clone();
        queue.push(Chunk::published(bytes, 1, priority, source));
    }
    for left in [
        &["fire", "high", "normal"][..],
        &["fire", "high"],
        &["fire"],
    ] {
        assert_eq!(queue.drop_oldest(queue.weight_behind() - 1).len(), 1);
        let waiting: Vec<u8> = queue
            .chunks
            .iter()
            .flat_map(|chunk| chunk.bytes.to_vec())
            .collect();
        assert_eq!(payloads(&waiting), left);
    }
    assert!(queue.drop_oldest(0).is_empty());
}

#[test]
fn what_waits_behind_the_first_is_weighed_without_it() {
    let mut queue = Outbound::default();
    assert_eq!(queue.weight_behind(), 0);
    queue.push(text(&"x".repeat(5000)).into());
    assert_eq!(queue.weight_behind(), 0);
    write(&mut queue, 1000, &mut Vec::new());
    queue.push(text("next").into());
    assert_eq!(queue.weight_behind(), CHUNK_OVERHEAD + text("next").len());
}

#[test]
fn an_emergency_that_is_half_written_is_not_written() {
    let mut queue = Outbound::default();
    let receipt = Arc::new(Receipt {
        message: 7,
        ..Receipt::default()
    });
    let frame = text("fire");
    queue.push(Chunk::direct(&frame, Priority::Emergency, Some(receipt)));
    queue.push(text("other").into());
    write(&mut queue, 3, &mut Vec::new());
    let unwritten = queue.unwritten_emergencies();
    let unwritten: Vec<_> = unwritten
        .iter()
        .map(|each| (each.message, &each.frame))
        .collect();
    assert_eq!(unwritten, [(7, &frame)]);
    queue.discard();
    assert_eq!((queue.bytes(), queue.frames()), (frame.len() - 3, 1));
    assert_eq!(queue.unwritten_emergencies().len(), 1);
    write(&mut queue, frame.len(), &mut Vec::new());
    assert!(queue.unwritten_emergencies().is_empty());
}

#[test]
fn a_receipt_is_signed_when_the_last_byte_has_left() {
    let receipt = Arc::new(Receipt::default());
    let mut queue = Outbound::default();
    let frame = text("one");
    queue.push(Chunk::direct(
        &frame,
        Priority::Normal,
        Some(Arc::clone(&receipt)),
    ));
    let written = || receipt.written.load(std::sync::atomic::Ordering::Relaxed);
    write(&mut queue, frame.len() - 1, &mut Vec::new());
    assert_eq!(written(), 0);
    write(&mut queue, 1, &mut Vec::new());
    assert_eq!(written(), 1);
}
