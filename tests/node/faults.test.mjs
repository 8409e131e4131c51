// Many clients, faults of the network at random, steady publishing: every message arrives, in order, once.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { CLIENTS, connects, crowd, eventually, FAULT_SECONDS, Python, upTo } from "./support.mjs";

const SEED = Number(process.env.TANTOR_FAULT_SEED ?? Math.floor(Math.random() * 2 ** 31));

const python = new Python();
after(() => python.end());

async function allHave(clients, last) {
  const behind = () => clients.filter(({ numbers }) => numbers.at(-1) !== last).map(({ numbers, state, told }) => [numbers.at(-1), state, told.gap]);
  await eventually(() => !behind().length, () => `up to ${last}: ${JSON.stringify(behind())}`, 60_000);
  for (const { numbers, told } of clients) {
    assert.deepEqual(numbers, upTo(last));
    assert.deepEqual(told.error, []);
  }
}

test(`${CLIENTS} clients, ${FAULT_SECONDS} s of cuts, stalls, half-closes and black holes (seed ${SEED})`, { timeout: FAULT_SECONDS * 1000 + 120_000 }, async t => {
  await python.run("server = serve(heartbeat_interval=0.5, heartbeat_timeout=2.5, history_size=100_000, history_bytes=1 << 28)");
  await python.run("proxy = proxy_to(server.port)");
  const clients = await crowd(t, await python.run("proxy.port"));
  await python.run("publisher = Publisher(server, 'storm', 50)\nstorm = Storm(proxy, seconds, seed)", { seconds: FAULT_SECONDS, seed: SEED });
  await sleep(FAULT_SECONDS * 1000);
  await python.run("storm.join(30)");
  const last = await python.run("publisher.end()");
  await allHave(clients, last);
  t.diagnostic(`${last} messages, ${connects(clients)} connects, faults: ${JSON.stringify(await python.run("storm.counts"))}`);
  assert.ok(last > FAULT_SECONDS * 10, `${last} messages were published`);
  assert.ok(connects(clients) > 2 * CLIENTS, "connections were lost");
  for (const { told } of clients) assert.deepEqual(told.gap.filter(({ channel }) => channel), []);
});
