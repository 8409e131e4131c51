// Recover and merge, at random, against a model of what the server promises (docs/protocol.md, "Coming back").
import assert from "node:assert/strict";
import test from "node:test";
import { _Session as Session } from "../../python/tantor/js/tantor.js";

const RUNS = Number(process.env.TANTOR_MODEL_RUNS ?? 3000);
const KEPT = 12;
const IN_ONE_REPLY = 5;
const IN_ONE_PAGE = 4;

/** Numbers that a seed gives (mulberry32). */
function randomly(seed) {
  return below => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

/** One channel of a server, and one connection to it. */
class Server {
  epoch = 1;
  top = 0;
  gone = 0;
  kept = [];
  published = [];
  #ids = 0;
  #clock = 0;
  /** What is on its way to the client: by lane, and the order of each lane is kept. */
  lanes = null;
  isMember = false;
  liveFrom = 0;

  publish(lane, isHole = false) {
    this.top += 1;
    if (isHole) return;
    const message = { id: `msg_${++this.#ids}`, channel: "c", event: "n", trumpeted_by: "tantor", offset: this.top, epoch: this.epoch, timestamp: ++this.#clock };
    this.published.push(message);
    this.kept.push(message);
    while (this.kept.length > KEPT) this.gone = this.kept.shift().offset;
    if (this.lanes && this.isMember) this.lanes[lane].push(message);
  }

  connect(isResumed) {
    this.lanes = [[], [], []];
    this.isMember &&= isResumed;
    this.liveFrom = this.top;
    this.#say({ event: "welcome", channel: "system", client_id: isResumed ? "client_1" : "client_2", resume: "token", resumed: isResumed });
  }

  /** A crash: the last ones are forgotten, and that shows as another epoch. */
  crash(lost) {
    this.lanes = null;
    this.epoch += 1;
    this.isMember = false;
    const forgotten = lost ? this.kept.splice(-lost) : [];
    this.top = forgotten[0] ? forgotten[0].offset - 1 : this.top;
    return forgotten;
  }

  execute({ action, ref, recover, after, limit }) {
    const answer = { event: "reply", ok: true, ref, channel: "c", epoch: String(this.epoch), offset: this.top, timestamp: ++this.#clock };
    if (action === "join_channel") {
      const through = this.isMember && recover && recover.offset < this.liveFrom ? this.liveFrom : this.top;
      if (!this.isMember) this.liveFrom = this.top;
      this.isMember = true;
      this.#say({ ...answer, ...(recover && this.#since(recover, through)) });
    } else if (action === "history") {
      const from = this.kept.filter(message => message.offset > (after ?? 0));
      const most = Math.min(limit, IN_ONE_PAGE);
      const publications = after === undefined ? from.slice(-limit) : from.slice(0, most);
      this.#say({ ...answer, publications, more: publications.length < from.length });
    } else {
      this.#say(answer);
    }
  }

  #since({ epoch, offset }, through) {
    const missed = this.kept.filter(message => message.offset > offset && message.offset <= through);
    let reason;
    if (epoch !== String(this.epoch)) reason = "epoch";
    else if (offset > this.top) reason = "offset_ahead";
    else if (offset < this.gone) reason = "expired";
    else if (missed.length > IN_ONE_REPLY) reason = "too_large";
    return reason ? { recovered: false, reason, publications: [] } : { recovered: true, through, publications: missed };
  }

  #say(message) {
    this.lanes[1].push(message);
  }
}

function play(seed) {
  const random = randomly(seed);
  const server = new Server();
  const session = new Session();
  const shown = [];
  const gaps = [];
  const toServer = [];
  let joinedAt = null;

  const look = () => {
    toServer.push(...session.takeFrames().map(text => JSON.parse(text)));
    for (const [name, value] of session.events.splice(0)) {
      if (name === "message") shown.push(value);
      if (name === "gap" && value.channel) gaps.push({ ...value, until: server.published.length });
    }
  };
  const cut = () => {
    server.lanes = null;
    toServer.length = 0;
    session.lost();
    look();
  };
  const deliver = () => {
    const lanes = server.lanes?.filter(lane => lane.length) ?? [];
    if (!lanes.length) return false;
    // the welcome first of all
    const lane = server.lanes[1][0]?.event === "welcome" ? server.lanes[1] : lanes[random(lanes.length)];
    session.receive(structuredClone(lane.shift()));
    look();
    return true;
  };
  const listen = () => {
    if (!server.lanes || !toServer.length) return false;
    server.execute(toServer.shift());
    return true;
  };

  session.join("c", undefined, { resolve: ({ epoch, offset }) => (joinedAt ??= { epoch: Number(epoch), offset }), reject: assert.fail });
  for (let step = 0; step < 200; step += 1) {
    const what = random(100);
    if (what < 30) server.publish(random(10) ? 1 : random(3), random(12) === 0);
    else if (what < 66) deliver();
    else if (what < 92) listen();
    else if (what < 95) cut();
    else if (what < 96 && random(3) === 0) {
      cut();
      server.crash(random(3));
    } else if (!server.lanes) server.connect(random(5) > 0);
  }
  if (!server.lanes) server.connect(true);
  let steps = 0;
  for (let moved = true; moved; ) {
    moved = [deliver(), listen()].includes(true);
    assert.ok((steps += 1) < 2000, "it ends");
  }
  // once more, so that what is silent now is seen to be up to date
  server.publish(1);
  while ([deliver(), listen()].includes(true)) assert.ok((steps += 1) < 4000, "it ends");

  const ids = shown.map(message => message.id);
  assert.equal(new Set(ids).size, ids.length, "none is shown twice");
  let last = { epoch: 0, offset: 0 };
  for (const { epoch, offset, id } of shown) {
    // a stream that was restored keeps the messages of the one before
    assert.ok(epoch < last.epoch || epoch > last.epoch || offset > last.offset, `${id} in order`);
    last = { epoch, offset };
  }
  const isTold = ({ epoch, offset }) =>
    gaps.some(gap => Number(gap.epoch) === epoch && gap.from <= offset && (gap.to === null || offset <= gap.to)) ||
    // what was published before the client knew of the stream, and is kept no longer
    gaps.some(gap => gap.to === null && Number(gap.epoch) < epoch && !server.kept.some(kept => kept.epoch === epoch && kept.offset === offset));
  assert.ok(joinedAt, "it was joined");
  for (const message of server.published) {
    const isAfter = message.epoch > joinedAt.epoch || (message.epoch === joinedAt.epoch && message.offset > joinedAt.offset);
    if (isAfter && !ids.includes(message.id)) assert.ok(isTold(message), `${JSON.stringify(message)} is shown or told: ${JSON.stringify(gaps)}`);
  }
  assert.equal(ids.at(-1), server.published.at(-1).id, "the last one is shown");
  assert.deepEqual(session.position("c"), { epoch: String(server.epoch), offset: server.top });
  return gaps.length;
}

test(`${RUNS} random histories: each message is shown once and in order, or told to be lost`, () => {
  let gaps = 0;
  for (let seed = 1; seed <= RUNS; seed += 1) {
    try {
      gaps += play(seed);
    } catch (error) {
      error.message = `seed ${seed}: ${error.message}`;
      throw error;
    }
  }
  assert.ok(gaps > RUNS / 100, "gaps were among them");
});
