// What the tests in node share: Python to serve and to harm, waiting, clients.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import ws from "ws";
import { connect as connectClient } from "../../python/tantor/js/tantor.js";

// node's own, or that of the package `ws`
const WebSocket = process.env.TEST_WEBSOCKET === "global" ? globalThis.WebSocket : ws;

/** A Python of its own, which `control.py` has ready. It must have tantor: the environment's PYTHON says which. */
export class Python {
  #process = spawn(process.env.PYTHON ?? "python3", [new URL("control.py", import.meta.url).pathname], { stdio: ["pipe", "pipe", "inherit"] });
  #lines = createInterface({ input: this.#process.stdout })[Symbol.asyncIterator]();
  #last = Promise.resolve();

  /** The value of an expression, or nothing for statements; with these names set. */
  run(code, names = {}) {
    return (this.#last = this.#last.catch(() => {}).then(async () => {
      this.#process.stdin.write(`${JSON.stringify({ code, names })}\n`);
      const { value: line, done } = await this.#lines.next();
      assert.ok(!done, "Python has ended");
      const { value, error } = JSON.parse(line);
      if (error) throw new Error(`in Python:\n${error}`);
      return value;
    }));
  }

  async end() {
    this.#process.stdin.end();
    await new Promise(resolve => this.#process.once("exit", resolve));
  }
}

/** Polls until a condition holds, and returns its value. */
export async function eventually(condition, message = "it holds", timeout = 20_000) {
  for (const end = Date.now() + timeout; ; ) {
    const value = await condition();
    if (value) return value;
    assert.ok(Date.now() < end, `not within ${timeout} ms: ${typeof message === "function" ? message() : message}`);
    await new Promise(resolve => setTimeout(resolve, 5));
  }
}

/** A client that is quick to notice and to return, with all that it tells; closed when the test ends. */
export function connect(t, port, options = {}) {
  const client = connectClient(`ws://127.0.0.1:${port}/`, { WebSocket, minDelay: 20, maxDelay: 500, ...options });
  const told = { state: [], welcome: [], message: [], mail: [], emergency: [], gap: [], error: [] };
  for (const name of Object.keys(told)) client.on(name, value => void told[name].push(value));
  t.after(() => client.close());
  return Object.assign(client, {
    told,
    /** Until it is in this state, again if it was. */
    async reach(state, condition = () => true) {
      await eventually(() => client.state === state && condition(), () => `${state}: ${JSON.stringify(told.state)}`);
    },
  });
}

/** Numbers from 1, or from another, on. */
export function upTo(last, first = 1) {
  return Array.from({ length: last - first + 1 }, (_, index) => first + index);
}

// Crowds of clients that live through faults.

export const FAULT_SECONDS = Number(process.env.TANTOR_FAULT_SECONDS ?? 15);
export const CLIENTS = 100;
const QUICK = { heartbeatSlack: 500, probeTimeout: 1000, connectTimeout: 2000, minDelay: 50, maxDelay: 1000 };

/** Clients on the channel `storm`, each with the numbers that it was shown. */
export async function crowd(t, port) {
  const clients = Array.from({ length: CLIENTS }, () => Object.assign(connect(t, port, QUICK), { numbers: [] }));
  await Promise.all(clients.map(client => client.join("storm", ({ event, data }) => event === "n" && void client.numbers.push(data))));
  return clients;
}

/** How often these clients have connected, in all. */
export function connects(clients) {
  return clients.reduce((sum, { told }) => sum + told.welcome.length, 0);
}
