// gRPC's interoperability tests on @grpc/grpc-js, both sides.
//   node interop.cjs client PORT     runs every test, and fails with the first that fails
//   node interop.cjs server          serves on 127.0.0.1, prints the port, and runs until it is told to end
const assert = require("node:assert");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const proto = loader.loadSync(path.join(__dirname, "interop.proto"), { keepCase: true, defaults: true });
const { TestService, UnimplementedService } = grpc.loadPackageDefinition(proto).grpc.testing;
const INITIAL = "x-grpc-test-echo-initial";
const TRAILING = "x-grpc-test-echo-trailing-bin";
const REQUESTS = [27182, 8, 1828, 45904];
const RESPONSES = [31415, 9, 2653, 58979];

const payload = (size) => ({ body: Buffer.alloc(size) });
const asks = (sizes, request = 0) => ({
  response_parameters: sizes.map((size) => ({ size })),
  payload: payload(request),
});
const unary = (client, name, request, ...more) =>
  new Promise((resolve, reject) =>
    client[name](request, ...more, (error, reply) => (error ? reject(error) : resolve(reply))));
const collect = (call) =>
  new Promise((resolve, reject) => {
    const replies = [];
    call.on("data", (reply) => replies.push(reply)).on("error", reject).on("end", () => resolve(replies));
  });
const sizes = (replies) => replies.map((reply) => reply.payload.body.length);
const fails = (promise, code, details) =>
  assert.rejects(promise, (error) => error.code === code && (details === undefined || error.details === details));

const tests = {
  async empty_unary(client) {
    assert.deepEqual(await unary(client, "EmptyCall", {}), {});
  },
  async large_unary(client) {
    const reply = await unary(client, "UnaryCall", { response_size: 314159, payload: payload(271828) });
    assert.equal(reply.payload.body.length, 314159);
  },
  async client_streaming(client) {
    const reply = await new Promise((resolve, reject) => {
      const call = client.StreamingInputCall((error, answer) => (error ? reject(error) : resolve(answer)));
      REQUESTS.forEach((size) => call.write({ payload: payload(size) }));
      call.end();
    });
    assert.equal(reply.aggregated_payload_size, 74922);
  },
  async server_streaming(client) {
    assert.deepEqual(sizes(await collect(client.StreamingOutputCall(asks(RESPONSES)))), RESPONSES);
  },
  async ping_pong(client) {
    const call = client.FullDuplexCall();
    const got = [];
    call.on("data", (reply) => {
      got.push(reply.payload.body.length);
      if (got.length === RESPONSES.length) call.end();
      else call.write(asks([RESPONSES[got.length]], REQUESTS[got.length]));
    });
    call.write(asks([RESPONSES[0]], REQUESTS[0]));
    await new Promise((resolve, reject) => call.on("end", resolve).on("error", reject));
    assert.deepEqual(got, RESPONSES);
  },
  async empty_stream(client) {
    const call = client.FullDuplexCall();
    call.end();
    assert.deepEqual(await collect(call), []);
  },
  async custom_metadata(client) {
    const metadata = new grpc.Metadata();
    metadata.set(INITIAL, "test_initial_metadata_value");
    metadata.set(TRAILING, Buffer.from("ababab", "hex"));
    const call = client.FullDuplexCall(metadata);
    const seen = {};
    call.on("metadata", (initial) => (seen.initial = initial.get(INITIAL)));
    call.on("status", (status) => (seen.trailing = status.metadata.get(TRAILING)));
    call.write(asks([314159], 271828));
    call.end();
    await collect(call);
    assert.deepEqual(seen.initial, ["test_initial_metadata_value"]);
    assert.deepEqual(seen.trailing, [Buffer.from("ababab", "hex")]);
  },
  async status_code_and_message(client) {
    const response_status = { code: 2, message: "test status message" };
    await fails(unary(client, "UnaryCall", { response_status }), 2, response_status.message);
    const call = client.FullDuplexCall();
    call.write({ response_status });
    call.end();
    await fails(collect(call), 2, response_status.message);
  },
  async special_status_message(client) {
    const message = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \u{1f608}\t\n";
    await fails(unary(client, "UnaryCall", { response_status: { code: 2, message } }), 2, message);
  },
  async unimplemented_method(client) {
    await fails(unary(client, "UnimplementedCall", {}), grpc.status.UNIMPLEMENTED);
  },
  async unimplemented_service(client) {
    const other = new UnimplementedService(client.getChannel().getTarget(), grpc.credentials.createInsecure());
    await fails(unary(other, "UnimplementedCall", {}), grpc.status.UNIMPLEMENTED);
    other.close();
  },
  async cancel_after_begin(client) {
    const call = client.FullDuplexCall();
    call.cancel();
    await fails(collect(call), grpc.status.CANCELLED);
  },
  async cancel_after_first_response(client) {
    const call = client.FullDuplexCall();
    call.on("data", () => call.cancel());
    call.write(asks([31415], 27182));
    await fails(collect(call), grpc.status.CANCELLED);
  },
  async timeout_on_sleeping_server(client) {
    const call = client.FullDuplexCall({ deadline: Date.now() + 1 });
    call.write({ payload: payload(27182) });
    await fails(collect(call), grpc.status.DEADLINE_EXCEEDED);
  },
  async client_compressed_unary(client) {
    const gzip = new TestService(client.getChannel().getTarget(), grpc.credentials.createInsecure(), {
      "grpc.default_compression_algorithm": 2,
    });
    const request = { response_size: 314159, payload: payload(271828), expect_compressed: { value: true } };
    await fails(unary(client, "UnaryCall", request), grpc.status.INVALID_ARGUMENT);
    assert.equal((await unary(gzip, "UnaryCall", request)).payload.body.length, 314159);
    gzip.close();
  },
  async server_compressed_unary(client) {
    const request = { response_size: 314159, response_compressed: { value: true } };
    assert.equal((await unary(client, "UnaryCall", request)).payload.body.length, 314159);
  },
  async server_compressed_streaming(client) {
    const response_parameters = [
      { size: 31415, compressed: { value: true } },
      { size: 92653, compressed: { value: false } },
    ];
    const call = client.StreamingOutputCall({ response_parameters });
    assert.deepEqual(sizes(await collect(call)), [31415, 92653]);
  },
  async rpc_soak(client) {
    for (let n = 0; n < 200; n++) await tests.large_unary(client);
  },
};

async function runClient(port) {
  for (const [name, test] of Object.entries(tests)) {
    const client = new TestService(`127.0.0.1:${port}`, grpc.credentials.createInsecure());
    await test(client);
    client.close();
    console.log(`passed ${name}`);
  }
}

function echo(call) {
  const initial = call.metadata.get(INITIAL);
  const trailing = call.metadata.get(TRAILING);
  if (initial.length) {
    const metadata = new grpc.Metadata();
    metadata.set(INITIAL, initial[0]);
    call.sendMetadata(metadata);
  }
  const last = new grpc.Metadata();
  if (trailing.length) last.set(TRAILING, trailing[0]);
  return last;
}

const respond = (call, request, last) => {
  const status = request.response_status;
  if (status && status.code) {
    call.emit("error", { code: status.code, details: status.message, metadata: last });
    return;
  }
  request.response_parameters.forEach(({ size }) => call.write({ payload: payload(size) }));
};

const handlers = {
  EmptyCall: (call, done) => done(null, {}, echo(call)),
  UnaryCall(call, done) {
    const last = echo(call);
    const status = call.request.response_status;
    if (status && status.code) done({ code: status.code, details: status.message, metadata: last });
    else done(null, { payload: payload(call.request.response_size) }, last);
  },
  StreamingOutputCall(call) {
    respond(call, call.request, echo(call));
    call.end();
  },
  StreamingInputCall(call, done) {
    let size = 0;
    call.on("data", (message) => (size += message.payload.body.length));
    call.on("end", () => done(null, { aggregated_payload_size: size }));
  },
  FullDuplexCall(call) {
    const last = echo(call);
    call.on("data", (request) => respond(call, request, last)).on("end", () => call.end(last));
  },
  HalfDuplexCall(call) {
    const requests = [];
    call.on("data", (request) => requests.push(request));
    call.on("end", () => {
      requests.forEach((request) => respond(call, request, undefined));
      call.end();
    });
  },
};

function runServer() {
  const server = new grpc.Server();
  server.addService(TestService.service, handlers);
  server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, port) => {
    if (error) throw error;
    console.log(port);
  });
}

if (process.argv[2] === "server") runServer();
else runClient(process.argv[3]).catch((error) => { console.error(error); process.exit(1); });
