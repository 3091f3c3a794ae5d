// Sound over the channel `stream:<id>`: fragments for MediaSource, or, where that takes no Opus, packets for WebCodecs.

import { Delivery, ms, rate } from "./delivery-base.js";

const FMP4 = 'audio/mp4; codecs="opus"';
const [BEHIND_S, BEHIND_S_MAX, KEPT_S, AHEAD_S] = [0.3, 1.2, 30, 0.15];
const [REPORT_MS, OPEN_MS] = [5000, 8000];
const [CLOCK_HZ, FRAME] = [48_000, 960];

const sourceable = () => window.MediaSource?.isTypeSupported(FMP4);

export class SocketSound extends Delivery {
  static title = "WebSocket";
  static possible({ channel }) { return Boolean(channel) && (sourceable() || "AudioDecoder" in window); }
  #waiting = [];
  #buffer = null;
  #bytes = [];
  stalls = 0;
  told = 0;

  async start(volume) {
    const { channel } = this.source;
    this.onMessage = ({ detail }) => this.#told(detail.event, detail.payload);
    this.onGone = () => this.end("the connection was lost");
    channel.addEventListener("message", this.onMessage);
    channel.addEventListener("interrupted", this.onGone);
    if (!channel.joined) await joined(channel);
    await (sourceable() ? this.#bySource(volume) : this.#byPackets(volume));
    this.reporting = setInterval(() => this.#report(), REPORT_MS);
  }

  async #bySource(volume) {
    const { element, source } = this;
    const media = new MediaSource();
    const opened = new Promise((resolve) => media.addEventListener("sourceopen", resolve, { once: true }));
    element.src = URL.createObjectURL(media);
    await opened;
    URL.revokeObjectURL(element.src);
    const said = await source.channel.push("listen", { format: "fmp4", codec: "opus", quality: source.quality });
    this.quality = said.quality;
    this.#buffer = media.addSourceBuffer(said.mime);
    this.#buffer.addEventListener("updateend", () => this.#feed());
    this.#buffer.addEventListener("error", () => this.end("what came cannot be played"));
    element.addEventListener("waiting", () => { this.stalls += 1; });
    this.setVolume(volume);
    const begun = new Promise((resolve) => element.addEventListener("playing", resolve, { once: true }));
    this.#feed();
    await Promise.all([element.play(), begun]);
    this.measure(source.context.createMediaElementSource(element), true);
  }

  async #byPackets(volume) {
    const { source } = this;
    this.gain = new GainNode(source.context, { gain: volume });
    this.measure(this.gain, true);
    this.decoder = new AudioDecoder({ error: () => this.end("what came cannot be played"), output: (data) => this.#play(data) });
    this.decoder.configure({ codec: "opus", sampleRate: CLOCK_HZ, numberOfChannels: 2 });
    this.quality = (await source.channel.push("listen", { format: "packets", codec: "opus", quality: source.quality })).quality;
  }

  #told(event, payload) {
    if (event === "audio_stopped") this.end(payload.reason);
    else if (event === "quality_changed") this.quality = payload.quality;
    else if (event === "audio_init" || event === "audio") {
      this.#bytes.push([performance.now(), payload.length]);
      if (this.decoder) this.#decode(payload);
      else {
        this.#waiting.push(payload);
        this.#feed();
      }
    }
  }

  // Gives the buffer what has come, keeps to the live edge, and lets go of what has been heard.
  #feed() {
    const [buffer, { element }] = [this.#buffer, this];
    if (!buffer || buffer.updating || !this.onMessage) return;
    const { buffered } = element;
    if (buffered.length) {
      const [first, last] = [buffered.start(buffered.length - 1), buffered.end(buffered.length - 1)];
      if (last - element.currentTime > BEHIND_S_MAX || element.currentTime < first) element.currentTime = Math.max(first, last - BEHIND_S);
      if (buffered.start(0) < element.currentTime - 2 * KEPT_S) return buffer.remove(0, element.currentTime - KEPT_S);
    }
    if (this.#waiting.length) buffer.appendBuffer(this.#waiting.shift());
    return undefined;
  }

  // A message holds a head, the packets' sizes and the packets (as the server's whispr/audio/messages.py says).
  #decode(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const [count, pts] = [view.getUint16(2), Number(view.getBigUint64(4))];
    let at = 12 + 2 * count;
    for (let index = 0; index < count; index++) {
      const size = view.getUint16(12 + 2 * index);
      const timestamp = ((pts + FRAME * index) * 1e6) / CLOCK_HZ;
      this.decoder.decode(new EncodedAudioChunk({ type: "key", timestamp, data: bytes.subarray(at, at + size) }));
      at += size;
    }
  }

  #play(data) {
    const { context } = this.source;
    const sound = context.createBuffer(data.numberOfChannels, data.numberOfFrames, data.sampleRate);
    for (let plane = 0; plane < data.numberOfChannels; plane++) data.copyTo(sound.getChannelData(plane), { planeIndex: plane, format: "f32-planar" });
    const at = data.timestamp / 1e6;
    data.close();
    this.offset ??= context.currentTime + AHEAD_S - at;
    if (this.offset + at < context.currentTime) {
      this.stalls += 1;
      this.offset = context.currentTime + AHEAD_S - at;
    }
    this.ahead = this.offset + at - context.currentTime;
    const node = new AudioBufferSourceNode(context, { buffer: sound });
    node.connect(this.gain);
    node.start(this.offset + at);
  }

  setVolume(volume) {
    if (this.gain) this.gain.gain.value = volume;
    else super.setVolume(volume);
  }

  get held() {
    if (this.decoder) return Math.max(0, this.ahead || 0);
    const { buffered, currentTime } = this.element;
    return buffered.length ? Math.max(0, buffered.end(buffered.length - 1) - currentTime) : 0;
  }

  async facts() {
    const since = performance.now() - 3000;
    this.#bytes = this.#bytes.filter(([at]) => at > since);
    const bytes = this.#bytes.reduce((sum, [, size]) => sum + size, 0);
    return [["Held in the buffer", ms(this.held)], ["Comes at", rate((bytes * 8) / 3)], ["Quality", this.quality || "–"], ["Interruptions", String(this.stalls)]];
  }

  #report() {
    const rebuffers = this.stalls - this.told;
    this.told = this.stalls;
    this.source.channel.push("report", { buffer_ms: Math.round(this.held * 1000), rebuffers }).catch(() => null);
  }

  close() {
    const { channel } = this.source;
    clearInterval(this.reporting);
    channel.removeEventListener("message", this.onMessage);
    channel.removeEventListener("interrupted", this.onGone);
    this.onMessage = null;
    if (channel.joined) channel.push("unlisten").catch(() => null);
    if (this.decoder?.state === "configured") this.decoder.close();
    super.close();
  }
}

function joined(channel) {
  return new Promise((resolve, reject) => {
    channel.addEventListener("joined", resolve, { once: true });
    setTimeout(() => reject(new Error("no WebSocket")), OPEN_MS);
  });
}
