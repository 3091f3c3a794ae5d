// Plays a stream by HLS with hls.js, or over a WebSocket by MediaSource or WebCodecs, and listens to what is played.

const audio = document.getElementById("audio");
const context = new AudioContext();
let analyser;

function listen(node) {
  analyser = context.createAnalyser();
  analyser.fftSize = 16384;
  analyser.smoothingTimeConstant = 0;
  node.connect(analyser);
  node.connect(context.destination);
}

// The strongest frequency in Hz, and how loud it is in dB.
function heard() {
  const bins = new Float32Array(analyser.frequencyBinCount);
  analyser.getFloatFrequencyData(bins);
  let best = 0;
  for (let i = 1; i < bins.length; i += 1) if (bins[i] > bins[best]) best = i;
  return { hz: (best * context.sampleRate) / analyser.fftSize, db: bins[best] };
}

// How the last wave correlates with a tone of this frequency, whatever its phase: 1 is nothing but that tone.
function correlation(hz) {
  const wave = new Float32Array(analyser.fftSize);
  analyser.getFloatTimeDomainData(wave);
  let sine = 0, cosine = 0, power = 0;
  for (let i = 0; i < wave.length; i += 1) {
    const angle = (2 * Math.PI * hz * i) / context.sampleRate;
    sine += wave[i] * Math.sin(angle);
    cosine += wave[i] * Math.cos(angle);
    power += wave[i] * wave[i];
  }
  return power === 0 ? 0 : Math.sqrt((2 * (sine * sine + cosine * cosine)) / (wave.length * power));
}

const state = { errors: [], levels: [], stalls: 0, gaps: 0, loaded: [] };
audio.addEventListener("waiting", () => (state.stalls += 1));

async function playHls(url, options = {}) {
  const hls = (state.hls = new Hls({ lowLatencyMode: true, ...options }));
  hls.on(Hls.Events.ERROR, (_, data) => state.errors.push(`${data.details} ${data.fatal}`));
  hls.on(Hls.Events.LEVEL_SWITCHED, (_, data) => state.levels.push(hls.levels[data.level].attrs["STABLE-VARIANT-ID"]));
  hls.on(Hls.Events.FRAG_BUFFERED, (_, { frag, part }) => state.loaded.push(`${frag.sn}${part ? "." + part.index : ""}`));
  hls.loadSource(url);
  hls.attachMedia(audio);
  await new Promise((done) => hls.once(Hls.Events.MANIFEST_PARSED, done));
  listen(context.createMediaElementSource(audio));
  await context.resume();
  await audio.play();
}

function level(name) {
  return state.hls.levels.findIndex((each) => each.attrs["STABLE-VARIANT-ID"] === name);
}

function facts() {
  const buffered = [...Array(audio.buffered.length).keys()].map((i) => [audio.buffered.start(i), audio.buffered.end(i)]);
  const { errors, levels, stalls, loaded, hls } = state;
  return {
    time: audio.currentTime,
    latency: hls?.latency,
    date: hls?.playingDate?.getTime(),
    now: Date.now(),
    names: hls?.levels.map((each) => each.attrs["STABLE-VARIANT-ID"]),
    paused: audio.paused,
    buffered, errors, levels, stalls, loaded: loaded.slice(-8),
    ...(analyser ? heard() : {}),
  };
}

// ── over a WebSocket ──

async function joined(url, token, topic) {
  const { Socket } = await import("./phoenix.js");
  const socket = new Socket(url, { params: { token } });
  socket.connect();
  const channel = socket.channel(topic, {});
  channel.onError((reason) => state.errors.push(`channel ${JSON.stringify(reason)}`));
  channel.on("audio_stopped", ({ reason }) => state.errors.push(`stopped ${reason}`));
  await answered(channel.join());
  return channel;
}

function answered(push) {
  return new Promise((done, fail) => push.receive("ok", done).receive("error", (e) => fail(new Error(JSON.stringify(e)))));
}

// Plays fMP4 by MediaSource, 0.25 s behind what has come.
async function playSource(url, token, topic, options = {}) {
  const channel = (state.channel = await joined(url, token, topic));
  const source = new MediaSource();
  audio.src = URL.createObjectURL(source);
  await new Promise((done) => source.addEventListener("sourceopen", done, { once: true }));
  const waiting = [];
  let buffer, said;
  const next = () => {
    if (!buffer || buffer.updating) return;
    if (waiting.length) return buffer.appendBuffer(waiting.shift());
    if (!audio.buffered.length) return;
    const end = audio.buffered.end(audio.buffered.length - 1);
    if (end - audio.currentTime > 0.6) audio.currentTime = end - 0.25;
    if (audio.paused) audio.play();
  };
  channel.on("audio_init", (bytes) => (waiting.push(bytes), next()));
  channel.on("audio", (bytes) => (waiting.push(bytes), next()));
  said = await answered(channel.push("listen", { format: "fmp4", ...options }));
  buffer = source.addSourceBuffer(said.mime);
  buffer.addEventListener("updateend", next);
  buffer.addEventListener("error", () => state.errors.push("source buffer"));
  listen(context.createMediaElementSource(audio));
  await context.resume();
  next();
  state.heard = () => audio.currentTime;
}

// Plays packets by WebCodecs: each as soon as it is decoded, 0.1 s ahead of the sound card.
async function playPackets(url, token, topic, options = {}) {
  const channel = (state.channel = await joined(url, token, topic));
  const gain = context.createGain();
  listen(gain);
  await context.resume();
  let starts;
  const decoder = new AudioDecoder({
    error: (error) => state.errors.push(String(error)),
    output: (data) => {
      const length = data.numberOfFrames;
      const sound = context.createBuffer(data.numberOfChannels, length, data.sampleRate);
      for (let plane = 0; plane < data.numberOfChannels; plane += 1) {
        data.copyTo(sound.getChannelData(plane), { planeIndex: plane, format: "f32-planar" });
      }
      const media = data.timestamp / 1e6;
      data.close();
      starts ??= context.currentTime + 0.1 - media;
      if (starts + media < context.currentTime) (state.stalls += 1), (starts = context.currentTime + 0.1 - media);
      const node = context.createBufferSource();
      node.buffer = sound;
      node.connect(gain);
      node.start(starts + media);
    },
  });
  decoder.configure({ codec: "opus", sampleRate: 48000, numberOfChannels: 2 });
  channel.on("audio", (bytes) => {
    const view = new DataView(bytes);
    const count = view.getUint16(2), pts = Number(view.getBigUint64(4));
    let at = 12 + 2 * count;
    for (let i = 0; i < count; i += 1) {
      const size = view.getUint16(12 + 2 * i);
      const timestamp = ((pts + 960 * i) * 1e6) / 48000;
      decoder.decode(new EncodedAudioChunk({ type: "key", timestamp, data: new Uint8Array(bytes, at, size) }));
      at += size;
    }
  });
  await answered(channel.push("listen", { format: "packets", ...options }));
  state.heard = () => context.currentTime - starts - context.outputLatency;
}

// Publishes a tone as a page's microphone would, by MediaRecorder.
async function publishTone(url, token, topic, key, hz) {
  const channel = (state.publishing = await joined(url, token, topic));
  channel.on("publish_stopped", ({ reason, message }) => state.errors.push(`publish ${reason} ${message}`));
  const tone = context.createOscillator();
  tone.frequency.value = hz;
  const volume = context.createGain();
  volume.gain.value = 0.5;
  const stream = context.createMediaStreamDestination();
  tone.connect(volume).connect(stream);
  tone.start();
  await context.resume();
  await answered(channel.push("publish", { key, format: "webm" }));
  const recorder = new MediaRecorder(stream.stream, { mimeType: "audio/webm;codecs=opus", audioBitsPerSecond: 128000 });
  recorder.ondataavailable = async ({ data }) => channel.push("audio", await data.arrayBuffer());
  recorder.start(100);
  state.recorder = recorder;
}

Object.assign(window, { playSource, playPackets, publishTone, answered, playHls, level, facts, correlation, heard, state, audio, context, listen });
window.ready = true;
