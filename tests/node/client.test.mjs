// The client in node, against a real server and through a proxy that harms connections.
import assert from "node:assert/strict";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket, { WebSocketServer } from "ws";
import { connect as connectClient, TantorError } from "../../python/tantor/js/tantor.js";
import { connect, eventually, Python, upTo } from "./support.mjs";

const python = new Python();
let port;
let proxied;
let channels = 0;

before(async () => {
  await python.run("server = serve(heartbeat_interval=0.4, heartbeat_timeout=3, ack_timeout=0.3, history_size=500)");
  await python.run("proxy = proxy_to(server.port)");
  port = await python.run("server.port");
  proxied = await python.run("proxy.port");
});
after(() => python.end());

/** Each test has a channel of its own, and leaves the proxy as it was. */
function scene(name, run) {
  test(name, { timeout: 60_000 }, async t => {
    channels += 1;
    try {
      await run(t, `channel-${channels}`);
    } finally {
      await python.run("proxy.accept(); proxy.resume()");
    }
  });
}

function publish(channel, first, last, event = "n") {
  return python.run("[server.broadcast(channel, event, n).result() for n in range(first, last + 1)]", { channel, first, last, event });
}

/** A client that is quick, by way of the proxy, on a channel whose numbers it collects. */
async function join(t, channel, options) {
  const client = connect(t, proxied, { heartbeatSlack: 300, probeTimeout: 500, connectTimeout: 2000, ...options });
  const numbers = [];
  const joined = await client.join(channel, message => message.event === "n" && void numbers.push(message.data));
  return Object.assign(client, { numbers, joined });
}

scene("a few lines are enough", async (t, channel) => {
  const client = connect(t, port);
  assert.equal(client.state, "connecting");
  assert.equal(client.clientId, null);
  const seen = [];
  const joined = await client.join(channel, message => void seen.push(message));
  assert.deepEqual([joined.channel, joined.offset, joined.subscribers], [channel, 0, 1]);
  assert.deepEqual([client.state, client.clientId], ["connected", client.told.welcome[0].client_id]);
  const sent = await client.broadcast(channel, "greeting", { text: "hello 🐘" });
  assert.deepEqual([sent.recipients, sent.offset, sent.epoch], [1, 1, joined.epoch]);
  await eventually(() => seen.some(message => message.event === "greeting"));
  const greeting = seen.find(message => message.event === "greeting");
  assert.deepEqual([greeting.data, greeting.from, greeting.offset], [{ text: "hello 🐘" }, client.clientId, 1]);
  assert.deepEqual(client.position(channel), { epoch: joined.epoch, offset: 1 });
  const history = await client.history(channel, { limit: 5 });
  assert.deepEqual([history.offset, history.publications], [1, [greeting]]);
  assert.deepEqual((await client.history(channel, { after: 1 })).publications, []);
  assert.deepEqual(await client.presence(channel), { channel, online: 1, users: [client.clientId] });
  assert.ok((await client.ping()) >= 0);
  await python.run("waved = []\nserver.on_event('message', lambda data: waved.append(data.get('at')))");
  await client.command("wave", { at: channel });
  await eventually(async () => (await python.run("waved")).includes(channel), "the application's own action");
  await client.leave(channel);
  assert.equal((await client.presence(channel)).online, 0);
  await publish(channel, 1, 1);
  await client.ping();
  assert.equal(seen.at(-1).event, "greeting");
  assert.deepEqual([client.told.gap, client.told.error], [[], []]);
});

scene("what is refused says what and why", async (t, channel) => {
  const client = connect(t, port);
  await assert.rejects(client.broadcast("emergency", "x"), { name: "TantorError", code: 109 });
  await assert.rejects(client.broadcast(channel, "welcome"), { code: 108 });
  await assert.rejects(client.history(channel, { limit: 0 }), { code: 112, message: /limit is 0; it takes/ });
  await assert.rejects(client.broadcast(channel, "x", "y".repeat(2 << 20)), { code: 105 });
  await assert.rejects(client.broadcast(channel, "x", JSON.parse("[".repeat(500) + "]".repeat(500))), { code: 106 });
  await assert.rejects(client.broadcast(channel, "x", 1n), TypeError);
  await assert.rejects(client.join("system"), { code: 109 });
  await assert.rejects(client.join(""), /channel is ""; it takes a text of 1 to 255 bytes/);
  await assert.rejects(client.join("é".repeat(128)), TypeError);
  await assert.rejects(client.join(channel, 5), /handler is 5; it takes a function/);
  await assert.rejects(client.join(channel, { recover: { epoch: 1 } }), /recover is {"epoch":1}; it takes an object like/);
  await assert.rejects(client.command(""), TypeError);
  assert.throws(() => client.on("nonsense", () => {}), /no event "nonsense"; there are state,/);
  assert.throws(() => client.on("gap"), TypeError);
  assert.deepEqual(await client.presence(channel), { channel, online: 0, users: [] });
  assert.deepEqual([client.told.error, client.told.state.length], [[], 2], "and the connection lives on");
});

for (const [ending, end] of Object.entries({ leave: (client, channel) => client.leave(channel), close: client => client.close() })) {
  scene(`a join that is cut short by the application's own ${ending} need not be caught`, async (t, channel) => {
    const unhandled = [];
    const note = error => void unhandled.push(error);
    process.on("unhandledRejection", note);
    t.after(() => process.off("unhandledRejection", note));
    const client = connect(t, port);
    client.join(channel, () => {});
    end(client, channel);
    const other = connect(t, port);
    await other.ping();
    const joined = other.join(channel);
    end(other, channel);
    await assert.rejects(joined, { code: ending === "leave" ? "left" : "closed" }, "who awaits it is told");
    await connect(t, port).ping();
    assert.deepEqual(unhandled, []);
  });
}

scene("a subscription takes its own handler off, and the last one leaves the channel", async (t, channel) => {
  const client = connect(t, port);
  const online = () => python.run("server.get_presence(channel)['online']", { channel });
  const seen = [];
  const handler = ({ event, data }) => event === "n" && void seen.push(data);
  const first = client.subscribe(channel, handler);
  const second = client.subscribe(channel, handler);
  await eventually(async () => (await online()) === 1, "joined");
  await publish(channel, 1, 1);
  await eventually(() => seen.length === 2);
  first();
  first();
  await publish(channel, 2, 2);
  await eventually(() => seen.length === 3);
  await client.ping();
  assert.deepEqual([seen, await online()], [[1, 1, 2], 1]);
  second();
  await eventually(async () => (await online()) === 0, "left");
  await publish(channel, 3, 3);
  await client.ping();
  assert.deepEqual(seen, [1, 1, 2]);
  // later ones are not taken off by what belongs to earlier ones
  const third = client.subscribe(channel, handler);
  second();
  await eventually(async () => (await online()) === 1, "joined again");
  await client.leave(channel);
  await client.join(channel, handler);
  third();
  await client.ping();
  await publish(channel, 4, 4);
  await eventually(() => seen.at(-1) === 4);
  assert.deepEqual([seen, await online()], [[1, 1, 2, 4], 1], "what was joined is left by `leave` alone");
  client.subscribe(channel, handler)();
  await client.ping();
  assert.equal(await online(), 1);
  assert.deepEqual([client.told.gap, client.told.error], [[], []]);
});

scene("a component that mounts, unmounts and mounts loses and doubles nothing", async (t, channel) => {
  const client = connect(t, port);
  const seen = [];
  const mount = () => client.subscribe(channel, ({ event, data }) => event === "n" && void seen.push(data));
  let unmount = () => {};
  const remount = () => {
    mount()();
    unmount();
    unmount = mount();
  };
  remount(); // before it is connected
  await eventually(() => client.position(channel));
  const publishing = publish(channel, 1, 3000);
  for (let n = 0; n < 100; n += 1) {
    await new Promise(setImmediate);
    remount();
  }
  await publishing;
  await eventually(() => seen.at(-1) === 3000, () => `the last of ${seen.length}`);
  assert.deepEqual(seen, upTo(3000));
  const joins = client.told.message.filter(message => message.channel === channel && message.event === "user_joined");
  assert.equal(joins.length, 1, "and it joined once");
  unmount();
  await eventually(() => client.position(channel) === null);
  assert.deepEqual([client.told.gap, client.told.error], [[], []]);
});

scene("a subscription that cannot be is told to the listeners of errors", async (t, channel) => {
  const client = connect(t, port);
  assert.throws(() => client.subscribe(channel), /handler is undefined; it takes a function/);
  assert.throws(() => client.subscribe("", () => {}), /channel is ""; it takes a text/);
  const off = client.subscribe("system", () => {});
  await eventually(() => client.told.error.length);
  assert.equal(client.told.error[0].error.code, 109);
  off();
  client.subscribe(channel, () => {})();
  await client.ping();
  assert.equal(client.told.error.length, 1, "what the component itself took back is no error");
  client.close();
  client.subscribe(channel, () => {})();
  assert.equal(client.told.error[1].error.code, "closed");
});

scene("a handler that another one takes off in its turn is not called", async (t, channel) => {
  const client = connect(t, port);
  const seen = [];
  const note = name => ({ event, data }) => event === "n" && void seen.push([name, data]);
  client.subscribe(channel, message => {
    note("one")(message);
    off();
  });
  const off = client.subscribe(channel, note("two"));
  await client.join(channel);
  await publish(channel, 1, 1);
  await eventually(() => seen.length);
  assert.deepEqual(seen, [["one", 1]]);
});

scene("subprotocols are offered as they are given", async t => {
  const offered = [];
  const server = new WebSocketServer({
    port: 0,
    host: "127.0.0.1",
    handleProtocols: names => {
      offered.push([...names]);
      return "chat";
    },
  });
  t.after(() => server.close());
  await once(server, "listening");
  for (const protocols of ["chat", ["other", "chat"]]) {
    const client = connectClient(`ws://127.0.0.1:${server.address().port}`, { WebSocket, protocols });
    t.after(() => client.close());
  }
  await eventually(() => offered.length === 2);
  assert.deepEqual(offered.sort((one, other) => one.length - other.length), [["chat"], ["other", "chat"]]);
  assert.throws(() => connectClient("ws://localhost", { WebSocket, protocols: 5 }), /protocols is 5; it takes a subprotocol's name/);
});

scene("what cannot be an address or option is refused at once", () => {
  for (const url of ["", "nonsense", "ftp://localhost", null]) {
    assert.throws(() => connectClient(url, { WebSocket }), /url is .*; it takes an address like ws:\/\/localhost:8080/);
  }
  for (const [name, value] of [["minDelay", 0], ["maxDelay", "1s"], ["maxPending", NaN], ["connectTimeout", Infinity], ["probeTimeout", -1]]) {
    assert.throws(() => connectClient("ws://localhost", { WebSocket, [name]: value }), new RegExp(`${name} is .*; it takes a number from 1`));
  }
  if (!globalThis.WebSocket) assert.throws(() => connectClient("ws://localhost"), /give one: connect\(url, { WebSocket: require\("ws"\) }\)/);
  assert.throws(() => connectClient("ws://localhost", { WebSocket: "ws" }), /WebSocket is "ws"/);
});

scene("an address keeps its path and query, and may be one of http", async t => {
  const client = connectClient(new URL(`http://127.0.0.1:${port}/some/path?room=1#part`), { WebSocket });
  t.after(() => client.close());
  assert.ok((await client.ping()) >= 0);
});

for (const [fault, code] of Object.entries({
  "cut with a reset": "proxy.cut(RESET)",
  "cut with an end": "proxy.cut(FIN)",
  "closed on the server's side alone": "proxy.half_close(TO_CLIENT)",
  "closed on the client's side alone": "proxy.half_close(TO_SERVER)",
  "swallowed on its way to the client": "proxy.drop(TO_CLIENT)",
  "swallowed on its way to the server": "proxy.drop(TO_SERVER)",
  "swallowed whole": "proxy.drop(BOTH)",
})) {
  scene(`a connection that is ${fault} is replaced, and nothing is missing`, async (t, channel) => {
    const client = await join(t, channel);
    const id = client.clientId;
    await publish(channel, 1, 3);
    await eventually(() => client.numbers.length === 3);
    await python.run(code);
    await publish(channel, 4, 6);
    await python.run("server.send(client, 'while away').result()", { client: id });
    await eventually(() => client.numbers.length === 6, () => JSON.stringify([client.numbers, client.told.state]));
    await eventually(() => client.told.mail.length === 1, "the mail");
    await publish(channel, 7, 7);
    await eventually(() => client.numbers.length === 7);
    assert.deepEqual(client.numbers, upTo(7));
    assert.deepEqual([client.clientId, client.told.gap, client.told.error], [id, [], []]);
    await eventually(async () => (await python.run("server.delivery(message)['waiting']", { message: client.told.mail[0].id })) === 0, "the acknowledgement");
    assert.equal(client.told.mail.length, 1);
  });
}

scene("a stall that ends in time is no loss and no new connection", async (t, channel) => {
  const client = await join(t, channel, { heartbeatSlack: 3000 });
  await python.run("proxy.stall()");
  await publish(channel, 1, 5);
  await python.run("proxy.resume()");
  await eventually(() => client.numbers.length === 5);
  assert.equal(client.told.welcome.length, 1);
});

scene("it goes on trying while nobody listens, with delays that grow at random up to a bound", async (t, channel) => {
  const client = await join(t, channel, { minDelay: 10, maxDelay: 80 });
  await python.run("proxy.refuse()\nproxy.cut()");
  const waits = () => client.told.state.filter(({ state }) => state === "waiting");
  await eventually(() => waits().length >= 25, () => JSON.stringify(client.told.state));
  const delays = waits().map(({ delay }) => delay);
  assert.ok(delays.every(delay => delay >= 0 && delay <= 80), String(delays));
  assert.ok(Math.max(...delays.slice(5)) > 20, `they grow: ${delays}`);
  assert.ok(new Set(delays).size > 10, `they are random: ${delays}`);
  await publish(channel, 1, 2);
  await python.run("proxy.accept()");
  await eventually(() => client.numbers.length === 2);
  assert.deepEqual(client.told.gap, []);
});

scene("commands under way are repeated, and a broadcast is published once", async (t, channel) => {
  const client = await join(t, channel);
  await python.run("proxy.stall(TO_CLIENT)");
  const sent = upTo(5).map(n => client.broadcast(channel, "n", n));
  const presence = client.presence(channel);
  await eventually(async () => (await python.run("server.history(channel).result().offset", { channel })) === 5, "it is published");
  await python.run("proxy.refuse(0.2)\nproxy.cut()\nproxy.resume()");
  const late = client.broadcast(channel, "n", 6);
  const replies = await Promise.all([...sent, late]);
  assert.deepEqual(replies.map(({ offset }) => offset), upTo(6));
  assert.ok(replies.slice(0, 5).every(({ duplicate }) => duplicate));
  assert.equal((await presence).online, 1);
  await eventually(() => client.numbers.length === 6);
  assert.deepEqual(client.numbers, upTo(6));
});

scene("commands and joins wait for the first connection", async (t, channel) => {
  await python.run("proxy.refuse(0.3)");
  const client = connect(t, proxied);
  const joined = client.join(channel);
  const sent = client.broadcast(channel, "early", 1);
  assert.equal((await joined).offset, 0);
  assert.equal((await sent).recipients, 1);
});

scene("too many commands that wait are refused, not kept", async (t, channel) => {
  const client = connect(t, port, { maxPending: 3 });
  const waiting = upTo(3).map(n => client.broadcast(channel, "n", n));
  await assert.rejects(client.broadcast(channel, "n", 4), { code: "pending_full", message: /3 commands wait for an answer/ });
  assert.equal((await Promise.all(waiting)).length, 3);
});

scene("what was lost for certain is told, and only that", async (t, channel) => {
  await python.run("small = serve(history_size=5)\nsmall_proxy = proxy_to(small.port)");
  const client = connect(t, await python.run("small_proxy.port"));
  const numbers = [];
  const { epoch } = await client.join(channel, message => message.event === "n" && void numbers.push(message.data));
  await python.run("small_proxy.refuse()\nsmall_proxy.cut()");
  await client.reach("waiting");
  await python.run("[small.broadcast(channel, 'n', n).result() for n in range(1, 21)]", { channel });
  await python.run("small_proxy.accept()");
  await eventually(() => numbers.length === 5);
  assert.deepEqual(numbers, [16, 17, 18, 19, 20]);
  assert.deepEqual(client.told.gap, [{ channel, epoch, from: 1, to: 15, reason: "expired" }]);
});

scene("a channel that keeps nothing misses what came while it was away, and says so", async (t, channel) => {
  await python.run("bare = serve(history_size=0)\nbare_proxy = proxy_to(bare.port)");
  const client = connect(t, await python.run("bare_proxy.port"));
  const numbers = [];
  const publish = (first, last) => python.run("[bare.broadcast(channel, 'n', n).result() for n in range(first, last + 1)]", { channel, first, last });
  const { epoch } = await client.join(channel, message => message.event === "n" && void numbers.push(message.data));
  await publish(1, 3);
  await eventually(() => numbers.length === 3);
  await python.run("bare_proxy.cut()");
  await eventually(() => client.told.welcome.length === 2);
  await client.ping();
  await publish(4, 5);
  await eventually(() => numbers.length === 5);
  assert.deepEqual(client.told.gap, []);
  await python.run("bare_proxy.refuse()\nbare_proxy.cut()");
  await client.reach("waiting");
  await publish(6, 8);
  await python.run("bare_proxy.accept()");
  await eventually(() => client.told.gap.length === 1);
  await publish(9, 9);
  await eventually(() => numbers.at(-1) === 9);
  assert.deepEqual(client.told.gap, [{ channel, epoch, from: 6, to: 8, reason: "expired" }]);
  assert.deepEqual(numbers, [1, 2, 3, 4, 5, 9]);
});

scene("more than goes into one answer comes in pages", async (t, channel) => {
  const client = await join(t, channel);
  await python.run("proxy.refuse()\nproxy.cut()");
  await client.reach("waiting");
  await python.run("[server.broadcast(channel, 'n', n).result() for n in range(1, 41)]", { channel });
  await python.run("[server.broadcast(channel, 'big', 'x' * 100_000).result() for n in range(20)]", { channel });
  await publish(channel, 41, 60);
  await python.run("proxy.accept()");
  await eventually(() => client.numbers.length === 60);
  assert.deepEqual(client.numbers, upTo(60));
  assert.deepEqual(client.told.gap, []);
  assert.equal(client.position(channel).offset, 80);
});

scene("mail is acknowledged when its handlers have returned, awaited if they are async", async (t, channel) => {
  const client = connect(t, port);
  await client.ping();
  let finish;
  client.on("mail", () => new Promise(resolve => (finish = resolve)));
  const id = await python.run("server.send(client, {'n': 1}, channel).result()", { client: client.clientId, channel });
  await eventually(() => finish, "the handler has been called");
  await client.ping();
  assert.equal(await python.run("server.delivery(message)['acknowledged']", { message: id }), 0);
  finish();
  await eventually(async () => (await python.run("server.delivery(message)['acknowledged']", { message: id })) === 1, "the acknowledgement");
  assert.deepEqual(client.told.mail.map(({ n, channel }) => [n, channel]), [[1, channel]]);
});

scene("an emergency that is sent again is shown once, and acknowledged", async t => {
  const client = connect(t, port);
  await client.ping();
  let finish;
  client.on("emergency", () => new Promise(resolve => (finish = resolve)));
  await python.run("server.emergency('stampede').result()");
  await eventually(() => finish);
  // the server asks again each 0.3 s
  await sleep(1000);
  finish();
  await eventually(() => client.told.emergency.length > 0);
  assert.deepEqual(client.told.emergency.map(alert => alert.data.message), ["stampede"]);
  assert.equal(client.told.message.filter(({ event }) => event === "emergency_alert").length, 1);
  const { id } = client.told.emergency[0];
  await eventually(async () => (await python.run("server.delivery(message)['acknowledged']", { message: id })) >= 1, "the acknowledgement");
});

scene("a handler that fails is reported, and harms nothing else", async (t, channel) => {
  const client = connect(t, port);
  const seen = [];
  await client.join(channel, ({ event }) => {
    if (event === "n") throw new Error("sync");
  });
  await client.join(channel, async ({ event }) => {
    if (event === "n") throw new Error("async");
  });
  await client.join(channel, message => message.event === "n" && void seen.push(message.data));
  await publish(channel, 1, 2);
  await eventually(() => seen.length === 2 && client.told.error.length === 4);
  assert.deepEqual(client.told.error.map(({ error }) => error.message).sort(), ["async", "async", "sync", "sync"]);
  assert.ok(client.told.error.every(({ value }) => value.channel === channel));
});

scene("a listener is taken off by what `on` returned, and one that listens for errors may fail too", async (t, channel) => {
  const said = t.mock.method(console, "error", () => {});
  const client = connectClient(`ws://127.0.0.1:${port}`, { WebSocket });
  t.after(() => client.close());
  const seen = [];
  await client.join(channel, message => {
    if (message.event === "n") throw new Error(`about ${message.data}`);
  });
  const off = client.on("error", ({ error }) => {
    seen.push(error.message);
    throw new Error("me too");
  });
  await publish(channel, 1, 1);
  await eventually(() => said.mock.callCount() === 1);
  off();
  await publish(channel, 2, 2);
  await eventually(() => said.mock.callCount() === 2);
  assert.deepEqual(seen, ["about 1"]);
  assert.deepEqual(said.mock.calls.map(({ arguments: [, error] }) => error.message), ["me too", "about 2"]);
});

scene("a handler may join, leave, broadcast and close", async (t, channel) => {
  const client = connect(t, port);
  const seen = [];
  await client.join(channel, async message => {
    seen.push(message.data);
    if (message.data === 1) {
      await client.join(`${channel}-2`, ({ event, data }) => event === "n" && void seen.push(data));
      await client.broadcast(`${channel}-2`, "n", 2);
    }
    if (message.data === 3) client.close();
  });
  await publish(channel, 1, 1);
  await eventually(() => seen.includes(2));
  await publish(channel, 3, 5);
  await client.reach("closed");
  assert.deepEqual(seen.filter(Number), [1, 2, 3]);
});

scene("close ends it for good: others are told at once, and what waits is rejected", async (t, channel) => {
  const watcher = connect(t, port);
  const left = [];
  await watcher.join(channel, message => message.event === "user_left" && void left.push(message.data.client_id));
  const client = await join(t, channel);
  await python.run("proxy.stall(TO_CLIENT)");
  const waiting = client.ping();
  const unheard = client.broadcast(channel, "unheard"); // nobody has to catch it
  client.close();
  client.close();
  await assert.rejects(waiting, { code: "closed", closeCode: 1000 });
  await assert.rejects(client.join(channel), { name: "TantorError", code: "closed" });
  await assert.rejects(unheard, TantorError);
  assert.equal(client.told.state.at(-1).state, "closed");
  await eventually(() => left.includes(client.clientId), "user_left");
  await sleep(100);
  assert.equal(client.state, "closed");
});

for (const state of ["connecting", "connected", "waiting"]) {
  scene(`close while a listener is told of ${state} ends it for good`, async t => {
    if (state === "waiting") await python.run("proxy.refuse()");
    const client = connect(t, proxied);
    client.on("state", told => told.state === state && client.close());
    await client.reach("closed");
    await sleep(600); // longer than it would wait
    const states = client.told.state.map(told => told.state);
    assert.equal(states.at(-1), "closed");
    assert.equal(states.filter(name => name === "connecting").length, 1);
    await eventually(async () => !(await python.run("server.connections.get(client)", { client: client.clientId ?? "nobody" })), "it has left");
  });
}

scene("a join that was refused leaves no handler behind", async (t, channel) => {
  await python.run("narrow = serve(max_channels_per_client=2)");
  const client = connect(t, await python.run("narrow.port"));
  await client.join(`${channel}-2`);
  const seen = [];
  const count = message => message.event === "n" && void seen.push(message.data);
  await assert.rejects(client.join(channel, message => count(message)), { code: 110 });
  await client.leave(`${channel}-2`);
  await client.join(channel, message => count(message));
  await python.run("narrow.broadcast(channel, 'n', 1).result()", { channel });
  await client.ping();
  assert.deepEqual(seen, [1]);
});

scene("a client that was lost is expected back, and not told to have left", async (t, channel) => {
  const watcher = connect(t, port);
  const left = [];
  await watcher.join(channel, message => message.event === "user_left" && void left.push(message));
  const client = await join(t, channel);
  await python.run("proxy.drop(TO_CLIENT)");
  await eventually(() => client.told.welcome.length === 2, () => JSON.stringify(client.told.state));
  await client.broadcast(channel, "n", 1);
  assert.deepEqual(left, []);
  assert.deepEqual(client.numbers.length, 1);
});

scene("a server that stops is returned to when it said, and a restarted one is another stream", async (t, channel) => {
  await python.run("later = free_port()\nfirst = serve(port=later, reconnect_window=0.4)");
  const client = connect(t, await python.run("later"), { minDelay: 5000, maxDelay: 5000 });
  const numbers = [];
  const { epoch } = await client.join(channel, message => message.event === "n" && void numbers.push(message.data));
  await python.run("first.broadcast(channel, 'n', 1).result()", { channel });
  await python.run("first.stop().result(15)\nsecond = serve(port=later)\nsecond.broadcast(channel, 'n', 2).result()", { channel });
  await eventually(() => numbers.length === 2, () => JSON.stringify(client.told.state));
  const wait = client.told.state.find(({ state }) => state === "waiting");
  assert.deepEqual([wait.code, wait.reason], [1001, "shutdown"]);
  assert.ok(wait.delay <= 400, `as it was told, not as it would by itself: ${wait.delay}`);
  assert.deepEqual(numbers, [1, 2]);
  assert.deepEqual(
    client.told.gap.map(gap => [gap.channel, gap.epoch, gap.from, gap.to, gap.reason]),
    [[null, null, null, null, "new_client"], [channel, epoch, 2, null, "epoch"]],
  );
  assert.notEqual(client.position(channel).epoch, epoch);
});

scene("a client that is displaced does not come back", async (t, channel) => {
  const storage = new Map();
  const kept = { getItem: key => storage.get(key) ?? null, setItem: (key, value) => storage.set(key, value), removeItem: key => storage.delete(key) };
  const client = connect(t, port);
  await client.join(channel);
  const token = client.told.welcome[0].resume;
  const positions = { [channel]: client.position(channel) };
  storage.set(`tantor:ws://127.0.0.1:${port}/`, JSON.stringify({ token, clientId: client.clientId, positions }));
  await publish(channel, 1, 2);
  const thief = connect(t, port, { storage: kept });
  const numbers = [];
  await thief.join(channel, message => message.event === "n" && void numbers.push(message.data));
  await client.reach("closed");
  assert.equal(storage.size, 0, "taken by one, for no other");
  assert.deepEqual([thief.clientId, thief.told.state.at(-1).resumed], [client.clientId, true]);
  assert.deepEqual([client.told.state.at(-1).code, client.told.state.at(-1).reason], [3503, "displaced"]);
  await assert.rejects(client.ping(), { code: "closed" });
  await eventually(() => numbers.length === 2, "what came since the position");
  assert.equal(client.told.welcome.length, 1);
});

scene("storage that holds something else, or nothing, or fails, is no harm", async t => {
  const texts = ["{", "null", '"x"', '{"token":5}', '{"token":"x","clientId":"y","positions":{"a":1}}'];
  for (const text of texts) {
    const client = connect(t, port, { storage: { getItem: () => text, setItem() {}, removeItem() {} } });
    assert.ok((await client.ping()) >= 0, text);
    assert.equal(client.told.gap.length, text.includes('"y"') ? 1 : 0, "a token that is none is told");
  }
  const fails = () => assert.fail("no storage");
  const client = connect(t, port, { storage: { getItem: fails, setItem: fails, removeItem: fails } });
  assert.ok((await client.ping()) >= 0);
});

scene("a consumer that does not read is closed as slow, and gets all the same", async (t, channel) => {
  await python.run("tight = serve(max_pending_bytes=20_000, history_size=20_000)\ntight_proxy = proxy_to(tight.port)");
  const client = connect(t, await python.run("tight_proxy.port"));
  const numbers = [];
  await client.join(channel, message => message.event === "n" && void numbers.push(message.data.n));
  await python.run("tight_proxy.stall(TO_CLIENT)");
  await python.run("sent = 0");
  await python.run(
    "while not tight.stats()['disconnects'].get('slow_consumer'):\n    assert sent < 20_000, tight.stats()\n" +
      "    for _ in range(20):\n        sent += 1\n        tight.broadcast(channel, 'n', {'n': sent, 'fill': 'x' * 2000}).result()",
    { channel },
  );
  await python.run("tight_proxy.resume()");
  const sent = await python.run("sent");
  await eventually(() => numbers.length === sent, () => `${numbers.length} of ${sent}: ${JSON.stringify(client.told.state)}`);
  assert.deepEqual(numbers, upTo(sent));
  assert.deepEqual(client.told.gap, []);
});

scene("what a channel's policy drops for a slow consumer is told, with its bounds", async (t, channel) => {
  await python.run(
    "rules = {'*': {'slow_consumer': 'drop_oldest'}}\n" +
      "shed = serve(max_pending_bytes=20_000, history_size=5000, channel_settings=rules)\nshed_proxy = proxy_to(shed.port)",
  );
  const client = connect(t, await python.run("shed_proxy.port"));
  const offsets = [];
  await client.join(channel, message => message.event === "n" && void offsets.push(message.offset));
  await python.run("shed_proxy.stall(TO_CLIENT)\nsent = 0");
  await python.run(
    "while not shed.stats()['dropped'].get('drop_oldest'):\n    assert sent < 20_000, shed.stats()\n" +
      "    for _ in range(20):\n        sent += 1\n        shed.broadcast(channel, 'n', 'x' * 2000).result()",
    { channel },
  );
  await python.run("shed_proxy.resume()");
  const sent = await python.run("sent");
  await eventually(() => offsets.at(-1) === sent, () => `${offsets.at(-1)} of ${sent}`);
  const told = client.told.gap.flatMap(({ from, to }) => Array.from({ length: to - from + 1 }, (_, index) => from + index));
  const both = [...offsets, ...told].sort((one, other) => one - other);
  assert.deepEqual(both, upTo(sent), "each was shown or told to be lost, and none was both");
  assert.deepEqual([...new Set(client.told.gap.map(({ reason }) => reason))], told.length ? ["drop_oldest"] : []);
});

scene("high, normal and low priority end in the channel's order, complete", async (t, channel) => {
  const client = await join(t, channel);
  await python.run("proxy.stall(TO_CLIENT)");
  await python.run(
    "for n in range(1, 201):\n" +
      "    server.broadcast(channel, 'n', n, priority=['low', 'normal', 'high'][n % 3]).result()\n" +
      "    server.broadcast(channel, 'fill', 'x' * 1000, priority='low').result()",
    { channel },
  );
  await python.run("proxy.resume()");
  await eventually(() => client.numbers.length === 200, () => `${client.numbers.length}: ${JSON.stringify(client.told)}`);
  assert.deepEqual(client.numbers, upTo(200));
  assert.deepEqual(client.told.gap, []);
});

scene("an answer that never comes to a handshake is given up on", async t => {
  await python.run("proxy.stall(TO_CLIENT, later=True)");
  const client = connect(t, proxied, { connectTimeout: 200 });
  await eventually(() => client.told.state.some(({ reason }) => reason === "no welcome in time"));
  await python.run("proxy.resume()");
  assert.ok((await client.ping()) >= 0);
});

scene("a server that is none is not taken for one", async t => {
  const other = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  t.after(() => new Promise(resolve => other.close(resolve)));
  await once(other, "listening");
  other.on("connection", socket => {
    socket.on("error", () => {});
    socket.send("not JSON");
    socket.send('{"event":"hello"}');
  });
  const client = connect(t, other.address().port, { connectTimeout: 200 });
  await eventually(() => client.told.state.filter(({ state }) => state === "waiting").length >= 2);
  assert.equal(client.told.error[0].error.code, "not_json");
  assert.deepEqual(client.told.message, []);
  client.close();
  for (const socket of other.clients) socket.terminate();
});

scene("a position that one has begins behind it: history first, then what follows, without a seam", async (t, channel) => {
  await publish(channel, 1, 5);
  const client = connect(t, port);
  const { epoch, offset, publications } = await client.history(channel);
  await publish(channel, 6, 8);
  const numbers = publications.map(({ data }) => data);
  const joined = await client.join(channel, message => message.event === "n" && void numbers.push(message.data), { recover: { epoch, offset } });
  await publish(channel, 9, 9);
  await eventually(() => numbers.length === 9);
  assert.equal(joined.recovered, true);
  assert.deepEqual(numbers, upTo(9));
  const late = connect(t, port);
  assert.equal((await late.join(channel, { recover: { epoch: "0123456789abcdef", offset: 3 } })).reason, "epoch");
  await eventually(() => late.told.gap.length === 1);
  assert.deepEqual(late.told.gap[0], { channel, epoch: "0123456789abcdef", from: 4, to: null, reason: "epoch" });
});
