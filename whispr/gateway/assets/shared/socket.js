// Phoenix Channels v2 over a WebSocket, or over long polls where none gets through, as `whispr/realtime` speaks it.
//
//   socket = new Socket(session)      an EventTarget: "state" (detail: connecting, online, offline)
//     .connect() · .disconnect()      it comes back by itself, with growing pauses and at once when the network does
//     .channel(topic, params)         `params()` is asked at every join: so a join can say how far one has got
//   channel                           an EventTarget: "joined" (detail: the reply), "refused" (detail: the reason),
//                                     "left" (closed by the server), and "message" (detail: {event, payload}); the
//                                     payload of a binary message is a Uint8Array
//     .join() · .leave() · .joined
//     .push(event, payload)           the reply's response; throws a PushError with `reason` and `retryable`
//
// An access token that is about to expire is replaced in band (`token_expiring`), so the socket outlives it.

import { LongPoll } from "./long-poll.js";

const HEARTBEAT_MS = 25_000;
const PATIENCE_MS = 10_000;
const BACKOFF_MS = [200, 500, 1000, 2000, 5000, 10_000];
const REJOIN_MS = [1000, 2000, 5000, 10_000];
const LATER = new Set(["unavailable", "rate_limited", "timeout", "offline", "slow_mode", "deadline_exceeded"]);

export class PushError extends Error {
  constructor(reason, response = {}) {
    super(response.message || reason);
    this.reason = reason;
    this.response = response;
    this.retryable = LATER.has(reason);
  }
}

export async function socketUrl() {
  const { websocket } = await (await fetch("/client.json")).json();
  if (websocket.url) return websocket.url;
  // Behind HTTPS there is a proxy, which takes the path to the listener; a page must not leave HTTPS itself.
  if (location.protocol === "https:") return `wss://${location.host}${websocket.path}`;
  return `ws://${location.hostname}:${websocket.port}${websocket.path}`;
}

export class Socket extends EventTarget {
  #session;
  #url = null;
  #connection = null;
  #channels = new Map();
  #waiting = new Map();
  #ref = 0;
  #tries = 0;
  #retry = 0;
  #heartbeat = 0;
  #wanted = false;
  #polls = false;
  #hasOpened = false;
  state = "offline";

  constructor(session) {
    super();
    this.#session = session;
    window.addEventListener("online", () => this.#hurry());
    window.addEventListener("offline", () => this.#connection?.close());
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.#hurry(); });
  }

  channel(topic, params = () => ({})) {
    const channel = new Channel(this, topic, params);
    this.#channels.get(topic)?.forget();
    this.#channels.set(topic, channel);
    return channel;
  }

  connect() {
    this.#wanted = true;
    this.#open();
  }

  disconnect() {
    this.#wanted = false;
    clearTimeout(this.#retry);
    this.#connection?.close(1000);
  }

  get open() { return this.#connection?.readyState === WebSocket.OPEN; }

  #hurry() {
    if (this.#wanted && !this.#connection) {
      this.#tries = 0;
      this.#open();
    }
  }

  #become(state) {
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: state }));
  }

  async #open() {
    clearTimeout(this.#retry);
    if (this.#connection) return;
    this.#become("connecting");
    this.#connection = { readyState: WebSocket.CONNECTING, close() {} };
    let connection;
    try {
      this.#url ??= await socketUrl();
      // A handshake that is refused tells a page nothing: after two, asking for a new token tells what is wrong.
      const token = await this.#session.token(this.#tries >= 2 && this.#tries % 2 === 0);
      const offered = btoa(token).replaceAll("=", "");
      connection = this.#polls ? new LongPoll(token)
        : new WebSocket(`${this.#url}?vsn=2.0.0`, ["phoenix", `base64url.bearer.phx.${offered}`]);
    } catch {
      this.#connection = null;
      this.#later();
      return;
    }
    this.#connection = connection;
    connection.binaryType = "arraybuffer";
    connection.onopen = () => this.#opened();
    connection.onmessage = (message) => this.#received(message.data);
    connection.onclose = () => this.#closed(connection);
  }

  #opened() {
    this.#hasOpened = true;
    this.#tries = 0;
    this.#heartbeat = setInterval(() => this.#beat(), HEARTBEAT_MS);
    this.#become("online");
    for (const channel of this.#channels.values()) channel.reopened();
  }

  #closed(connection) {
    if (connection !== this.#connection) return;
    this.#connection = null;
    // Until one of the two has worked they take turns; from then on it is that one.
    if (!this.#hasOpened) this.#polls = !this.#polls;
    clearInterval(this.#heartbeat);
    for (const waiting of this.#waiting.values()) waiting({ status: "error", response: { reason: "offline" } });
    this.#waiting.clear();
    for (const channel of this.#channels.values()) channel.interrupted();
    this.#later();
  }

  #later() {
    this.#become("offline");
    if (!this.#wanted || !this.#session.signedIn) return;
    const longest = BACKOFF_MS[Math.min(this.#tries++, BACKOFF_MS.length - 1)];
    this.#retry = setTimeout(() => this.#open(), longest * (0.5 + Math.random() / 2));
  }

  async #beat() {
    const connection = this.#connection;
    const reply = await this.request("phoenix", "heartbeat", {}, null);
    if (reply.response.reason === "timeout") {
      connection.close();
      this.#closed(connection); // a network that is gone never confirms a close
    }
  }

  // Resolves to {status, response}; a request that cannot be sent, or is not answered, has status "error".
  request(topic, event, payload, joinRef, ref = this.nextRef()) {
    if (!this.open) return Promise.resolve({ status: "error", response: { reason: "offline" } });
    this.#connection.send(JSON.stringify([joinRef, ref, topic, event, payload]));
    return new Promise((resolve) => {
      const timer = setTimeout(() => settle({ status: "error", response: { reason: "timeout" } }), PATIENCE_MS);
      const settle = (reply) => {
        clearTimeout(timer);
        this.#waiting.delete(ref);
        resolve(reply);
      };
      this.#waiting.set(ref, settle);
    });
  }

  nextRef() { return String(++this.#ref); }

  #received(data) {
    const [joinRef, ref, topic, event, payload] = typeof data === "string" ? JSON.parse(data) : unpacked(data);
    if (event === "phx_reply") this.#waiting.get(ref)?.(payload);
    else if (event === "token_expiring") this.#renew(topic, joinRef);
    else this.#channels.get(topic)?.received(event, payload, joinRef);
  }

  async #renew(topic, joinRef) {
    try {
      await this.request(topic, "refresh_token", { token: await this.#session.token(true) }, joinRef);
    } catch {
      // The session has ended, which its "changed" tells; or the network is away, and a new socket has a new token.
    }
  }
}

// A binary message: how it is addressed, the sizes of the names, the names, and the payload (Phoenix' V2 serializer).
const [PUSH, REPLY] = [0, 1];

function unpacked(buffer) {
  const bytes = new Uint8Array(buffer);
  const named = bytes[0] === PUSH ? 3 : bytes[0] === REPLY ? 4 : 2;
  let at = 1 + named;
  const names = [...bytes.subarray(1, at)].map((size) => {
    at += size;
    return new TextDecoder().decode(bytes.subarray(at - size, at));
  });
  const payload = bytes.subarray(at);
  if (bytes[0] === PUSH) return [names[0], null, names[1], names[2], payload];
  if (bytes[0] === REPLY) return [names[0], names[1], names[2], "phx_reply", { status: names[3], response: payload }];
  return [null, null, names[0], names[1], payload];
}

class Channel extends EventTarget {
  #socket;
  #params;
  #joinRef = null;
  #wanted = false;
  #tries = 0;
  #retry = 0;
  joined = false;

  constructor(socket, topic, params) {
    super();
    this.#socket = socket;
    this.topic = topic;
    this.#params = params;
  }

  join() {
    this.#wanted = true;
    if (this.#socket.open) this.#join();
  }

  async leave() {
    const joinRef = this.#joinRef;
    this.forget();
    if (joinRef) await this.#socket.request(this.topic, "phx_leave", {}, joinRef);
  }

  forget() {
    this.#wanted = false;
    this.joined = false;
    this.#joinRef = null;
    clearTimeout(this.#retry);
  }

  async push(event, payload = {}) {
    if (!this.joined) throw new PushError("offline");
    const { status, response } = await this.#socket.request(this.topic, event, payload, this.#joinRef);
    if (status !== "ok") throw new PushError(response?.reason || "error", response);
    return response;
  }

  reopened() {
    this.#tries = 0;
    if (this.#wanted) this.#join();
  }

  interrupted() {
    clearTimeout(this.#retry);
    const was = this.joined;
    this.joined = false;
    this.#joinRef = null;
    if (was) this.dispatchEvent(new CustomEvent("interrupted"));
  }

  async #join() {
    clearTimeout(this.#retry);
    const ref = this.#socket.nextRef();
    this.#joinRef = ref;
    const { status, response } = await this.#socket.request(this.topic, "phx_join", this.#params(), ref, ref);
    if (this.#joinRef !== ref || !this.#wanted) return;
    if (status === "ok") {
      this.#tries = 0;
      this.joined = true;
      this.dispatchEvent(new CustomEvent("joined", { detail: response }));
      return;
    }
    const error = new PushError(response?.reason || "error", response);
    if (error.retryable) this.#again();
    else {
      this.#wanted = false;
      this.dispatchEvent(new CustomEvent("refused", { detail: error }));
    }
  }

  #again() {
    const pause = REJOIN_MS[Math.min(this.#tries++, REJOIN_MS.length - 1)];
    this.#retry = setTimeout(() => { if (this.#wanted && this.#socket.open) this.#join(); }, pause);
  }

  received(event, payload, joinRef) {
    if (joinRef !== null && joinRef !== this.#joinRef) return;
    if (event === "phx_error") {
      this.interrupted();
      if (this.#wanted) this.#again();
    } else if (event === "phx_close") {
      this.forget();
      this.dispatchEvent(new CustomEvent("left"));
    } else {
      this.dispatchEvent(new CustomEvent("message", { detail: { event, payload } }));
    }
  }
}

// Presence, as Phoenix's clients keep it: `apply` takes presence_state and presence_diff.
export class Presence {
  #state = new Map();

  apply(event, payload) {
    if (event === "presence_state") {
      this.#state = new Map(Object.entries(payload).map(([key, { metas }]) => [key, metas]));
      return;
    }
    for (const [key, { metas }] of Object.entries(payload.leaves || {})) {
      const gone = new Set(metas.map((meta) => meta.phx_ref));
      const left = (this.#state.get(key) || []).filter((meta) => !gone.has(meta.phx_ref));
      if (left.length) this.#state.set(key, left);
      else this.#state.delete(key);
    }
    for (const [key, { metas }] of Object.entries(payload.joins || {})) {
      const come = new Set(metas.flatMap((meta) => [meta.phx_ref, meta.phx_ref_prev]));
      const there = (this.#state.get(key) || []).filter((meta) => !come.has(meta.phx_ref));
      this.#state.set(key, [...there, ...metas]);
    }
  }

  clear() { this.#state.clear(); }
  has(key) { return this.#state.has(key); }
  status(key) { return this.#state.get(key)?.at(-1)?.status ?? "offline"; }
  get keys() { return [...this.#state.keys()]; }
}
