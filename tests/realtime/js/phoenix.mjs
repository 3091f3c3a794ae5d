// phoenix.js as published, driven step by step: a client for tests in another language.
//
//   node phoenix.mjs ws://127.0.0.1:4000/socket TOKEN ['[{"op": "join", "topic": "room:1"}, …]']
//
// Runs the steps of the scenario in order or, without one, a step per line of standard input until that ends.
// Prints one JSON line per step: {"op", …result}. A failed step prints {"op", "error"} and ends with status 1.
//
//   connect     {authToken?: bool, params?, transport?, options?}   → {protocol, transport}: until it is open;
//                                                  token in the query, or in the subprotocol;
//                                                  transport "websocket", "longpoll", or "fallback" from one to the other
//   join        {topic, payload?, resume?: bool}   → {status, response}; resume rejoins with since_seq = the last seq
//               and since_change = the last change, as strings
//   push        {topic, event, payload?, timeout_ms?}   → {status, response}; status may be "timeout"
//   burst       {topic, event, count, payload?}    → {ok, errors}: all pushed at once; "$n" in payload is the number
//   expect      {topic, event, count}              → {count}: waits for that many of these events
//   received    {topic, event, field?}             → {values}: payloads so far, or one field of each
//   raw         {topic, event, payload?}           → {status, response}: by the socket, without a channel
//   channels    {}                                 → {states}: topic and state of every channel object, the oldest first
//   heartbeats  {count}                            → {count}: waits for that many answered heartbeats
//   presence    {topic}                            → {state}: Presence's own list, key → metas
//   leave       {topic}                            → {status}
//   cut         {}                                 ends TCP without a close frame; phoenix.js reconnects by itself
//   reconnected {count}                            waits until the socket has opened that many times
//   rejoined    {topic, count}                     → {responses}: waits until the channel was joined that many times
//   closed      {}                                 → {code, reason}: waits for a close from the server
//   disconnect  {}
//
// Bytes are {"$bytes": [0, 255]}, in payloads and in what is printed. A join with {"renew": token} answers
// token_expiring with refresh_token {token}. Each step may say {"within_ms": n} (default 20000).

import { createInterface } from "node:readline";
import { LongPoll, Presence, Socket } from "phoenix";
import WebSocket from "ws";

const [endpoint, token, scenario] = process.argv.slice(2);
const channels = new Map();
const waiters = new Set();
let socket = null;
let opens = 0;
let lastClose = null;
let heartbeats = 0;
const rawReplies = new Map();

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

/** Resolve once the condition holds; it is asked again whenever anything happens. */
function until(condition) {
  return new Promise((resolve) => {
    const check = () => condition() && (waiters.delete(check), resolve());
    waiters.add(check);
    check();
  });
}
const happened = () => [...waiters].forEach((check) => check());

/** Bytes as JSON can say them, and back. */
const shown = (value) =>
  value instanceof ArrayBuffer
    ? { $bytes: [...new Uint8Array(value)] }
    : value !== null && typeof value === "object"
      ? Object.fromEntries(Object.entries(value).map(([name, each]) => [name, Array.isArray(each) ? each : shown(each)]))
      : value;
const meant = (value) => (value?.$bytes ? new Uint8Array(value.$bytes).buffer : value);

const settled = (push) =>
  new Promise((resolve) => {
    for (const status of ["ok", "error", "timeout"]) {
      push.receive(status, (response) => resolve({ status, response: shown(response) }));
    }
  });

const held = (topic) => {
  if (!channels.has(topic)) throw new Error(`${topic} was not joined`);
  return channels.get(topic);
};

/** Remember an event, and the highest seq that it or a join's reply carries. */
function note(entry, event, payload) {
  if (!entry.events.has(event)) entry.events.set(event, []);
  entry.events.get(event).push(shown(payload));
  if (typeof payload?.change === "number") entry.change = Math.max(entry.change, payload.change);
  else if (typeof payload?.seq === "number") entry.seq = Math.max(entry.seq, payload.seq);
}

const fill = (value, n) => JSON.parse(JSON.stringify(value ?? {}).replaceAll('"$n"', n).replaceAll("$n", n));

const steps = {
  async connect({ authToken = false, params = {}, transport = "websocket", options = {} }) {
    const auth = authToken ? { authToken: token, params } : { params: { ...params, token } };
    const how = {
      websocket: { transport: WebSocket },
      longpoll: { transport: LongPoll },
      fallback: { transport: WebSocket, longPollFallbackMs: 200 },
    }[transport];
    socket = new Socket(endpoint, { ...how, ...auth, ...options });
    socket.onMessage((message) => {
      if (message.topic === "phoenix" || rawReplies.has(message.ref)) rawReplies.get(message.ref)?.(message.payload);
      if (message.topic === "phoenix" && message.event === "phx_reply") heartbeats++;
      happened();
    });
    socket.onOpen(() => (opens++, happened()));
    socket.onClose((event) => ((lastClose = event), happened()));
    socket.connect();
    await until(() => socket.isConnected());
    return { protocol: socket.conn.protocol, transport: socket.conn instanceof LongPoll ? "longpoll" : "websocket" };
  },

  async join({ topic, payload = {}, resume = false, renew = null }) {
    const entry = { seq: payload.since_seq ?? 0, change: payload.since_change ?? 0, events: new Map(), joins: [] };
    const place = () => ({ since_seq: String(entry.seq), since_change: String(entry.change) });
    const parameters = () => (resume ? { ...payload, ...place() } : payload);
    const channel = (entry.channel = socket.channel(topic, parameters));
    entry.presence = new Presence(channel);
    channel.onMessage = (event, message) => {
      if (!event.startsWith("phx_") && !event.startsWith("chan_reply_")) note(entry, event, message);
      queueMicrotask(happened);
      return message;
    };
    channels.set(topic, entry);
    if (renew !== null) {
      channel.on("token_expiring", () =>
        settled(channel.push("refresh_token", { token: renew })).then((reply) => note(entry, "renewed", reply)).then(happened),
      );
    }
    const push = channel.join();
    push.receive("ok", (response) => {
      entry.joins.push(response);
      for (const message of response?.messages ?? []) note(entry, "new_message", message);
      for (const change of response?.changes ?? []) note(entry, change.event, change);
      happened();
    });
    return settled(push);
  },

  push: ({ topic, event, payload = {}, timeout_ms = 10_000 }) =>
    settled(held(topic).channel.push(event, meant(payload), timeout_ms)),

  raw: ({ topic, event, payload = {} }) =>
    new Promise((resolve) => {
      const ref = socket.makeRef();
      rawReplies.set(ref, ({ status, response }) => resolve({ status, response }));
      socket.push({ topic, event, payload, ref, join_ref: null });
    }),

  async channels() {
    return { states: socket.channels.map(({ topic, state }) => [topic, state]) };
  },

  async heartbeats({ count }) {
    await until(() => heartbeats >= count);
    return { count: heartbeats };
  },

  async burst({ topic, event, count, payload }) {
    const { channel } = held(topic);
    const pushes = Array.from({ length: count }, (_, n) => settled(channel.push(event, fill(payload, n))));
    const replies = await Promise.all(pushes);
    const errors = replies.filter(({ status }) => status !== "ok");
    return { ok: replies.length - errors.length, errors: errors.slice(0, 5) };
  },

  async expect({ topic, event, count }) {
    const { events } = held(topic);
    await until(() => (events.get(event)?.length ?? 0) >= count);
    return { count: events.get(event).length };
  },

  async received({ topic, event, field }) {
    const payloads = held(topic).events.get(event) ?? [];
    return { values: field === undefined ? payloads : payloads.map((payload) => payload[field]) };
  },

  async presence({ topic }) {
    return { state: Object.fromEntries(held(topic).presence.list((key, { metas }) => [key, metas])) };
  },

  async leave({ topic }) {
    const { status } = await settled(held(topic).channel.leave());
    channels.delete(topic);
    return { status };
  },

  async cut() {
    if (socket.conn instanceof LongPoll) socket.conn.closeAndRetry("cut", 1006, "cut", false);
    else socket.conn.terminate();
    return {};
  },

  async reconnected({ count }) {
    await until(() => opens >= count && socket.isConnected());
    return { count: opens };
  },

  async rejoined({ topic, count }) {
    const { joins } = held(topic);
    await until(() => joins.length >= count);
    return { responses: joins };
  },

  async closed() {
    await until(() => lastClose !== null);
    return { code: lastClose.code, reason: lastClose.reason };
  },

  async disconnect() {
    await new Promise((resolve) => socket.disconnect(resolve));
    return {};
  },
};

async function run(step) {
  let timer;
  const late = new Promise((_, reject) => {
    const within = step.within_ms ?? 20_000;
    timer = setTimeout(() => reject(new Error(`not within ${within} ms`)), within);
  });
  try {
    if (!(step.op in steps)) throw new Error("no such step");
    say({ op: step.op, ...(await Promise.race([steps[step.op](step), late])) });
  } catch (error) {
    say({ op: step.op, error: error.message, step });
    process.exit(1);
  } finally {
    clearTimeout(timer);
  }
}

if (scenario) {
  for (const step of JSON.parse(scenario)) await run(step);
} else {
  for await (const line of createInterface({ input: process.stdin })) await run(JSON.parse(line));
}
process.exit(0);
