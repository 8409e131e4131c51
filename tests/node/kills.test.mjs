// Many clients, steady publishing, a server that is killed again and again: every message arrives, in order, once.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { CLIENTS, connects, crowd, eventually, FAULT_SECONDS, Python, upTo } from "./support.mjs";

const python = new Python();
after(() => python.end());

test(`${CLIENTS} clients, ${FAULT_SECONDS} s, the server killed and started again on SQLite`, { timeout: FAULT_SECONDS * 1000 + 120_000 }, async t => {
  await python.run("import tempfile\nfolder = ended.enter_context(tempfile.TemporaryDirectory())");
  await python.run("durable = ended.enter_context(DurableServer(Path(folder) / 'tantor.db', 'storm', 50))");
  const clients = await crowd(t, await python.run("durable.port"));
  let saved = 0;
  let kills = 0;
  for (const end = Date.now() + FAULT_SECONDS * 1000; Date.now() < end; ) {
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
    // A kill loses a session that is not yet committed. Its client is told so, and misses no number all the same.
    assert.deepEqual(told.gap.filter(({ reason }) => reason !== "new_client"), []);
  }
});
