// Phoenix clients that others wrote, each through the same scenario: NODE_PATH says where they are installed.
//
//   node phoenix_clients.cjs channels|supabase ws://127.0.0.1:4000/socket TOKEN NEW_TOKEN
//
// Prints one JSON object, {join, echo, heard, refused, …}, once all of it has happened, or fails.

const [which, endpoint, token, renewed] = process.argv.slice(2);

const within = (promise, what, ms = 10000) =>
  Promise.race([promise, new Promise((_, no) => setTimeout(() => no(new Error(`no ${what} in time`)), ms))]);

const settled = (push) =>
  new Promise((resolve) => {
    for (const status of ["ok", "error", "timeout"]) push.receive(status, (response) => resolve({ status, response }));
  });

/** phoenix-channels: the JavaScript client of Phoenix 1.3, for Node. It speaks version 1. */
async function channels() {
  const { Socket } = require("phoenix-channels");
  const socket = new Socket(endpoint, { params: { token }, heartbeatIntervalMs: 200 });
  let opens = 0;
  socket.onOpen(() => opens++);
  socket.connect();
  const channel = socket.channel("room:1", {});
  const heard = new Promise((resolve) => channel.on("shouted", resolve));
  const result = { join: (await within(settled(channel.join()), "join")).status };
  result.echo = (await within(settled(channel.push("echo", { n: 1 })), "reply")).response;
  channel.push("shout", { text: "hé" });
  result.heard = await within(heard, "broadcast");
  result.refused = (await within(settled(channel.push("nonsense", {})), "refusal")).status;
  result.unmatched = (await within(settled(socket.channel("nothing:1", {}).join()), "refusal")).response;
  let joins = 0;
  const again = new Promise((resolve) => channel.joinPush.receive("ok", () => ++joins && resolve()));
  channel.push("crash", {});
  await within(again, "rejoin after a crash");
  result.rejoined = joins;
  socket.conn.close();
  await within(new Promise((resolve) => socket.onOpen(resolve)), "reconnect");
  await within(new Promise((resolve) => channel.joinPush.receive("ok", resolve)), "rejoin");
  result.opens = opens;
  result.renewed = (await within(settled(channel.push("refresh_token", { token: renewed })), "renewal")).status;
  result.leave = (await within(settled(channel.leave()), "leave")).status;
  return result;
}

/** @supabase/realtime-js: broadcasts, presence and tokens in Supabase's own way. In version 1, since what it sends as
 * broadcasts in version 2 are binary frames of kinds that only Supabase has. */
async function supabase() {
  const { RealtimeClient } = require("@supabase/realtime-js");
  const WebSocket = require("ws");
  const params = { apikey: "any", token };
  const client = new RealtimeClient(endpoint, { params, transport: WebSocket, vsn: "1.0.0", heartbeatIntervalMs: 200 });
  let beat = () => undefined;
  client.onHeartbeat((status) => status === "ok" && beat());
  const config = { broadcast: { ack: true, self: true }, presence: { key: "alice", enabled: true } };
  const channel = client.channel("1", { config });
  const heard = new Promise((resolve) => channel.on("broadcast", { event: "hi" }, resolve));
  const synced = new Promise((resolve) => channel.on("presence", { event: "sync" }, resolve));
  const result = {};
  await within(
    new Promise((resolve) => channel.subscribe((status, error) => ((result.join ??= error?.message ?? status), resolve()))),
    "join",
  );
  result.echo = await within(channel.send({ type: "broadcast", event: "hi", payload: { text: "hé" } }), "reply");
  result.heard = (await within(heard, "broadcast")).payload;
  await within(synced, "presence");
  result.present = Object.keys(channel.presenceState());
  await client.setAuth(renewed);
  await within(new Promise((resolve) => (beat = resolve)), "heartbeat");
  result.heartbeat = "ok";
  result.leave = await within(channel.unsubscribe(), "leave");
  await client.disconnect();
  return result;
}

within({ channels, supabase }[which](), which, 40000)
  .then((result) => (console.log(JSON.stringify(result)), process.exit(0)))
  .catch((error) => (console.error(error), process.exit(1)));
