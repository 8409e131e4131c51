// Types of tantor.js. The guide is docs/clients.md.

/** Connects, by itself and again whenever it has to. Throws a `TypeError` for an address or option that cannot be. */
export function connect(url: string | URL, options?: Options): Tantor;

export interface Options {
  /** Where there is no global one, as in node before 22: `require("ws")`. */
  WebSocket?: new (url: string, protocols?: string | string[]) => any;
  /** Subprotocols to offer, as of `new WebSocket(url, protocols)`. The server has to select one: its setting `subprotocols`. */
  protocols?: string | string[];
  /** `sessionStorage`, so that a page that is loaded again goes on as the same client, from where it was. */
  storage?: Pick<Storage, "getItem" | "setItem" | "removeItem">;
  /** The delays before connecting again are random, below a bound that doubles from this. Milliseconds; 500. */
  minDelay?: number;
  /** The most that the bound grows to. Milliseconds; 20,000. */
  maxDelay?: number;
  /** For connecting, up to the welcome. Milliseconds; 10,000. */
  connectTimeout?: number;
  /** How much longer than the server's heartbeat interval silence may be before the server is asked. Milliseconds; 10,000. */
  heartbeatSlack?: number;
  /** For the server's answer when it is asked whether it is there. Milliseconds; 5,000. */
  probeTimeout?: number;
  /** Commands that may wait for an answer, for a connection too; 1000. */
  maxPending?: number;
}

export type StateName =
  /** The first connect, or another one, is under way. */
  | "connecting"
  | "connected"
  /** Until the next connect. */
  | "waiting"
  /** As `waiting`, and the browser says that there is no network: at once when there is. */
  | "offline"
  /** For good. */
  | "closed";

export interface State {
  state: StateName;
  /** With `connected`: as the client that it was, with all that was kept for it. */
  resumed?: boolean;
  /** The close code of the connection that ended; 1006 for one that broke. */
  code?: number;
  reason?: string;
  /** Until the next connect, in milliseconds. */
  delay?: number;
}

/** A place in a channel's stream: up to and with `offset`. */
export interface Position {
  epoch: string;
  offset: number;
}

/** What the server sends, as it is on the wire. */
export interface Message {
  id: string;
  channel: string;
  /** Unix seconds. */
  timestamp: number;
  sender: string;
  event?: string;
  data?: any;
  /** What `send` sent, if it was a text; of a dict the keys stand at the top. */
  message?: any;
  /** The client that published it, if one did. */
  from?: string;
  /** Its place in the channel's stream, if it is kept. */
  offset?: number;
  [field: string]: any;
}

/** The first message of each connection. */
export interface Welcome extends Message {
  client_id: string;
  /** Seconds. */
  heartbeat_interval: number;
  /** `undefined` if it was not asked. */
  resumed?: boolean;
  /** With `resumed`: the channels that the client is on. */
  channels?: string[];
}

/** Messages that are lost for this client, for certain or, where `to` is null, as far as can be known. */
export interface Gap {
  /** `null` for messages to this client alone. */
  channel: string | null;
  epoch: string | null;
  /** First offset. */
  from: number | null;
  /** Last offset. */
  to: number | null;
  /**
   * `expired`: kept no longer. `epoch` and `offset_ahead`: the stream is another. `refused`: the server does not give
   * them. `drop_oldest` and `latest`: dropped because this client was slow. `new_client`: the server does not know
   * this client any more; what was sent to it is gone. `mailbox_full`: more was sent to it than is kept.
   */
  reason: string;
  /** How many, where the server counts them. */
  dropped?: number;
  /** More about the reason. */
  message?: string;
  /** With `new_client`: who this client was. */
  clientId?: string;
}

export interface Joined {
  channel: string;
  epoch: string;
  /** The top of the stream. */
  offset: number;
  subscribers: number;
  /** With a position: whether all behind it was still there. What was goes to the handler, what was not is a gap. */
  recovered?: boolean;
  /** Why it was not recovered. */
  reason?: string;
}

export interface Published {
  channel: string;
  /** Connected subscribers. */
  recipients: number;
  epoch?: string;
  offset?: number;
  /** The idempotency key was known: nothing was published now. */
  duplicate?: boolean;
}

export interface History extends Position {
  channel: string;
  /** Oldest first. */
  publications: Message[];
  /** The page was cut, because it would have been too large. */
  more?: boolean;
}

export interface Presence {
  channel: string;
  online: number;
  /** Client ids, at most 1000. */
  users: string[];
}

export interface Failure {
  error: unknown;
  /** What a handler that threw was given. */
  value?: unknown;
}

/** May be async: what is to be acknowledged is when it has returned. */
export type Handler<T> = (value: T) => unknown;

export interface Listeners {
  state: State;
  welcome: Welcome;
  /** Whatever is for the application, once each, in order on each channel. */
  message: Message;
  /** What is sent to this client alone. */
  mail: Message;
  emergency: Message;
  gap: Gap;
  /** What handlers throw, and what the server says of frames that it could not read. Without a listener: to the console. */
  error: Failure;
}

/**
 * A client. Its promises wait for a connection where there is none, outlive one that breaks, and are rejected with a
 * `TantorError` when the server refuses, when too many wait or when the client is closed.
 */
export interface Tantor {
  readonly state: StateName;
  /** `null` before the first welcome. */
  readonly clientId: string | null;

  /**
   * Stays on a channel from now on, across connections. The handler gets each message that names the channel, in order,
   * once. With `recover` it begins behind that position. Called again, it adds a handler.
   */
  join(channel: string, handler?: Handler<Message>, options?: JoinOptions): Promise<Joined>;
  join(channel: string, options: JoinOptions): Promise<Joined>;
  /**
   * Adds a handler, and joins the channel if it is not joined. Returns a function that removes this handler alone; when
   * the last one is removed, the client leaves the channel, unless `join` was called for it. Made for components that
   * mount and unmount: to remove the last handler and add another in the same turn is to stay on the channel.
   * A refused join goes to the listeners of `error`.
   */
  subscribe(channel: string, handler: Handler<Message>): () => void;
  /** Leaves the channel and removes all of its handlers. A join that is under way is rejected with the code `left`. */
  leave(channel: string): Promise<{ channel: string }>;
  /** To all on a channel, this client too if it is on it. Repeated after a break, and published once all the same. */
  broadcast(channel: string, event: string, data?: unknown, options?: { idempotencyKey?: string }): Promise<Published>;
  /** With `after` the oldest behind that offset, else the newest; 100 if not said otherwise, at most 1000. */
  history(channel: string, options?: { limit?: number; after?: number; before?: number }): Promise<History>;
  presence(channel: string): Promise<Presence>;
  /** How long the server takes to answer, in milliseconds. */
  ping(): Promise<number>;
  /** Any command. An action of the application's own may be repeated if the connection breaks before it is answered. */
  command(action: string, fields?: Record<string, unknown>): Promise<Record<string, any>>;

  /** Returns a function that takes the listener off again. */
  on<Name extends keyof Listeners>(name: Name, listener: Handler<Listeners[Name]>): () => void;
  /** Up to where a channel was shown; `null` if it is not joined. */
  position(channel: string): Position | null;
  /** Leaves for good: others are told at once, and what waits for an answer is rejected. */
  close(): void;
}

export interface JoinOptions {
  recover?: Position;
}

export class TantorError extends Error {
  constructor(code: number | string, message: string, details?: Record<string, unknown>);
  /**
   * A number from the server (docs/protocol.md), or `closed` (with `closeCode`), `pending_full`, `joined`, `left`,
   * `uncertain`, `storage`, `not_json`. The application's own `close` and `leave` cause `closed` and `left`: a promise
   * that such a call rejects need not be caught.
   */
  code: number | string;
  closeCode?: number;
}
