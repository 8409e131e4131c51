// Many clients, faults at random, steady publishing: every message arrives, in order, once.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { connect, eventually, Python, upTo } from "./support.mjs";

const SECONDS = Number(process.env.TANTOR_FAULT_SECONDS ?? 15);
const SEED = Number(process.env.TANTOR_FAULT_SEED ?? Math.floor(Math.random() * 2 ** 31));
const CLIENTS = 100;
const QUICK = { heartbeatSlack: 500, probeTimeout: 1000, connectTimeout: 2000, minDelay: 50, maxDelay: 1000 };
const TIMEOUT = { timeout: SECONDS * 1000 + 120_000 };

const python = new Python();
after(() => python.end());

/** Clients on a channel, each with the numbers that it was shown. */
async function crowd(t, port) {
  const clients = Array.from({ length: CLIENTS }, () => Object.assign(connect(t, port, QUICK), { numbers: [] }));
  await Promise.all(clients.map(client => client.join("storm", ({ event, data }) => event === "n" && void client.numbers.push(data))));
  return clients;
}

async function allHave(clients, last) {
  const behind = () => clients.filter(({ numbers }) => numbers.at(-1) !== last).map(({ numbers, state, told }) => [numbers.at(-1), state, told.gap]);
  await eventually(() => !behind().length, () => `up to ${last}: ${JSON.stringify(behind())}`, 60_000);
  for (const { numbers, told } of clients) {
    assert.deepEqual(numbers, upTo(last));
    assert.deepEqual(told.error, []);
  }
}

function connects(clients) {
  return clients.reduce((sum, { told }) => sum + told.welcome.length, 0);
}

test(`${CLIENTS} clients, ${SECONDS} s of cuts, stalls, half-closes and black holes (seed ${SEED})`, TIMEOUT, async t => {
  await python.run("server = serve(heartbeat_interval=0.5, heartbeat_timeout=2.5, history_size=100_000, history_bytes=1 << 28)");
  await python.run("proxy = proxy_to(server.port)");
  const clients = await crowd(t, await python.run("proxy.port"));
  await python.run("publisher = Publisher(server, 'storm', 50)\nstorm = Storm(proxy, seconds, seed)", { seconds: SECONDS, seed: SEED });
  await sleep(SECONDS * 1000);
  await python.run("storm.join(30)");
  const last = await python.run("publisher.end()");
  await allHave(clients, last);
  t.diagnostic(`${last} messages, ${connects(clients)} connects, faults: ${JSON.stringify(await python.run("storm.counts"))}`);
  assert.ok(last > SECONDS * 10, `${last} messages were published`);
  assert.ok(connects(clients) > 2 * CLIENTS, "connections were lost");
  for (const { told } of clients) assert.deepEqual(told.gap.filter(({ channel }) => channel), []);
});

test(`${CLIENTS} clients, ${SECONDS} s, the server killed and started again on SQLite`, TIMEOUT, async t => {
  await python.run("import tempfile\nfolder = ended.enter_context(tempfile.TemporaryDirectory())");
  await python.run("durable = ended.enter_context(DurableServer(Path(folder) / 'tantor.db', 'storm', 50))");
  const clients = await crowd(t, await python.run("durable.port"));
  let saved = 0;
  let kills = 0;
  for (const end = Date.now() + SECONDS * 1000; Date.now() < end; ) {
    await sleep(1000 + Math.random() * 2000);
    saved = Math.max(saved, await python.run("durable.kill()"));
    kills += 1;
    await sleep(Math.random() * 2000);
    await python.run("durable.start()");
  }
  const shown = () => Math.min(...clients.map(({ numbers }) => numbers.at(-1)));
  await eventually(() => shown() > saved, () => `all that was saved (${saved}) is shown to all, and it goes on: ${shown()}`, 60_000);
  const last = await python.run("durable.kill()");
  t.diagnostic(`${last} messages, ${kills} kills, ${connects(clients)} connects`);
  assert.ok(kills >= 2 && last > saved, `${kills} kills, the last of ${last} and ${saved}`);
  for (const { numbers, told } of clients) {
    assert.deepEqual(numbers, upTo(numbers.at(-1), numbers[0]), "each once, in order");
    assert.deepEqual(told.gap, []);
  }
});
