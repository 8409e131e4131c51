// The client's session with plain inputs: no sockets, no timers.
import assert from "node:assert/strict";
import test from "node:test";
import { _Session as Session } from "../../python/tantor/js/tantor.js";

const EPOCH = "00000000000000aa";

/** A session and what it did so far. */
class Talk {
  now = 1_000_000;
  shown = [];
  gaps = [];
  errors = [];
  connections = 0;

  constructor(options = {}) {
    this.session = new Session({ clock: () => this.now, ...options });
  }

  /** Frames that the session wants sent, as objects. */
  frames() {
    const frames = this.session.takeFrames().map(text => JSON.parse(text));
    for (const [name, value] of this.session.events.splice(0)) {
      if (name === "message") this.shown.push(value);
      if (name === "gap") this.gaps.push(value);
      if (name === "error") this.errors.push(value.error);
    }
    return frames;
  }

  frame() {
    const frames = this.frames();
    assert.equal(frames.length, 1, JSON.stringify(frames));
    return frames[0];
  }

  receive(...messages) {
    for (const message of messages) this.session.receive(message, 100);
    return this.frames();
  }

  welcome(fields = {}) {
    this.connections += 1;
    return this.receive({ event: "welcome", channel: "system", client_id: "client_1", resume: `token_${this.connections}`, heartbeat_interval: 30, ...fields });
  }

  lose(code) {
    this.session.lost(code);
    return this.frames();
  }

  /** `[promise, its outcome so far]` of what takes a `settle`. */
  ask(method, ...values) {
    const outcome = {};
    this.session[method](...values, { resolve: value => (outcome.value = value), reject: error => (outcome.error = error) });
    return outcome;
  }

  join(channel, recover) {
    return this.ask("join", channel, recover);
  }

  get offsets() {
    return this.shown.map(message => message.offset);
  }
}

function publication(offset, fields = {}) {
  return { id: `msg_${String(offset).padStart(16, "0")}`, channel: "jungle", event: "news", data: offset, trumpeted_by: "tantor", offset, timestamp: 1000 + offset, ...fields };
}

function range(from, to) {
  return Array.from({ length: to - from + 1 }, (_, index) => publication(from + index));
}

function reply(frame, fields) {
  return { event: "reply", channel: frame.channel ?? "system", ref: frame.ref, ok: true, epoch: EPOCH, timestamp: 1000.5, ...fields };
}

/** A talk on `jungle` that has shown up to this offset. */
function joinedAt(offset) {
  const talk = new Talk();
  talk.welcome();
  talk.join("jungle");
  assert.deepEqual(talk.receive(reply(talk.frame(), { offset, subscribers: 1 })), []);
  return talk;
}

test("what comes before the join is answered is held back, and shown behind what was missed, in order, once", () => {
  const talk = joinedAt(3);
  talk.lose();
  const [ask] = talk.welcome({ resumed: true });
  assert.deepEqual([ask.action, ask.recover], ["join_channel", { epoch: EPOCH, offset: 3 }]);
  talk.receive(publication(7), publication(6));
  assert.deepEqual(talk.offsets, []);
  const next = talk.receive(reply(ask, { offset: 7, recovered: true, through: 6, publications: range(4, 6) }), publication(8));
  assert.deepEqual(talk.offsets, [4, 5, 6, 7, 8]);
  assert.deepEqual([next, talk.gaps], [[], []]);
});

test("a join without a position shows what came since it was asked", () => {
  const talk = new Talk();
  talk.welcome();
  const joined = talk.join("jungle");
  const ask = talk.frame();
  assert.equal(ask.recover, undefined);
  talk.receive(publication(5), publication(6), reply(ask, { offset: 6, subscribers: 2 }), publication(7));
  assert.deepEqual(talk.offsets, [5, 6, 7]);
  assert.deepEqual(joined.value, { channel: "jungle", epoch: EPOCH, offset: 6, subscribers: 2 });
  assert.deepEqual(talk.session.position("jungle"), { epoch: EPOCH, offset: 7 });
});

test("notices have no offset and are not held back", () => {
  const talk = joinedAt(0);
  talk.receive(publication(2));
  talk.receive({ id: "msg_n", channel: "jungle", event: "user_joined", data: {}, trumpeted_by: "tantor" });
  assert.deepEqual(talk.shown.map(message => message.event), ["user_joined"]);
});

test("an offset that jumps is asked about; a hole is not told as a loss", () => {
  const talk = joinedAt(1);
  const [ask] = talk.receive(publication(4));
  assert.deepEqual(ask.recover, { epoch: EPOCH, offset: 1 });
  assert.deepEqual(talk.receive(publication(5)), [], "one question at a time");
  talk.receive(reply(ask, { offset: 5, recovered: true, through: 5, publications: [publication(2), publication(4), publication(5)] }));
  assert.deepEqual([talk.offsets, talk.gaps], [[2, 4, 5], []]);
  assert.deepEqual(talk.receive(publication(6), publication(6), publication(5)), [], "what was shown is known");
  assert.deepEqual(talk.offsets, [2, 4, 5, 6]);
});

test("a hole at the moment of the resume ends in one more question, not in a loop", () => {
  const talk = joinedAt(5);
  talk.lose();
  const [first] = talk.welcome({ resumed: true });
  // 7 and 8 were never handed over, and it went live at 8
  talk.receive(publication(9));
  assert.deepEqual(talk.receive(reply(first, { offset: 9, recovered: true, through: 8, publications: [publication(6)] })), []);
  assert.deepEqual([talk.offsets, talk.gaps], [[6, 9], []]);
});

test("what a lower lane still holds is not taken for a duplicate", () => {
  const talk = joinedAt(5);
  const [ask] = talk.receive(publication(7)); // with a high priority, ahead of 6
  talk.receive(reply(ask, { offset: 7, recovered: true, through: 7, publications: range(6, 7) }));
  assert.deepEqual(talk.receive(publication(6)), [], "shown by the answer");
  assert.deepEqual(talk.offsets, [6, 7]);
});

test("a client that was too slow asks for one channel after the other", () => {
  const talk = new Talk();
  talk.welcome();
  const channels = ["a", "b", "c", "d"];
  for (const channel of channels) {
    talk.join(channel);
    talk.receive(reply(talk.frame(), { channel, offset: 0 }));
  }
  talk.lose(3008);
  const asked = [];
  let frames = talk.welcome({ resumed: true });
  talk.ask("leave", "c");
  assert.equal(talk.frame().action, "leave_channel");
  while (frames.length) {
    assert.equal(frames.length, 1);
    const [{ channel, ref }] = frames;
    asked.push(channel);
    if (channel === "b") frames = talk.receive({ event: "error", channel: "system", ref, code: 107, message: "no" });
    else frames = talk.receive(reply(frames[0], { offset: 1, recovered: true, through: 1, publications: [publication(1, { channel })] }));
  }
  assert.deepEqual(asked, ["a", "b", "d"]);
  assert.deepEqual(talk.shown.map(({ channel }) => channel), ["a", "d"]);
  talk.lose(1006);
  assert.deepEqual(talk.welcome({ resumed: true }).map(({ channel }) => channel).slice(0, 2), ["a", "d"]);
});

test("what is kept no longer is told as a gap with its bounds, and what is left is shown", () => {
  const talk = joinedAt(3);
  talk.lose();
  const [ask] = talk.welcome({ resumed: true });
  const [page] = talk.receive(reply(ask, { offset: 12, recovered: false, reason: "expired", publications: [] }));
  assert.deepEqual([page.action, page.after], ["history", 3]);
  talk.receive(publication(13));
  talk.receive(reply(page, { offset: 12, publications: range(9, 12) }));
  assert.deepEqual(talk.gaps, [{ channel: "jungle", epoch: EPOCH, from: 4, to: 8, reason: "expired" }]);
  assert.deepEqual(talk.offsets, [9, 10, 11, 12, 13]);
});

test("when nothing is left the gap reaches to the top", () => {
  const talk = joinedAt(3);
  talk.lose();
  const [ask] = talk.welcome({ resumed: true });
  const [page] = talk.receive(reply(ask, { offset: 12, recovered: false, reason: "expired", publications: [] }));
  assert.deepEqual(talk.receive(reply(page, { offset: 12, publications: [] })), []);
  assert.deepEqual(talk.gaps, [{ channel: "jungle", epoch: EPOCH, from: 4, to: 12, reason: "expired" }]);
  assert.deepEqual(talk.receive(publication(13)), []);
  assert.deepEqual(talk.offsets, [13]);
});

test("more than goes into one answer is fetched in pages, without a loss", () => {
  const talk = joinedAt(0);
  talk.lose();
  const [ask] = talk.welcome({ resumed: true });
  const [one] = talk.receive(reply(ask, { offset: 1500, recovered: false, reason: "too_large", publications: [] }));
  const [two] = talk.receive(reply(one, { offset: 1500, publications: range(1, 700), more: true }));
  assert.deepEqual([two.action, two.after], ["history", 700]);
  talk.receive(publication(1501));
  assert.deepEqual(talk.receive(reply(two, { offset: 1501, publications: range(701, 1501) })), []);
  assert.deepEqual(talk.offsets, range(1, 1501).map(message => message.offset));
  assert.deepEqual(talk.gaps, []);
});

test("a page that begins late is a hole if nothing has expired, and a loss if it has", () => {
  for (const isLost of [false, true]) {
    const talk = joinedAt(0);
    talk.lose();
    const [ask] = talk.welcome({ resumed: true });
    const [page] = talk.receive(reply(ask, { offset: 9, recovered: false, reason: "too_large", publications: [] }));
    const [again] = talk.receive(reply(page, { offset: 9, publications: range(4, 9) }));
    assert.deepEqual([again.action, again.recover], ["join_channel", { epoch: EPOCH, offset: 0 }]);
    assert.deepEqual(talk.offsets, []);
    const rest = talk.receive(reply(again, { offset: 9, recovered: false, reason: isLost ? "expired" : "too_large", publications: [] }));
    if (isLost) talk.receive(reply(rest[0], { offset: 9, publications: range(4, 9) }));
    assert.deepEqual(talk.offsets, [4, 5, 6, 7, 8, 9]);
    assert.deepEqual(talk.gaps.map(({ from, to }) => [from, to]), isLost ? [[1, 3]] : []);
  }
});

test("another stream is told, and what it has is shown but for what was shown before", () => {
  const talk = joinedAt(1);
  talk.receive(...range(2, 5));
  talk.lose();
  const [ask] = talk.welcome();
  const epoch = "00000000000000bb";
  const [page] = talk.receive(reply(ask, { epoch, offset: 4, recovered: false, reason: "epoch", publications: [] }));
  assert.equal(page.after, undefined);
  // the stream was restored up to 3, and went on with another 4
  talk.receive(publication(5, { id: "msg_new_5" }));
  const before = publication(1, { timestamp: 900 });
  talk.receive(reply(page, { epoch, offset: 4, publications: [before, ...range(2, 3), publication(4, { id: "msg_new_4" })] }));
  assert.deepEqual(talk.shown.slice(4).map(message => message.id), ["msg_new_4", "msg_new_5"]);
  assert.deepEqual(talk.gaps.filter(gap => gap.channel), [{ channel: "jungle", epoch: EPOCH, from: 6, to: null, reason: "epoch" }]);
  assert.deepEqual(talk.session.position("jungle"), { epoch, offset: 5 });
});

test("a live message of a stream that began anew unnoticed is asked about", () => {
  const talk = joinedAt(5);
  const [ask] = talk.receive(publication(1, { id: "msg_other" }));
  assert.deepEqual(ask.recover, { epoch: EPOCH, offset: 5 });
  const epoch = "00000000000000bb";
  const [page] = talk.receive(reply(ask, { epoch, offset: 1, recovered: false, reason: "epoch", publications: [] }));
  talk.receive(reply(page, { epoch, offset: 1, publications: [publication(1, { id: "msg_other" })] }));
  assert.deepEqual(talk.shown.map(message => message.id), ["msg_other"]);
  assert.equal(talk.gaps.length, 1);
});

test("what is not kept has no offset but takes one, and what of it is missed is told", () => {
  const unkept = n => ({ id: `msg_${n}`, channel: "jungle", event: "n", data: n, trumpeted_by: "tantor" });
  const talk = joinedAt(0);
  talk.receive(unkept(1), unkept(2), { ...unkept(0), event: "user_left" });
  assert.equal(talk.session.position("jungle").offset, 2);
  talk.lose();
  const [ask] = talk.welcome({ resumed: true });
  assert.equal(ask.recover.offset, 2);
  talk.receive(unkept(3));
  talk.receive(reply(ask, { offset: 3, recovered: true, through: 2, publications: [] }));
  assert.deepEqual([talk.gaps, talk.session.position("jungle").offset], [[], 3]);
  talk.lose();
  // 4 to 6 are published meanwhile
  const [again] = talk.welcome({ resumed: true });
  talk.receive(unkept(7));
  const [page] = talk.receive(reply(again, { offset: 7, recovered: false, reason: "expired", publications: [] }));
  talk.receive(unkept(8), reply(page, { offset: 8, publications: [] }), unkept(9));
  assert.deepEqual(talk.gaps.map(({ from, to, reason }) => [from, to, reason]), [[4, 6, "expired"]]);
  assert.equal(talk.session.position("jungle").offset, 9);
  assert.deepEqual(talk.shown.filter(({ event }) => event === "n").map(({ data }) => data), [1, 2, 3, 7, 8, 9]);
});

test("what the server dropped for this client is told, or asked for if the server says so", () => {
  const talk = joinedAt(5);
  const gap = { event: "gap", channel: "jungle", epoch: EPOCH, offset: 8, dropped: 3, reason: "drop_oldest", recover: false };
  assert.deepEqual(talk.receive(gap, gap), []);
  assert.deepEqual(talk.gaps, [{ channel: "jungle", epoch: EPOCH, from: 6, to: 8, reason: "drop_oldest", dropped: 3 }]);
  assert.deepEqual(talk.receive(publication(9)), []);
  const [ask] = talk.receive({ ...gap, offset: 12, recover: true });
  assert.deepEqual(ask.recover, { epoch: EPOCH, offset: 9 });
  assert.deepEqual(talk.offsets, [9]);
});

test("what was dropped of a channel that keeps nothing is told, and where it is now is asked", () => {
  const gap = { event: "gap", channel: "jungle", epoch: EPOCH, dropped: 3, reason: "drop_oldest", recover: false };
  const talk = joinedAt(5);
  assert.deepEqual(talk.receive(gap), [], "only notices");
  talk.receive({ id: "msg_6", channel: "jungle", event: "n", trumpeted_by: "tantor" });
  const [ask] = talk.receive(gap);
  assert.deepEqual([ask.action, ask.recover], ["join_channel", undefined]);
  talk.receive(reply(ask, { offset: 9 }));
  assert.equal(talk.session.position("jungle").offset, 9);
  assert.deepEqual(talk.gaps.map(({ from, to, dropped }) => [from, to, dropped]), [[null, null, 3], [null, null, 3]]);
});

test("more than is held back is asked for again", () => {
  const talk = joinedAt(0);
  const [ask] = talk.receive(publication(2));
  talk.receive(...range(3, 1500));
  const [again] = talk.receive(reply(ask, { offset: 2, recovered: true, through: 2, publications: range(1, 2) }));
  assert.deepEqual(again.recover, { epoch: EPOCH, offset: 1001 });
  talk.receive(reply(again, { offset: 1500, recovered: true, through: 1500, publications: range(1002, 1500) }));
  assert.deepEqual(talk.offsets, range(1, 1500).map(message => message.offset));
});

test("a new identity is told as a gap of the mailbox, and mail that was dropped too", () => {
  const talk = joinedAt(0);
  talk.lose();
  talk.welcome({ client_id: "client_2", resumed: false, reason: "expired" });
  assert.deepEqual(talk.gaps, [
    { channel: null, epoch: null, from: null, to: null, reason: "new_client", message: "expired", clientId: "client_1" },
  ]);
  assert.equal(talk.session.clientId, "client_2");
  talk.lose();
  talk.welcome({ client_id: "client_2", resumed: true, dropped: 4 });
  assert.deepEqual(talk.gaps[1], { channel: null, epoch: null, from: null, to: null, reason: "mailbox_full", dropped: 4 });
});

test("mail is acknowledged when it was handled, and shown once though it comes twice", () => {
  const talk = new Talk();
  talk.welcome();
  const mail = { id: "msg_1", channel: "jungle", message: "hi", ack: true };
  talk.receive(mail, mail);
  assert.equal(talk.shown.length, 1);
  assert.equal(talk.session.unacknowledged, 0);
  talk.session.handled("msg_1");
  talk.session.acknowledge();
  assert.deepEqual(talk.frame().ids, ["msg_1"]);
  talk.lose();
  talk.welcome({ resumed: true });
  talk.receive(mail); // the acknowledgement was lost
  assert.equal(talk.shown.length, 1);
  talk.session.acknowledge();
  assert.deepEqual(talk.frame().ids, ["msg_1"]);
});

test("a handler that returns while the connection is away has its message acknowledged on the next", () => {
  const talk = new Talk();
  talk.welcome();
  talk.receive({ id: "msg_1", channel: "jungle", message: "hi", ack: true });
  talk.lose();
  talk.session.handled("msg_1");
  assert.deepEqual(talk.frames(), []);
  assert.deepEqual(talk.welcome({ resumed: true }).map(frame => frame.ids), [["msg_1"]]);
});

test("an emergency is shown at once, once, whatever the channel waits for", () => {
  const talk = new Talk();
  talk.welcome();
  talk.join("emergency");
  const ask = talk.frame();
  const alert = offset => publication(offset, { id: `msg_alert_${offset}`, channel: "emergency", event: "emergency_alert", ack: true });
  talk.receive(alert(1));
  assert.equal(talk.shown.length, 1);
  talk.receive(reply(ask, { offset: 1, subscribers: 1 }), alert(1), alert(2));
  assert.deepEqual(talk.offsets, [1, 2]);
  assert.equal(talk.session.position("emergency").offset, 2);
});

test("commands are repeated after a break, in order, with the same key", () => {
  const talk = joinedAt(0);
  const outcomes = [1, 2].map(n => talk.ask("command", { action: "broadcast", channel: "jungle", event: "n", data: n, idempotency_key: `key_${n}` }));
  const sent = talk.frames();
  assert.equal(sent.length, 2);
  talk.receive(reply(sent[0], { recipients: 1 }));
  assert.equal(outcomes[0].value.recipients, 1);
  talk.lose();
  const [join, ...again] = talk.welcome({ resumed: true });
  assert.equal(join.action, "join_channel");
  assert.deepEqual(again, [sent[1]]);
  talk.receive(reply(again[0], { recipients: 1, duplicate: true }));
  assert.equal(outcomes[1].value.duplicate, true);
});

test("a broadcast that may have been published is not repeated when the server has forgotten its key", () => {
  const talk = new Talk();
  talk.welcome();
  const sent = talk.ask("command", { action: "broadcast", event: "n", idempotency_key: "key" });
  const ping = talk.ask("command", { action: "ping" });
  talk.lose();
  const unsent = talk.ask("command", { action: "broadcast", event: "m", idempotency_key: "other" });
  talk.now += 241_000;
  const again = talk.welcome({ resumed: true });
  assert.deepEqual(again.map(frame => frame.action), ["ping", "broadcast"]);
  assert.equal(sent.error.code, "uncertain");
  assert.deepEqual([ping, unsent], [{}, {}]);
});

test("a broadcast that may have been published is not repeated by a client that the server takes for a new one", () => {
  const talk = new Talk();
  talk.welcome();
  const sent = talk.ask("command", { action: "broadcast", event: "n", idempotency_key: "key" });
  talk.frames();
  talk.lose();
  const unsent = talk.ask("command", { action: "broadcast", event: "m", idempotency_key: "other" });
  const again = talk.welcome({ resumed: false, client_id: "client_2", reason: "expired" });
  assert.deepEqual(again.map(frame => frame.event), ["m"]);
  assert.equal(sent.error.code, "uncertain");
  assert.match(sent.error.message, /new one/);
  assert.deepEqual(unsent, {});
});

test("channels may be named like members of every object", () => {
  const names = ["constructor", "toString", "valueOf", "__proto__", "hasOwnProperty"];
  const talk = new Talk();
  talk.welcome();
  for (const name of names) {
    const joined = talk.join(name);
    const ask = talk.frame();
    assert.deepEqual([ask.action, ask.channel, ask.recover], ["join_channel", name, undefined]);
    talk.receive(reply(ask, { offset: 3, subscribers: 1 }));
    assert.equal(joined.value.offset, 3);
    talk.receive(publication(4, { channel: name }));
    assert.equal(talk.shown.at(-1).channel, name);
  }
  const saved = JSON.parse(JSON.stringify(talk.session.snapshot()));
  const next = new Talk({ saved });
  next.welcome({ resumed: true });
  for (const name of names) {
    next.join(name);
    assert.deepEqual(next.frame().recover, { epoch: EPOCH, offset: 4 });
  }
});

test("only so many commands wait", () => {
  const talk = new Talk({ maxPending: 2 });
  talk.ask("command", { action: "ping" });
  talk.ask("command", { action: "ping" });
  assert.throws(() => talk.ask("command", { action: "ping" }), { name: "TantorError", code: "pending_full", message: /2 commands wait/ });
  const [first] = talk.welcome();
  talk.receive(reply(first, {}));
  talk.ask("command", { action: "ping" });
});

test("a command that no server takes does not end one connection after another", () => {
  const talk = new Talk();
  talk.welcome();
  const small = talk.ask("command", { action: "broadcast", event: "a", data: "x" });
  const large = talk.ask("command", { action: "broadcast", event: "a", data: "x".repeat(5000) });
  talk.frames();
  talk.lose(1009);
  assert.equal(large.error.code, 105);
  assert.deepEqual(talk.welcome({ resumed: true }).map(frame => frame.data), ["x"]);
  assert.deepEqual(small, {});
});

test("a refused command is rejected with the server's code, one that was not read too", () => {
  const talk = new Talk();
  talk.welcome();
  const [named, deep, flat] = [{ channel: "system" }, { data: [[[[]]]] }, { data: "[[[[[[[[[[" }].map(fields => talk.ask("command", { action: "broadcast", ...fields }));
  const [frame] = talk.frames();
  talk.receive({ event: "error", channel: "system", ref: frame.ref, code: 109, message: "no" });
  assert.deepEqual([named.error.name, named.error.code, named.error.message], ["TantorError", 109, "no"]);
  talk.receive({ event: "error", channel: "system", code: 106, message: "too deep" });
  assert.equal(deep.error.code, 106);
  assert.deepEqual(flat, {});
  talk.receive({ event: "error", channel: "system", code: 104, message: "binary" });
  assert.deepEqual(talk.errors.map(error => error.code), [104]);
});

test("what only looks like the server's own is the application's", () => {
  const talk = joinedAt(0);
  talk.receive(
    publication(1, { event: "error" }),
    publication(2, { event: "welcome" }),
    { id: "msg_m", channel: "jungle", event: "error", message: "mail" },
  );
  assert.deepEqual(talk.shown.map(message => message.event), ["error", "welcome", "error"]);
  assert.deepEqual(talk.errors, []);
});

test("a join that is refused is rejected; one that was joined before is told", () => {
  const talk = new Talk();
  talk.welcome();
  const refused = talk.join("river");
  talk.receive({ event: "error", channel: "system", ref: talk.frame().ref, code: 110, message: "too many" });
  assert.equal(refused.error.code, 110);
  assert.equal(talk.session.position("river"), null);
  talk.join("jungle");
  talk.receive(reply(talk.frame(), { offset: 4 }));
  talk.lose();
  const [ask] = talk.welcome();
  talk.receive({ event: "error", channel: "system", ref: ask.ref, code: 110, message: "too many" });
  assert.deepEqual(talk.gaps.at(-1), { channel: "jungle", epoch: EPOCH, from: 5, to: null, reason: "refused" });
  assert.equal(talk.errors[0].code, 110);
  talk.lose();
  assert.ok(talk.welcome().every(frame => frame.action !== "join_channel"));
});

test("a channel that was left is left, whatever was under way", () => {
  const talk = new Talk();
  talk.welcome();
  const joined = talk.join("river");
  const ask = talk.frame();
  const left = talk.ask("leave", "river");
  const leave = talk.frame();
  assert.equal(joined.error.code, "left");
  talk.receive(reply(ask, { channel: "river", offset: 3 }), publication(4, { channel: "river" }), reply(leave, {}));
  assert.deepEqual(talk.shown, []);
  assert.ok(left.value);
  talk.lose();
  // a new identity may be on it again: it was the default channel
  assert.deepEqual(talk.welcome({ client_id: "client_2" }), [{ action: "leave_channel", channel: "river" }]);
});

test("to leave and join again while away is to stay", () => {
  const talk = joinedAt(2);
  talk.lose();
  const left = talk.ask("leave", "jungle");
  const joined = talk.join("jungle");
  assert.ok(left.value);
  const frames = talk.welcome({ resumed: true });
  assert.deepEqual(frames.map(frame => frame.action), ["join_channel"]);
  talk.receive(reply(frames[0], { offset: 2, subscribers: 1 }));
  assert.equal(joined.value.offset, 2);
});

test("joining again gets an answer of its own, also while the channel is being caught up", () => {
  const talk = joinedAt(0);
  talk.lose();
  const [ask] = talk.welcome({ resumed: true });
  const [page] = talk.receive(reply(ask, { offset: 2, recovered: false, reason: "too_large", publications: [] }));
  const again = talk.join("jungle");
  assert.deepEqual(talk.frames(), []);
  const [last] = talk.receive(reply(page, { offset: 2, publications: range(1, 2) }));
  talk.receive(reply(last, { offset: 2, recovered: true, through: 2, publications: [], subscribers: 3 }));
  assert.equal(again.value.subscribers, 3);
  assert.throws(() => talk.join("jungle", { epoch: EPOCH, offset: 0 }), { code: "joined" });
});

test("a session goes on from what an earlier one has left", () => {
  const before = joinedAt(2);
  before.receive(publication(3));
  const saved = JSON.parse(JSON.stringify(before.session.snapshot()));
  assert.deepEqual(saved, { token: "token_1", clientId: "client_1", positions: { jungle: { epoch: EPOCH, offset: 3 } } });
  const talk = new Talk({ saved });
  assert.equal(talk.session.token, "token_1");
  talk.welcome({ resumed: true });
  assert.deepEqual(talk.session.snapshot().positions, saved.positions, "until it is joined");
  talk.join("jungle");
  const ask = talk.frame();
  assert.deepEqual(ask.recover, { epoch: EPOCH, offset: 3 });
  talk.receive(reply(ask, { offset: 4, recovered: true, through: 4, publications: [publication(4)] }));
  assert.deepEqual([talk.offsets, talk.gaps], [[4], []]);
});

test("the end rejects all that waits", () => {
  const talk = new Talk();
  const joined = talk.join("jungle");
  const command = talk.ask("command", { action: "ping" });
  const error = new Error("over");
  talk.session.end(error);
  assert.deepEqual([joined.error, command.error], [error, error]);
});
