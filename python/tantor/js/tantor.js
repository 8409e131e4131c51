// Tantor's client for browsers and node: one module, without dependencies. Its types are in tantor.d.ts, the wire in
// docs/protocol.md, a guide in docs/clients.md.
//
//     import { connect } from "http://localhost:8080/tantor.js";
//     const t = connect("ws://localhost:8080");
//     t.join("jungle", message => console.log(message.event, message.data));
//
// From top to bottom: `connect` and `Tantor` (sockets, timers, handlers), then `Session` and `Subscription`: they decide
// which frames to send and which messages to show, and use no sockets, timers or clocks.

/** @import * as Api from "./tantor.d.ts" */
/** @typedef {Record<string, any>} Wire */
/** @typedef {{resolve: (value: any) => void, reject: (error: TantorError) => void}} Settle */

const DEFAULTS = {
  minDelay: 500,
  maxDelay: 20_000,
  connectTimeout: 10_000,
  heartbeatSlack: 10_000,
  probeTimeout: 5_000,
  maxPending: 1000,
};
const LISTENERS = /** @type {const} */ (["state", "welcome", "message", "mail", "emergency", "gap", "error"]);

// after a connection that lived so long, the next delay is short again
const STABLE = 2000;
// the longest time from a socket's error to its close
const ERROR_GRACE = 100;
// a timer that is this late shows that this machine was busy or asleep, and tells nothing about the server
const LATE = 1000;
// a step in the tab's history saves the session early; if no `pagehide` follows within this time, the session leaves storage
const EARLY = 10_000;
// a page that is shown again waits so long for the replaced page to save the session
const HANDOVER = 500;
// the longest delay of setTimeout
const LONGEST_TIMER = 2 ** 31 - 1;
// acknowledgements are sent together: after so long, or when there are so many
const ACK_DELAY = 20;
const MOST_ACKS = 500;
// rejections with these codes are caused by calls of the application: `close`, `leave`
/** @type {Set<unknown>} */
const EXPECTED = new Set(["closed", "left"]);
// close codes: the client leaves; the client may return; the first of the codes after which no client may return
const LEAVING = 1000;
const RETURNING = 4900;
const FINAL = 3500;

/** @param {string | URL} url @param {Api.Options} [options] @returns {Api.Tantor} */
export function connect(url, options = {}) {
  return new Tantor(url, options);
}

/** A refusal: by the server (`code` is a number, see docs/protocol.md) or by this client (`code` is a word). */
export class TantorError extends Error {
  /** @param {number | string} code @param {string} message @param {Record<string, unknown>} [details] */
  constructor(code, message, details = {}) {
    super(message);
    Object.assign(this, details);
    this.name = "TantorError";
    this.code = code;
  }
}

/**
 * The handlers of a channel. `isHeld`: the application called `join`, so that only `leave` leaves the channel.
 * @typedef {{handlers: Set<Function>, isHeld: boolean}} Room
 */

/** @implements {Api.Tantor} */
class Tantor {
  #options;
  #url;
  #WebSocket;
  #session;
  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {Api.StateName} */
  #state = "connecting";
  #attempt = 0;
  #welcomedAt = 0;
  #heardAt = 0;
  #heard = 0;
  /** The ping that waits for its answer. @type {object | null} */
  #probed = null;
  /** The network or the page is back, and the connection may be dead: if the connection ends now, connect at once. */
  #isWaking = false;
  /** The delay that the server's goodbye named, in milliseconds. @type {number | null} */
  #advice = null;
  /** The page is hidden in the back/forward cache, and may be shown again. */
  #isSuspended = false;
  #retry = new Deadline();
  #watch = new Deadline();
  #acking = new Deadline();
  /** Set while storage has the session of a page that is still shown: deletes the session from storage. */
  #unsaving = new Deadline();
  #isPumping = false;
  /** @type {Map<string, Room>} by channel */
  #rooms = new Map();
  /** @type {Map<string, Set<Function>>} by name */
  #listeners = new Map(LISTENERS.map(name => [name, new Set()]));
  /** @type {(() => void)[]} */
  #unhook = [];

  /** @param {string | URL} url @param {Api.Options} options */
  constructor(url, options) {
    this.#options = { ...DEFAULTS, ...options };
    for (const name of /** @type {(keyof typeof DEFAULTS)[]} */ (Object.keys(DEFAULTS))) {
      const value = this.#options[name];
      if (typeof value !== "number" || !(value >= 1 && value <= LONGEST_TIMER)) {
        throw new TypeError(`${name} is ${shown(value)}; it takes a number from 1 to ${LONGEST_TIMER}`);
      }
    }
    this.#url = webSocketUrl(url);
    const { WebSocket = globalThis.WebSocket, storage, protocols } = this.#options;
    const isText = (/** @type {unknown} */ value) => typeof value === "string";
    if (protocols !== undefined && !isText(protocols) && !(Array.isArray(protocols) && protocols.every(isText))) {
      throw new TypeError(`protocols is ${shown(protocols)}; it takes a subprotocol's name or an array of names`);
    }
    if (typeof WebSocket !== "function") {
      throw new TypeError(
        `WebSocket is ${shown(WebSocket)}; where there is none, as in node before 22, give one: connect(url, { WebSocket: require("ws") })`,
      );
    }
    this.#WebSocket = WebSocket;
    this.#session = new Session({ maxPending: this.#options.maxPending, clock: Date.now, saved: take(storage, this.#url.href) });
    this.#hookPage();
    // asynchronously, so that the application can add listeners before the first event
    queueMicrotask(() => this.#state === "connecting" && !this.#socket && this.#open());
  }

  get state() {
    return this.#state;
  }

  get clientId() {
    return this.#session.clientId;
  }

  /**
   * @param {string} channel @param {Api.Handler<Api.Message> | Api.JoinOptions} [handler] @param {Api.JoinOptions} [options]
   * @returns {Promise<Api.Joined>}
   */
  join(channel, handler, options) {
    if (typeof handler === "object" && handler !== null) [handler, options] = [undefined, handler];
    const recover = options?.recover;
    return this.#ask(settle => {
      checkName("channel", channel);
      if (handler !== undefined) checkFunction("handler", handler);
      if (recover) checkPosition(recover);
      this.#session.join(channel, recover, settle);
      const room = this.#room(channel);
      room.isHeld = true;
      if (handler) room.handlers.add(handler);
    });
  }

  /** @type {Api.Tantor["subscribe"]} */
  subscribe(channel, handler) {
    checkName("channel", channel);
    checkFunction("handler", handler);
    if (this.#state === "closed") {
      this.#report(new TantorError("closed", `channel ${shown(channel)} cannot be joined: this client is closed`));
      return () => {};
    }
    // a function of its own: two components may pass the same handler
    const own = (/** @type {any} */ message) => handler(message);
    if (!this.#session.has(channel)) {
      // no caller awaits this join, so a refusal is reported, unless the application's own call caused the refusal
      this.#ask(settle => this.#session.join(channel, undefined, settle)).catch(error => {
        if (!EXPECTED.has(error.code)) this.#report(error);
      });
    }
    const room = this.#room(channel);
    room.handlers.add(own);
    return () => {
      const isLast = room.handlers.delete(own) && !room.handlers.size && !room.isHeld;
      // not at once: a framework that mounts a component again in the same turn stays on the channel, and misses nothing
      if (isLast) queueMicrotask(() => this.#leaveUnused(channel, room));
    };
  }

  /** @param {string} channel @param {Room} room */
  #leaveUnused(channel, room) {
    if (this.#rooms.get(channel) !== room || room.handlers.size || room.isHeld) return;
    this.leave(channel).catch(error => {
      if (!EXPECTED.has(error.code)) this.#report(error);
    });
  }

  /** @param {string} channel */
  #room(channel) {
    const room = this.#rooms.get(channel) ?? { handlers: new Set(), isHeld: false };
    this.#rooms.set(channel, room);
    return room;
  }

  /** @type {Api.Tantor["leave"]} */
  leave(channel) {
    return this.#ask(settle => {
      checkName("channel", channel);
      this.#session.leave(channel, settle);
      this.#rooms.delete(channel);
    });
  }

  /** @type {Api.Tantor["broadcast"]} */
  broadcast(channel, event, data, { idempotencyKey = randomKey() } = {}) {
    return /** @type {Promise<any>} */ (this.command("broadcast", { channel, event, data, idempotency_key: idempotencyKey }));
  }

  /** @type {Api.Tantor["history"]} */
  history(channel, { limit, after, before } = {}) {
    return /** @type {Promise<any>} */ (this.command("history", { channel, limit, after, before }));
  }

  /** @type {Api.Tantor["presence"]} */
  presence(channel) {
    return /** @type {Promise<any>} */ (this.command("presence", { channel }));
  }

  /** @type {Api.Tantor["ping"]} */
  ping() {
    const asked = Date.now();
    return this.#ask(({ resolve, reject }) => {
      this.#session.command({ action: "ping" }, { resolve: () => resolve(Date.now() - asked), reject });
    });
  }

  /** @type {Api.Tantor["command"]} */
  command(action, fields = {}) {
    return this.#ask(settle => {
      if (typeof action !== "string" || !action) {
        throw new TypeError(`action is ${shown(action)}; it takes a text that is not empty`);
      }
      this.#session.command({ ...fields, action }, settle);
    });
  }

  /** @type {Api.Tantor["on"]} */
  on(name, listener) {
    const listeners = this.#listeners.get(name);
    if (!listeners) throw new TypeError(`there is no event ${shown(name)}; there are ${LISTENERS.join(", ")}`);
    checkFunction("listener", listener);
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }

  /** @type {Api.Tantor["position"]} */
  position(channel) {
    return this.#session.position(channel);
  }

  close() {
    if (this.#state === "closed") return;
    this.#sendAcks();
    this.#end(LEAVING, "closed by this client", LEAVING);
  }

  /** @param {(settle: Settle) => void} start @returns {Promise<any>} */
  #ask(start) {
    let /** @type {Settle | undefined} */ settle;
    const promise = new Promise((resolve, reject) => {
      settle = { resolve, reject };
    });
    const { resolve, reject } = /** @type {Settle} */ (/** @type {unknown} */ (settle));
    try {
      if (this.#state === "closed") throw new TantorError("closed", "this client is closed");
      start({
        resolve,
        reject: error => {
          // the application called `close` or `leave`: it need not catch the rejections that its own call caused
          if (EXPECTED.has(error.code)) promise.catch(() => {});
          reject(error);
        },
      });
    } catch (error) {
      reject(/** @type {TantorError} */ (error));
    }
    this.#pump();
    return promise;
  }

  // The connection

  #open() {
    this.#retry.clear();
    this.#advice = null;
    this.#set("connecting");
    if (this.#state !== "connecting") return; // a listener has closed it
    const url = new URL(this.#url);
    url.searchParams.set("ack", "1");
    // Firefox closes with 1001 before `pagehide`: so the server knows beforehand that a page which goes may be back
    if (this.#options.storage) url.searchParams.set("return", "1");
    if (this.#session.token) url.searchParams.set("resume", this.#session.token);
    let /** @type {WebSocket} */ socket;
    try {
      socket = new this.#WebSocket(url.href, this.#options.protocols);
    } catch (error) {
      // not a matter of time: a page from https may not connect to ws, for one
      this.#end(0, String(error), LEAVING);
      return;
    }
    this.#socket = socket;
    this.#welcomedAt = 0;
    socket.onmessage = event => this.#receive(event.data);
    socket.onclose = event => this.#lost(event.code, event.reason);
    // a close follows, but not in every implementation
    socket.onerror = () => {
      if (socket === this.#socket) this.#watch.set(ERROR_GRACE, () => this.#drop("the connection failed"));
    };
    this.#watch.set(this.#options.connectTimeout, () => this.#drop("no welcome in time"));
  }

  /** @param {unknown} data */
  #receive(data) {
    this.#heardAt = Date.now();
    this.#heard += 1;
    let message;
    try {
      message = JSON.parse(String(data));
      if (typeof message !== "object" || message === null) throw new TypeError("it is no object");
    } catch (error) {
      this.#report(new TantorError("not_json", `the server sent ${shown(data)}: ${error}`));
      return;
    }
    const wasOpen = this.#session.isOpen;
    this.#session.receive(message, String(data).length);
    if (!wasOpen && this.#session.isOpen) {
      this.#welcomedAt = this.#heardAt;
      this.#isWaking = false;
      this.#listen();
      this.#set("connected", { resumed: message.resumed === true });
    }
    const { event, channel, reconnect_after_ms: advice } = message;
    if (event === "server_shutdown" && channel === "system" && advice >= 0) this.#advice = advice;
    this.#pump();
    // positions have moved
    if (this.#unsaving.isSet && this.#state !== "closed") this.#save();
  }

  /** Starts the timer that notices silence. */
  #listen() {
    const limit = this.#session.heartbeat * 1000 + this.#options.heartbeatSlack;
    const silence = Math.max(0, Date.now() - this.#heardAt);
    this.#watch.set(Math.max(0, limit - silence), () => {
      if (Date.now() - this.#heardAt >= limit) this.#probe();
      else this.#listen();
    });
  }

  /** Pings the server after silence, because the cause may be this machine: it slept, or throttled timers. */
  #probe() {
    if (!this.#session.isOpen) return;
    const probe = (this.#probed = {});
    const answered = () => {
      if (this.#probed !== probe) return;
      this.#probed = null;
      this.#isWaking = false;
      this.#listen();
    };
    this.#session.question({ action: "ping" }, { resolve: answered, reject: answered });
    this.#pump();
    this.#awaitAnswer();
  }

  #awaitAnswer() {
    const heard = this.#heard;
    // bytes that wait to be sent; while they decrease, the ping has not been sent yet
    const unsent = this.#socket?.bufferedAmount ?? 0;
    this.#watch.set(this.#options.probeTimeout, () => {
      // a message may have waited in this machine for long: it does not prove that the server is there
      if (this.#heard !== heard || (this.#socket?.bufferedAmount ?? 0) < unsent) this.#awaitAnswer();
      else this.#drop("the server is silent");
    });
  }

  /** Ends a connection that may be dead, without waiting for its close. @param {string} reason */
  #drop(reason) {
    this.#abandon(RETURNING);
    this.#lost(1006, reason);
  }

  /** @param {number} code */
  #abandon(code) {
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onmessage = socket.onclose = null;
    try {
      // the close of node's ws would wait for the server's answer
      if (code === RETURNING && "terminate" in socket) /** @type {any} */ (socket).terminate();
      else socket.close(code);
    } catch {
      // the socket has ended
    }
  }

  /** @param {number} code @param {string} reason */
  #lost(code, reason) {
    this.#socket = null;
    this.#watch.clear();
    this.#acking.clear();
    this.#probed = null;
    this.#session.lost(code);
    if (code >= FINAL && code !== RETURNING) {
      this.#end(code, reason || "the server does not want this client back", LEAVING);
      return;
    }
    const lived = this.#welcomedAt ? Date.now() - this.#welcomedAt : 0;
    this.#attempt = lived >= STABLE || this.#isWaking ? 0 : this.#attempt + 1;
    this.#wait(code, reason);
    this.#isWaking = false;
    this.#pump();
  }

  /** @param {number} [code] @param {string} [reason] */
  #wait(code, reason) {
    const { minDelay, maxDelay } = this.#options;
    // full jitter, so that clients that were lost together do not return together
    let delay = Math.random() * Math.min(maxDelay, minDelay * 2 ** Math.min(this.#attempt, 30));
    if (this.#isWaking) delay = 0;
    if (this.#advice !== null) delay = this.#advice;
    const isOffline = this.#advice === null && globalThis.navigator?.onLine === false;
    // `navigator.onLine` is no proof: a server on this machine can be reached without a network
    if (isOffline) delay = maxDelay;
    this.#retry.set(delay, () => this.#open());
    this.#set(isOffline ? "offline" : "waiting", { code, reason, delay });
  }

  /** Connects or pings at once, because the network is back or the page is shown. */
  #wake() {
    if (this.#isSuspended || this.#state === "closed") return;
    if (this.#socket) {
      // the end of the connection may be on its way, or a connect from before may never end
      this.#isWaking = true;
      this.#probe();
    } else if (this.#retry.isSet && this.#advice === null) {
      this.#attempt = 0;
      this.#open();
    }
  }

  /** @param {number} code @param {string} reason @param {number} closing */
  #end(code, reason, closing) {
    this.#retry.clear();
    this.#watch.clear();
    this.#acking.clear();
    this.#unsave();
    for (const unhook of this.#unhook.splice(0)) unhook();
    this.#abandon(closing);
    this.#rooms.clear();
    this.#set("closed", { code, reason });
    this.#session.end(new TantorError("closed", `this client is closed: ${reason}`, { closeCode: code }));
  }

  /** @param {Api.StateName} state @param {Partial<Api.State>} [details] */
  #set(state, details = {}) {
    this.#state = state;
    this.#call(this.#listeners.get("state"), { state, ...details });
  }

  // The page

  #hookPage() {
    const { document, addEventListener, navigator, navigation } =
      /** @type {Partial<typeof globalThis> & { navigation?: EventTarget }} */ (globalThis);
    if (typeof addEventListener !== "function" || !navigator) return;
    const hook = (/** @type {EventTarget | undefined} */ target, /** @type {string} */ name, /** @type {(event: any) => void} */ f) => {
      target?.addEventListener?.(name, f);
      this.#unhook.push(() => target?.removeEventListener?.(name, f));
    };
    hook(globalThis, "online", () => this.#wake());
    hook(globalThis, "offline", () => {
      if (this.#isSuspended) return;
      if (this.#state === "waiting" && this.#advice === null) this.#wait(undefined, "offline");
      else this.#probe();
    });
    hook(navigation, "navigate", ({ navigationType, destination }) => {
      if (navigationType === "traverse" && !destination.sameDocument) this.#saveEarly();
    });
    hook(document, "visibilitychange", () => document?.visibilityState === "visible" && this.#wake());
    hook(document, "resume", () => this.#wake());
    hook(globalThis, "pagehide", event => this.#suspend(event.persisted));
    hook(globalThis, "pageshow", event => {
      if (!event.persisted || !this.#isSuspended || this.#state === "closed") return;
      // Chromium shows this page before the page that it replaces has saved the session, or in another process
      this.#retry.set(this.#options.storage ? HANDOVER : 0, () => {
        this.#isSuspended = false;
        this.#session.adopt(take(this.#options.storage, this.#url.href));
        this.#open();
      });
    });
  }

  /** Handles a page that is hidden or unloaded: after a reload the session comes from storage. @param {boolean} mayReturn */
  #suspend(mayReturn) {
    const { storage } = this.#options;
    if (this.#state === "closed" || (!storage && !mayReturn)) return;
    if (this.#isSuspended) {
      // the page was left before it took its session: the session of the other page is newer, and stays in storage
      this.#retry.clear();
      return;
    }
    this.#sendAcks();
    this.#isSuspended = true;
    this.#retry.clear();
    this.#watch.clear();
    this.#acking.clear();
    this.#unsaving.clear();
    this.#abandon(RETURNING);
    this.#session.lost(RETURNING);
    // the session is saved only now: a duplicate of this tab would otherwise displace this page while it lives
    this.#save();
    this.#set("waiting", { reason: "the page is put away" });
  }

  /**
   * The back or forward button leads to another document: Firefox discards what `pagehide` writes to sessionStorage then.
   * If the page is still there after a while, the session leaves storage again.
   */
  #saveEarly() {
    if (this.#isSuspended || this.#state === "closed") return;
    this.#save();
    this.#unsaving.set(EARLY, () => void take(this.#options.storage, this.#url.href));
  }

  /** Removes the session from storage, if `#saveEarly` saved it. */
  #unsave() {
    if (!this.#unsaving.isSet) return;
    this.#unsaving.clear();
    take(this.#options.storage, this.#url.href);
  }

  #save() {
    try {
      this.#options.storage?.setItem(storageKey(this.#url.href), JSON.stringify(this.#session.snapshot()));
    } catch (error) {
      this.#report(new TantorError("storage", `the session could not be saved: ${error}`));
    }
  }

  // Events for the application

  /** Sends the frames and runs the handlers that the session has queued, in order. */
  #pump() {
    if (this.#isPumping) return; // a handler has called
    this.#isPumping = true;
    const { events } = this.#session;
    try {
      let next = 0;
      do {
        for (const frame of this.#session.takeFrames()) this.#send(frame);
        if (next < events.length) this.#tell(...events[next]);
      } while (++next <= events.length);
    } finally {
      events.length = 0;
      this.#isPumping = false;
    }
    const waiting = this.#session.unacknowledged;
    if (waiting >= MOST_ACKS) this.#sendAcks();
    else if (waiting && !this.#acking.isSet && this.#state !== "closed") this.#acking.set(ACK_DELAY, () => this.#sendAcks());
  }

  /** @param {string} name @param {any} value */
  #tell(name, value) {
    if (this.#state === "closed") return;
    if (name === "dropped") {
      // a handler that ran before this event may have joined the channel again
      if (!this.#session.has(value)) this.#rooms.delete(value);
      return;
    }
    if (name !== "message") {
      this.#call(this.#listeners.get(name), value);
      return;
    }
    const kind = isAlert(value) ? "emergency" : isPublication(value) ? "" : "mail";
    const results = [this.#rooms.get(value.channel)?.handlers, this.#listeners.get("message"), this.#listeners.get(kind)].flatMap(
      handlers => this.#call(handlers, value),
    );
    if (!wantsAck(value)) return;
    const handled = () => {
      this.#session.handled(value.id);
      this.#pump();
    };
    if (results.length) void Promise.allSettled(results).then(handled);
    else handled();
  }

  /**
   * Runs handlers. A handler that fails does not affect the others. Returns the promises of async handlers.
   * @param {Set<Function> | undefined} handlers @param {any} value @returns {Promise<unknown>[]}
   */
  #call(handlers, value) {
    const promises = [];
    const areOfErrors = handlers === this.#listeners.get("error");
    const report = (/** @type {unknown} */ error) => {
      // a failing error listener must not be called about its own failure
      if (areOfErrors) console.error("Tantor: a listener of errors failed:", error);
      else this.#report(error, value);
    };
    for (const handler of [...(handlers ?? [])]) {
      if (!handlers?.has(handler)) continue; // an earlier handler has removed this one
      try {
        const result = handler(value);
        if (typeof result?.then === "function") promises.push(Promise.resolve(result).catch(report));
      } catch (error) {
        report(error);
      }
    }
    if (areOfErrors && !handlers?.size) console.error("Tantor:", value.error);
    return promises;
  }

  /** @param {unknown} error @param {unknown} [value] the argument of the handler that failed */
  #report(error, value) {
    this.#call(this.#listeners.get("error"), value === undefined ? { error } : { error, value });
  }

  #sendAcks() {
    this.#acking.clear();
    this.#session.acknowledge();
    for (const frame of this.#session.takeFrames()) this.#send(frame);
  }

  /** @param {string} text */
  #send(text) {
    // in any other state the connection is ending, and the commands are sent again on the next one
    if (this.#socket?.readyState === 1) this.#socket.send(text);
  }
}

/** A timer that lets messages be handled first that came while the machine slept or the tab was throttled. */
class Deadline {
  /** @type {ReturnType<typeof setTimeout> | null} */
  #timer = null;

  get isSet() {
    return this.#timer !== null;
  }

  /** @param {number} delay @param {() => void} due */
  set(delay, due) {
    this.clear();
    delay = Math.min(delay, LONGEST_TIMER);
    const at = Date.now() + delay;
    const fire = () => {
      this.#timer = null;
      due();
    };
    this.#timer = setTimeout(() => {
      if (Date.now() - at < LATE) fire();
      else this.#timer = setTimeout(fire, LATE);
    }, delay);
  }

  clear() {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }
}

// The session: messages in, frames and events out.

// the most messages of a channel that are kept while an answer is under way; beyond it the client asks again
const MOST_HELD = 1000;
const MOST_HELD_SIZE = 4 << 20;
// the number of ids that are remembered to recognise duplicates: of a channel, and of mail and emergencies
const KNOWN_PUBLICATIONS = 2000;
const KNOWN_MAIL = 5000;
const PAGE = 1000;
const MOST_LEFT = 128;
// a broadcast that may have arrived is repeated while the server knows its key (five minutes)
const REPEAT_WITHIN = 240_000;
// error and close codes
const TOO_LARGE = 105;
const TOO_DEEP = 106;
const MESSAGE_TOO_BIG = 1009;
const SLOW_CONSUMER = 3008;

class Session {
  /** @type {string | null} */
  clientId = null;
  /** @type {string | null} */
  token = null;
  /** The server's heartbeat interval in seconds. */
  heartbeat = 30;
  /** The present connection has got its welcome. */
  isOpen = false;
  /** Events for the application, each with its name. @type {[string, any][]} */
  events = [];
  /** @type {string[]} */
  #frames = [];
  #ref = 0;
  #maxPending;
  #clock;
  /** @type {Map<string, Subscription>} */
  #subscriptions = new Map();
  /** Channels that the application left; a new client is put on the default channel, which may be one of them. @type {Set<string>} */
  #left = new Set();
  /** Commands of the session itself; they end with the connection. @type {Map<number, Settle>} */
  #questions = new Map();
  /** Commands of the application; they are repeated on the next connection. @type {Map<number, Command>} */
  #pending = new Map();
  /** Mail and emergencies by id; true once their handlers have returned. */
  #known = new Recent(KNOWN_MAIL);
  /** @type {string[]} */
  #acks = [];
  /** The last connection was closed because its replies exceeded what the client could take. */
  #isCareful = false;
  /** Subscriptions that have not asked the server yet. @type {Subscription[]} */
  #turns = [];
  /** Positions from storage, of channels that were not joined yet. A map: channels may be named like members of every object. @type {Map<string, Api.Position>} */
  #saved;

  /** @param {{maxPending?: number, clock?: () => number, saved?: any}} [options] */
  constructor({ maxPending = DEFAULTS.maxPending, clock = () => 0, saved = null } = {}) {
    this.#maxPending = maxPending;
    this.#clock = clock;
    this.token = saved?.token ?? null;
    this.clientId = saved?.clientId ?? null;
    this.#saved = new Map(Object.entries(saved?.positions ?? {}));
  }

  /** The state from which a later session continues. */
  snapshot() {
    const positions = new Map(this.#saved);
    for (const { channel, position } of this.#subscriptions.values()) if (position) positions.set(channel, position);
    return { token: this.token, clientId: this.clientId, positions: Object.fromEntries(positions) };
  }

  /** A later page of this tab may have resumed this client: the token that the later page saved is the newer one. @param {any} saved */
  adopt(saved) {
    if (saved?.clientId === this.clientId) this.token = saved.token;
  }

  /** @param {string} channel @returns {Api.Position | null} */
  position(channel) {
    const position = this.#subscriptions.get(channel)?.position;
    return position ? { ...position } : null;
  }

  /** True if a channel is joined, or its join is under way. @param {string} channel */
  has(channel) {
    return this.#subscriptions.has(channel);
  }

  /** The number of messages to acknowledge. */
  get unacknowledged() {
    return this.isOpen ? this.#acks.length : 0;
  }

  /** @param {Subscription} subscription */
  isCurrent(subscription) {
    return this.#subscriptions.get(subscription.channel) === subscription;
  }

  /** A subscription is up to date: the next ones may ask. */
  settled() {
    const next = this.#turns.shift();
    if (next && (next.isBusy || !this.isCurrent(next))) this.settled();
    else next?.ask();
  }

  /** A join was refused. @param {Subscription} subscription @param {TantorError} error */
  drop(subscription, error) {
    const { channel, position } = subscription;
    if (this.#subscriptions.get(channel) !== subscription) return; // the channel was left meanwhile
    this.#subscriptions.delete(channel);
    this.tell("dropped", channel);
    this.settled();
    if (subscription.waiting.length) {
      subscription.refuse(error);
      return;
    }
    this.tell("gap", { channel, epoch: position?.epoch ?? null, from: position && position.offset + 1, to: null, reason: "refused" });
    this.tell("error", { error });
  }

  /** @param {string} channel @param {Api.Position | undefined} recover @param {Settle} settle */
  join(channel, recover, settle) {
    const known = this.#subscriptions.get(channel);
    if (known && recover) throw new TantorError("joined", `channel ${shown(channel)} is joined already; leave it before joining it with a position`);
    this.#left.delete(channel);
    for (const [ref, command] of this.#pending) {
      if (command.fields.action === "leave_channel" && command.fields.channel === channel) {
        this.#pending.delete(ref); // or it would be repeated behind the join
        command.resolve({ channel });
      }
    }
    const subscription = known ?? new Subscription(this, channel, recover ?? this.#saved.get(channel) ?? null);
    this.#saved.delete(channel);
    this.#subscriptions.set(channel, subscription);
    subscription.waiting.push(settle);
    if (this.isOpen && !subscription.isBusy) subscription.ask();
  }

  /** @param {string} channel @param {Settle} settle */
  leave(channel, settle) {
    this.command({ action: "leave_channel", channel }, settle);
    const subscription = this.#subscriptions.get(channel);
    this.#subscriptions.delete(channel);
    subscription?.refuse(new TantorError("left", `channel ${shown(channel)} was left before it was joined`));
    this.#saved.delete(channel);
    this.#left.add(channel);
    if (this.#left.size > MOST_LEFT) this.#left.delete(first(this.#left.keys()));
  }

  /** @param {Record<string, any>} fields @param {Settle} settle */
  command(fields, settle) {
    if (this.#pending.size >= this.#maxPending) {
      throw new TantorError("pending_full", `${this.#maxPending} commands wait for an answer; maxPending allows no more`);
    }
    const ref = ++this.#ref;
    const command = { ...settle, fields, text: JSON.stringify({ ...fields, ref }), sent: 0, isSent: false };
    this.#pending.set(ref, command);
    if (this.isOpen) this.#submit(command);
  }

  /** Sends a command of the session itself, if there is a connection. @param {Record<string, any>} fields @param {Settle} settle */
  question(fields, settle) {
    if (!this.isOpen) return;
    const ref = ++this.#ref;
    this.#questions.set(ref, settle);
    this.#frames.push(JSON.stringify({ ...fields, ref }));
  }

  /** @param {string} name @param {any} value */
  tell(name, value) {
    this.events.push([name, value]);
  }

  /** Queues a message for the application; one that is to be acknowledged is shown only once. @param {Wire} message */
  show(message) {
    if (!wantsAck(message)) return this.tell("message", message);
    const isHandled = this.#known.get(message.id);
    if (isHandled) this.#acks.push(message.id); // the first acknowledgement was lost
    if (isHandled !== undefined) return;
    this.#known.set(message.id, false);
    this.tell("message", message);
  }

  /** The handlers of a message have returned. @param {string} id */
  handled(id) {
    this.#known.set(id, true);
    this.#acks.push(id);
  }

  acknowledge() {
    if (!this.isOpen || !this.#acks.length) return;
    // an emergency from a channel's history need not be one that the server waits for
    this.question({ action: "ack", ids: this.#acks.splice(0) }, { resolve() {}, reject() {} });
  }

  takeFrames() {
    return this.#frames.splice(0);
  }

  /** @param {Wire} message @param {number} [size] */
  receive(message, size = 0) {
    const { event, channel } = message;
    const isSystem = channel === "system";
    if (!this.isOpen) {
      if (event === "welcome" && isSystem) this.#welcomed(message);
    } else if (isAlert(message)) {
      this.show(message); // ahead of messages that wait; the channel's position is kept by its subscription
      this.#subscriptions.get(channel)?.receive(message, size);
    } else if (isPublication(message)) {
      const subscription = this.#subscriptions.get(channel);
      if (subscription) subscription.receive(message, size);
      else if (!this.#left.has(channel)) this.show(message);
    } else if (event === "reply" || (event === "error" && isSystem && message.ref !== undefined)) {
      this.#answered(message);
    } else if (event === "gap" && typeof message.recover === "boolean") {
      const subscription = this.#subscriptions.get(channel);
      if (subscription) subscription.dropped(message);
      else this.tell("gap", { channel, epoch: message.epoch ?? null, from: null, to: message.offset || null, reason: message.reason, dropped: message.dropped });
    } else if (event === "error" && isSystem) {
      this.#refused(new TantorError(message.code, String(message.message)));
    } else if (!(isSystem && (message.ping || message.pong || event === "server_shutdown"))) {
      this.show(message);
    }
  }

  /** The connection has ended. @param {number} [code] */
  lost(code) {
    // a frame that has ended this connection would end the next one too
    if (code === MESSAGE_TOO_BIG) this.#blame(TOO_LARGE, new TantorError(TOO_LARGE, "the command is larger than the server takes"));
    this.isOpen = false;
    this.#isCareful = code === SLOW_CONSUMER;
    this.#turns = [];
    this.#frames = [];
    this.#acks = []; // the server sends messages again that were not acknowledged
    this.#questions.clear();
    for (const command of this.#pending.values()) command.isSent = false;
    for (const subscription of this.#subscriptions.values()) subscription.lost();
  }

  /** @param {TantorError} error */
  end(error) {
    this.isOpen = false;
    const pending = [...this.#pending.values()];
    const subscriptions = [...this.#subscriptions.values()];
    this.#pending.clear();
    this.#subscriptions.clear();
    for (const command of pending) command.reject(error);
    for (const subscription of subscriptions) subscription.refuse(error);
  }

  /** @param {Wire} welcome */
  #welcomed(welcome) {
    this.isOpen = true;
    const before = this.clientId;
    this.clientId = welcome.client_id;
    this.token = welcome.resume ?? null;
    if (welcome.heartbeat_interval > 0) this.heartbeat = welcome.heartbeat_interval;
    this.tell("welcome", welcome);
    const gap = { channel: null, epoch: null, from: null, to: null };
    const isNew = before !== null && !welcome.resumed;
    if (isNew) {
      this.tell("gap", { ...gap, reason: "new_client", message: welcome.reason ?? "the server keeps no sessions", clientId: before });
      this.#known.clear();
    } else if (welcome.dropped > 0) {
      this.tell("gap", { ...gap, reason: "mailbox_full", dropped: welcome.dropped });
    }
    this.#turns = [...this.#subscriptions.values()];
    // all channels at once; one after the other where their replies have exceeded the limit before
    do this.settled();
    while (this.#turns.length && !this.#isCareful);
    if (!welcome.resumed) for (const channel of this.#left) this.#frames.push(JSON.stringify({ action: "leave_channel", channel }));
    for (const [ref, command] of [...this.#pending]) {
      const doubt = command.sent && command.fields.action === "broadcast" && this.#whyNotRepeated(command, isNew);
      if (doubt) {
        this.#pending.delete(ref);
        command.reject(new TantorError("uncertain", `the broadcast may have been published, and repeating it could publish it twice: ${doubt}`));
      } else {
        this.#submit(command);
      }
    }
    this.acknowledge();
    // this frame shows the server that the new token has arrived
    if (welcome.resumed && !this.#frames.length) this.#frames.push(JSON.stringify({ action: "ping" }));
  }

  /** Returns why the server may not know the key of a broadcast that was sent before. @param {Command} command @param {boolean} isNew */
  #whyNotRepeated(command, isNew) {
    if (isNew) return "the server took this client for a new one, and keys count for one client";
    return this.#clock() - command.sent > REPEAT_WITHIN ? "the connection was away for longer than the server knows keys" : null;
  }

  /** @param {Command} command */
  #submit(command) {
    command.sent ||= this.#clock();
    command.isSent = true;
    this.#frames.push(command.text);
  }

  /** @param {Wire} answer */
  #answered(answer) {
    const { ref, event } = answer;
    const asked = this.#questions.get(ref) ?? this.#pending.get(ref);
    this.#questions.delete(ref);
    this.#pending.delete(ref);
    if (event === "reply") asked?.resolve(asked && "text" in asked ? result(answer) : answer);
    else asked?.reject(new TantorError(answer.code, String(answer.message)));
  }

  /** Handles an error without a `ref`: the server did not read the frame that far. @param {TantorError} error */
  #refused(error) {
    if (!this.#blame(error.code, error)) this.tell("error", { error });
  }

  /** Rejects the one command whose text an error must be about. @param {number | string} code @param {TantorError} error */
  #blame(code, error) {
    const measure = code === TOO_LARGE ? (/** @type {string} */ text) => text.length : code === TOO_DEEP ? depth : null;
    let worst = null;
    for (const [ref, command] of measure && this.isOpen ? this.#pending : []) {
      const size = command.isSent && measure ? measure(command.text) : 0;
      if (size > (worst?.size ?? 0)) worst = { ref, size, command };
    }
    if (!worst) return false;
    this.#pending.delete(worst.ref);
    worst.command.reject(error);
    return true;
  }
}

/** @typedef {Settle & {fields: Record<string, any>, text: string, sent: number, isSent: boolean}} Command */

/** One channel: the position of the application in its stream, and the recovery to the end, in order and once each. */
class Subscription {
  /** Those who wait to hear that it is joined. @type {Settle[]} */
  waiting = [];
  /** An answer is under way; messages that come meanwhile are kept. */
  isBusy = false;
  #session;
  /** @type {Api.Position | null} */
  position;
  /** @type {Wire[]} */
  #held = [];
  #heldSize = 0;
  /** More messages came than are kept. */
  #hasMissed = false;
  #shown = new Recent(KNOWN_PUBLICATIONS);
  /** What was published before that is none of the application's business. @type {number | null} Unix seconds */
  #since = null;
  /** Publications that are not kept and came while an answer was under way: they have no offset, but took one. */
  #unkept = 0;
  #keepsNothing = false;
  /** A page that does not begin where the last ended: with a hole, or with a loss? @type {Wire | null} */
  #doubted = null;

  /** @param {Session} session @param {string} channel @param {Api.Position | null} position */
  constructor(session, channel, position) {
    this.#session = session;
    this.channel = channel;
    this.position = position && { epoch: position.epoch, offset: position.offset };
  }

  /** Joins with the position, to get everything behind it; without one, to learn the position. */
  ask() {
    const recover = this.position ?? undefined;
    const fields = { action: "join_channel", channel: this.channel, recover };
    this.#question(fields, reply => this.#joined(reply, recover !== undefined), error => this.#session.drop(this, error));
  }

  /** Takes a live publication. @param {Wire} message @param {number} [size] */
  receive(message, size = 0) {
    const { position } = this;
    if (!Number.isInteger(message.offset)) {
      this.#session.show(message);
      if (isNotice(message)) return;
      this.#keepsNothing = true;
      if (this.isBusy || !position) this.#unkept += 1;
      else position.offset += 1;
    } else if (this.isBusy || !position) {
      this.#hold(message, size);
    } else if (message.offset === position.offset + 1) {
      this.#show(message);
    } else if (message.offset > position.offset || !this.#shown.has(message.id)) {
      // a hole need not be a loss, and an earlier offset may be of a new stream
      this.#hold(message, size);
      this.ask();
    }
  }

  /** The server has dropped messages for this connection. @param {Wire} gap */
  dropped({ epoch, offset, dropped, reason, recover }) {
    if (this.isBusy || !this.position) return; // the answer has all publications
    if (recover || (epoch && epoch !== this.position.epoch)) this.ask();
    else if (!offset) {
      this.#tellGap(null, null, reason, { dropped });
      if (!this.#keepsNothing) return; // notices have no position in the stream
      this.position = null;
      this.ask();
    } else if (offset > this.position.offset) {
      this.#tellGap(this.position.offset + 1, offset, reason, { dropped });
      this.position.offset = offset;
    }
  }

  /** The connection has ended: kept messages are dropped, and the next join asks for them again. */
  lost() {
    this.isBusy = false;
    this.#unkept = 0;
    this.#doubted = null;
    this.#held = [];
    this.#heldSize = 0;
    this.#hasMissed = false;
  }

  /** @param {TantorError} error */
  refuse(error) {
    for (const { reject } of this.waiting.splice(0)) reject(error);
  }

  /** @param {Wire} reply @param {boolean} hasAsked */
  #joined(reply, hasAsked) {
    const doubted = this.#doubted;
    this.#doubted = null;
    const { publications, ...joined } = result(reply);
    for (const { resolve } of this.waiting.splice(0)) resolve(joined);
    if (!hasAsked || !this.position) {
      // messages that came since the question count
      const offset = Math.min(reply.offset + 1, ...this.#held.map(held => held.offset)) - 1;
      this.#since = this.#held[0]?.timestamp ?? reply.timestamp;
      this.position = { epoch: reply.epoch, offset };
      this.#follow(offset);
    } else if (reply.recovered) {
      this.#since ??= reply.publications[0]?.timestamp ?? reply.timestamp;
      this.#showAll(reply.publications);
      // publications behind `through` come live; of those that are not kept, all up to the top have come
      this.#follow(this.#unkept ? reply.offset : (reply.through ?? 0));
    } else if (reply.reason === "expired") {
      this.#page(true);
    } else if (reply.reason === "too_large") {
      if (doubted) this.#takePage(doubted); // offsets that are missing here were never published
      else this.#page(false);
    } else {
      this.#beginAnew(reply.reason);
    }
  }

  /** Reads pages, because one answer had no room, or some publications are gone. @param {boolean} isLost some are certainly gone */
  #page(isLost) {
    this.#history(this.position?.offset ?? 0, page => {
      const { position } = this;
      const [start] = page.publications;
      const before = start ? start.offset - 1 : page.offset - this.#unkept;
      if (!position || page.epoch !== position.epoch) return this.ask();
      if (before > position.offset && !isLost) {
        this.#doubted = page;
        return this.ask();
      }
      if (before > position.offset) {
        this.#tellGap(position.offset + 1, before, "expired");
        position.offset = before;
      }
      this.#takePage(page);
    });
  }

  /** @param {Wire} page */
  #takePage(page) {
    this.#showAll(page.publications);
    if (page.more || page.publications.length >= PAGE) this.#page(false);
    else this.#follow(page.offset);
  }

  /** The stream has another epoch: shows its publications, but for those that were shown before. @param {string} reason */
  #beginAnew(reason) {
    this.#history(undefined, page => {
      this.#tellGap((this.position?.offset ?? 0) + 1, null, reason);
      this.position = { epoch: page.epoch, offset: 0 };
      this.#showAll(page.publications.filter((/** @type {Wire} */ message) => message.timestamp >= (this.#since ?? 0)));
      this.#follow(page.offset);
    });
  }

  /** Everything up to an offset is shown; from now on publications are live. @param {number} through */
  #follow(through) {
    const position = /** @type {Api.Position} */ (this.position);
    position.offset = Math.max(position.offset, through);
    const held = this.#held.sort((one, other) => one.offset - other.offset);
    const isBehind = this.#hasMissed || this.waiting.length > 0;
    this.lost();
    for (const message of held) if (message.offset > position.offset) this.receive(message);
    if (isBehind && !this.isBusy) this.ask();
    if (!this.isBusy) this.#session.settled();
  }

  /** @param {Wire[]} publications */
  #showAll(publications) {
    for (const message of publications) if (message.offset > (this.position?.offset ?? 0)) this.#show(message);
  }

  /** @param {Wire} message */
  #show(message) {
    if (this.position) this.position.offset = message.offset;
    if (this.#shown.has(message.id)) return;
    this.#shown.set(message.id, true);
    this.#session.show(message);
  }

  /** @param {Wire} message @param {number} size */
  #hold(message, size) {
    if (this.#held.length < MOST_HELD && this.#heldSize + size <= MOST_HELD_SIZE) {
      this.#held.push(message);
      this.#heldSize += size;
    } else {
      this.#hasMissed = true;
    }
  }

  /** @param {number | null} from @param {number | null} to @param {string} reason @param {object} [details] */
  #tellGap(from, to, reason, details) {
    this.#session.tell("gap", { channel: this.channel, epoch: this.position?.epoch ?? null, from, to, reason, ...details });
  }

  /** @param {number | undefined} after @param {(page: Wire) => void} resolve */
  #history(after, resolve) {
    const fields = { action: "history", channel: this.channel, after, limit: PAGE };
    this.#question(fields, resolve, error => {
      // the history cannot be read: continue with live publications
      this.#tellGap((this.position?.offset ?? 0) + 1, null, "refused", { message: error.message });
      this.position = null;
      this.ask();
    });
  }

  /** @param {Record<string, any>} fields @param {(reply: Wire) => void} resolve @param {(error: TantorError) => void} reject */
  #question(fields, resolve, reject) {
    this.isBusy = true;
    const ifCurrent = (/** @type {(answer: any) => void} */ act) => (/** @type {any} */ answer) => {
      if (this.#session.isCurrent(this)) act(answer);
    };
    this.#session.question(fields, { resolve: ifCurrent(resolve), reject: ifCurrent(reject) });
  }
}

/** A map of at most so many keys; the oldest are removed. */
class Recent {
  #size;
  /** @type {Map<string, boolean>} */
  #entries = new Map();

  /** @param {number} size */
  constructor(size) {
    this.#size = size;
  }

  /** @param {string} key */
  has(key) {
    return this.#entries.has(key);
  }

  /** @param {string} key */
  get(key) {
    return this.#entries.get(key);
  }

  /** @param {string} key @param {boolean} value */
  set(key, value) {
    this.#entries.set(key, value);
    if (this.#entries.size > this.#size) this.#entries.delete(first(this.#entries.keys()));
  }

  clear() {
    this.#entries.clear();
  }
}

/** @param {Wire} message */
function isPublication(message) {
  return message.trumpeted_by === "tantor";
}

/** True for a notice of a join or leave, which has no position in the stream. @param {Wire} message */
function isNotice(message) {
  return message.event === "user_joined" || message.event === "user_left";
}

/** @param {Wire} message */
function isAlert(message) {
  return message.event === "emergency_alert" && message.channel === "emergency" && isPublication(message);
}

/** @param {Wire} message */
function wantsAck(message) {
  return message.ack === true && typeof message.id === "string";
}

/** The fields of an answer that the application gets. @param {Wire} answer */
function result({ id, timestamp, sender, event, ref, ok, ...fields }) {
  return /** @type {any} */ (fields);
}

/** The nesting depth of JSON. @param {string} text */
function depth(text) {
  let deepest = 0;
  let now = 0;
  for (const [bracket] of text.matchAll(/"(?:[^"\\]|\\.)*"|[[{\]}]/g)) {
    if (bracket === "[" || bracket === "{") deepest = Math.max(deepest, ++now);
    else if (bracket === "]" || bracket === "}") now -= 1;
  }
  return deepest;
}

/** @template T @param {Iterable<T>} values @returns {T} */
function first(values) {
  for (const value of values) return value;
  throw new RangeError("there is no first of none");
}

/** @param {string | URL} text @returns {URL} */
function webSocketUrl(text) {
  const takes = "it takes an address like ws://localhost:8080";
  let url;
  try {
    url = new URL(text, globalThis.location?.href);
  } catch {
    throw new TypeError(`url is ${shown(text)}; ${takes}`);
  }
  url.protocol = url.protocol.replace(/^http/, "ws");
  url.hash = "";
  if (!/^wss?:$/.test(url.protocol)) throw new TypeError(`url is ${shown(text)}; ${takes}`);
  return url;
}

/** Checks a name by the server's rules. @param {string} field @param {unknown} name */
function checkName(field, name) {
  const isName = typeof name === "string" && name && new TextEncoder().encode(name).length <= 255;
  // eslint-disable-next-line no-control-regex
  if (!isName || /[\u0000-\u001f\u007f-\u009f]/.test(name)) {
    throw new TypeError(`${field} is ${shown(name)}; it takes a text of 1 to 255 bytes without control characters`);
  }
}

/** @param {string} name @param {unknown} value */
function checkFunction(name, value) {
  if (typeof value !== "function") throw new TypeError(`${name} is ${shown(value)}; it takes a function`);
}

/** @param {any} position */
function checkPosition(position) {
  if (!isPosition(position)) {
    throw new TypeError(`recover is ${shown(position)}; it takes an object like { epoch: "0123456789abcdef", offset: 7 }`);
  }
}

/** @param {any} position @returns {position is Api.Position} */
function isPosition(position) {
  const { epoch, offset } = position ?? {};
  return typeof epoch === "string" && epoch.length > 0 && epoch.length <= 64 && Number.isSafeInteger(offset) && offset >= 0;
}

/** @param {string} url */
function storageKey(url) {
  return `tantor:${url}`;
}

/** Takes the session of an earlier page out of storage, so that no other page takes it. @param {Api.Options["storage"]} storage @param {string} url */
function take(storage, url) {
  try {
    const text = storage?.getItem(storageKey(url));
    storage?.removeItem(storageKey(url));
    const { token, clientId, positions } = JSON.parse(text ?? "{}");
    if (typeof token !== "string" || typeof clientId !== "string") return null;
    return { token, clientId, positions: Object.fromEntries(Object.entries(positions ?? {}).filter(([, position]) => isPosition(position))) };
  } catch {
    return null; // the value is not ours, or storage cannot be used
  }
}

function randomKey() {
  const bytes = globalThis.crypto?.getRandomValues(new Uint8Array(12)) ?? Array.from({ length: 12 }, () => Math.random() * 256);
  return Array.from(bytes, byte => Math.floor(byte).toString(16).padStart(2, "0")).join("");
}

/** The beginning of a value, for an error text. @param {unknown} value */
function shown(value) {
  let text;
  try {
    text = (typeof value === "string" || (typeof value === "object" && value !== null)) ? JSON.stringify(value) : String(value);
  } catch {
    text = String(value);
  }
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

// for tests
export { Session as _Session };
