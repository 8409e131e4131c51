// Pages of one tab that the browser keeps, shows again and leaves, with events as browsers send them.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { connect, Python } from "./support.mjs";

const python = new Python();
let port;

before(async () => {
  await python.run("server = serve()");
  port = await python.run("server.port");
});
after(() => python.end());

/** sessionStorage, which the pages of a tab share. */
function makeStorage() {
  const items = new Map();
  return {
    items,
    getItem: key => items.get(key) ?? null,
    setItem: (key, value) => void items.set(key, value),
    removeItem: key => void items.delete(key),
  };
}

/** A page with a client, and with `fire` for what the browser tells the page. */
function openPage(t, storage) {
  const listeners = [];
  const target = {
    addEventListener: (name, listener) => void listeners.push([name, listener]),
    removeEventListener: (name, listener) => void listeners.splice(listeners.findIndex(known => known[1] === listener), 1),
  };
  Object.defineProperty(globalThis, "navigator", { value: { onLine: true }, configurable: true });
  Object.assign(globalThis, target, { navigation: target });
  const client = connect(t, port, { storage });
  const fire = (name, event) => listeners.filter(known => known[0] === name).forEach(([, listener]) => listener(event));
  return Object.assign(client, { fire });
}

const BACK_TO_ANOTHER_DOCUMENT = { navigationType: "traverse", destination: { sameDocument: false } };

test("a page that is left again at once leaves the newer session to the other page", { timeout: 60_000 }, async t => {
  const storage = makeStorage();
  const first = openPage(t, storage);
  await first.reach("connected");
  const id = first.clientId;
  first.fire("pagehide", { persisted: true });
  const second = openPage(t, storage);
  await second.reach("connected");
  assert.equal(second.clientId, id);
  // back, and forward before the first page has taken up its session
  second.fire("pagehide", { persisted: true });
  first.fire("pageshow", { persisted: true });
  first.fire("pagehide", { persisted: true });
  second.fire("pageshow", { persisted: true });
  await second.reach("connected", () => second.told.welcome.length === 2);
  assert.deepEqual([second.clientId, second.told.gap], [id, []]);
});

test("a client that is closed leaves nothing in storage", { timeout: 60_000 }, async t => {
  const storage = makeStorage();
  const page = openPage(t, storage);
  await page.reach("connected");
  page.fire("navigate", BACK_TO_ANOTHER_DOCUMENT);
  assert.equal(storage.items.size, 1, "saved early");
  page.close();
  page.fire("pagehide", { persisted: false });
  assert.equal(storage.items.size, 0);
});
