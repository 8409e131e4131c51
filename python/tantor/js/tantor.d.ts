// Types of tantor.js. The guide is docs/clients.md.

/** Connects to a server, and connects again after every loss. Throws a `TypeError` for an invalid address or option. */
export function connect(url: string | URL, options?: Options): Tantor;

export interface Options {
  /** The WebSocket class, where there is no global one: `require("ws")` in node before 22. */
  WebSocket?: new (url: string, protocols?: string | string[]) => any;
  /** Subprotocols to offer, as in `new WebSocket(url, protocols)`. The server must select one: see its setting `subprotocols`. */
  protocols?: string | string[];
  /** `sessionStorage` makes a reloaded page resume as the same client, from its last positions. */
  storage?: Pick<Storage, "getItem" | "setItem" | "removeItem">;
  /** The first bound of the random delay before the next connect; the bound doubles with each attempt. Milliseconds; 500. */
  minDelay?: number;
  /** The largest bound of the delay. Milliseconds; 20,000. */
  maxDelay?: number;
  /** The longest time from the connect to the welcome. Milliseconds; 10,000. */
  connectTimeout?: number;
  /** Silence longer than the server's heartbeat interval plus this makes the client ping. Milliseconds; 10,000. */
  heartbeatSlack?: number;
  /** The longest time for the answer to this ping. Milliseconds; 5,000. */
  probeTimeout?: number;
  /** The most commands that wait for an answer or for a connection; 1000. */
  maxPending?: number;
}

export type StateName =
  /** A connect is under way. */
  | "connecting"
  | "connected"
  /** The client waits for the next connect. */
  | "waiting"
  /** As `waiting`, while the browser reports no network. The client connects as soon as the network is back. */
  | "offline"
  /** The client does not connect any more. */
  | "closed";

export interface State {
  state: StateName;
  /** With `connected`: true if the client resumed its session, with its channels and its mail. */
  resumed?: boolean;
  /** The close code of the connection that ended; 1006 for one that broke. */
  code?: number;
  reason?: string;
  /** The time until the next connect, in milliseconds. */
  delay?: number;
}

/** A position in the stream of a channel: everything up to `offset`, inclusive. */
export interface Position {
  epoch: string;
  offset: number;
}

/** A message of the server, as on the wire. */
export interface Message {
  id: string;
  channel: string;
  /** Unix seconds. */
  timestamp: number;
  sender: string;
  event?: string;
  data?: any;
  /** The text that `send` sent. The keys of a dict are fields of the message itself. */
  message?: any;
  /** The client that published the message; absent for the application. */
  from?: string;
  /** The offset in the stream of the channel, if the message is kept. */
  offset?: number;
  [field: string]: any;
}

/** The first message of each connection. */
export interface Welcome extends Message {
  client_id: string;
  /** In seconds. */
  heartbeat_interval: number;
  /** Whether the client resumed; `undefined` if it sent no token. */
  resumed?: boolean;
  /** With `resumed`: the channels that the client is on. */
  channels?: string[];
}

/** Messages that are lost for this client. Where `to` is null, the loss is possible but not certain. */
export interface Gap {
  /** `null` for messages to this client alone. */
  channel: string | null;
  epoch: string | null;
  /** The first lost offset. */
  from: number | null;
  /** The last lost offset. */
  to: number | null;
  /**
   * `expired`: the server does not keep the messages any more. `epoch` and `offset_ahead`: the stream has changed.
   * `refused`: the server refuses to send them. `drop_oldest` and `latest`: dropped because this client was slow.
   * `new_client`: the server does not know this client any more, and its mail is gone. `mailbox_full`: the mailbox had no
   * room.
   */
  reason: string;
  /** The number of lost messages, where the server counts them. */
  dropped?: number;
  /** Details of the reason. */
  message?: string;
  /** With `new_client`: the former id of this client. */
  clientId?: string;
}

export interface Joined {
  channel: string;
  epoch: string;
  /** The newest offset of the stream. */
  offset: number;
  subscribers: number;
  /** With `recover`: true if every missed message was still kept. The handler gets the messages that were kept; a gap tells of the others. */
  recovered?: boolean;
  /** Why messages could not be recovered. */
  reason?: string;
}

export interface Published {
  channel: string;
  /** The number of connected subscribers. */
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
  /** The page was cut short, because it would have been too large. */
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
  /** The argument of the handler that threw. */
  value?: unknown;
}

/** A handler may be async. A message is acknowledged when its handlers have returned. */
export type Handler<T> = (value: T) => unknown;

export interface Listeners {
  state: State;
  welcome: Welcome;
  /** Every message for the application, once each, in order on each channel. */
  message: Message;
  /** A message to this client alone. */
  mail: Message;
  emergency: Message;
  gap: Gap;
  /** An exception of a handler, or an error of the server about a frame that it could not read. Without a listener the console gets it. */
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
   * Joins a channel, and stays on it across connections. The handler gets each message of the channel once, in order.
   * With `recover` the messages begin behind that position. Another call adds a handler.
   */
  join(channel: string, handler?: Handler<Message>, options?: JoinOptions): Promise<Joined>;
  join(channel: string, options: JoinOptions): Promise<Joined>;
  /**
   * Adds a handler, and joins the channel if it is not joined. Returns a function that removes this handler alone. When
   * the last handler is removed, the client leaves the channel, unless `join` was called for it. For components that
   * mount and unmount: if the last handler is removed and another is added in the same turn, the client stays.
   * A refused join goes to the listeners of `error`.
   */
  subscribe(channel: string, handler: Handler<Message>): () => void;
  /** Leaves the channel and removes all of its handlers. A join that is under way is rejected with the code `left`. */
  leave(channel: string): Promise<{ channel: string }>;
  /** Publishes to all subscribers of a channel, this client included. After a lost connection the call is repeated, and still published once. */
  broadcast(channel: string, event: string, data?: unknown, options?: { idempotencyKey?: string }): Promise<Published>;
  /** Returns the oldest messages behind `after`, or without `after` the newest; 100 by default, at most 1000. */
  history(channel: string, options?: { limit?: number; after?: number; before?: number }): Promise<History>;
  presence(channel: string): Promise<Presence>;
  /** Returns the time until the server answers, in milliseconds. */
  ping(): Promise<number>;
  /** Sends any command. A command with an action of the application may be sent again if the connection breaks before the answer. */
  command(action: string, fields?: Record<string, unknown>): Promise<Record<string, any>>;

  /** Adds a listener. Returns a function that removes the listener. */
  on<Name extends keyof Listeners>(name: Name, listener: Handler<Listeners[Name]>): () => void;
  /** The position up to which the messages of a channel were shown; `null` if the channel is not joined. */
  position(channel: string): Position | null;
  /** Ends the client: others are told at once, and commands that wait for an answer are rejected. */
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
