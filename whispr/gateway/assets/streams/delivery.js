// The ways by which a stream's sound comes here. Each has a `title` and is tried in the order of WAYS:
//
//   Way.possible(source)      whether this browser, and who listens, can use it
//   way = new Way(source)     source: {id, query, channel, quality, context, headers(), signed(name)}
//     await way.start(volume) plays; throws an ApiError (with a reason) when refused, anything else when it does not work
//     way.over                a promise that is kept, with a reason, when the sound has stopped coming
//     .setVolume(0 to 1) · .level() in dBFS · await .facts(): [[name, value], …] · .close()

import { h } from "../shared/dom.js";
import { SocketSound } from "./socket-sound.js";
import { Delivery, ms, rate } from "./delivery-base.js";
import { connected, hangUp, lost, negotiate } from "./webrtc.js";

const SILENT_MS = 5000;
const START_MS = 10_000;

class Whep extends Delivery {
  static title = "WebRTC (WHEP)";
  static possible() { return "RTCPeerConnection" in window; }
  #last = { at: 0, bytes: 0, packets: 0, movedAt: 0 };

  async start(volume) {
    const { source } = this;
    this.peer = new RTCPeerConnection();
    this.peer.addTransceiver("audio", { direction: "recvonly" });
    const track = new Promise((resolve) => this.peer.addEventListener("track", (event) => resolve(event.track)));
    this.session = await negotiate(this.peer, `/whep/${source.id}${source.query}`, await source.headers());
    await connected(this.peer);
    const stream = new MediaStream([await track]);
    this.element.srcObject = stream;
    this.setVolume(volume);
    await this.element.play();
    this.measure(source.context.createMediaStreamSource(stream));
    lost(this.peer).then(() => this.end("the connection was lost"));
    this.#last.movedAt = performance.now();
    this.watch = setInterval(() => this.facts().catch(() => null), 1000);
  }

  async facts() {
    const [now, last] = [performance.now(), this.#last];
    let [inbound, pair] = [null, null];
    (await this.peer.getStats()).forEach((each) => {
      if (each.type === "inbound-rtp") inbound = each;
      if (each.type === "candidate-pair" && (each.nominated || each.state === "succeeded")) pair = each;
    });
    if (!inbound) return [];
    if (inbound.packetsReceived !== last.packets) last.movedAt = now;
    else if (now - last.movedAt > SILENT_MS) this.end("nothing comes any more");
    if (now - last.at > 900) {
      this.bitrate = last.at ? ((inbound.bytesReceived - last.bytes) * 8) / ((now - last.at) / 1000) : 0;
      Object.assign(last, { at: now, bytes: inbound.bytesReceived });
    }
    last.packets = inbound.packetsReceived;
    const held = inbound.jitterBufferEmittedCount ? inbound.jitterBufferDelay / inbound.jitterBufferEmittedCount : 0;
    const trip = pair?.currentRoundTripTime ?? 0;
    return [["Delay, buffer and network", ms(held + trip / 2)], ["Held in the buffer", ms(held)], ["Round trip", ms(trip)],
      ["Comes at", rate(this.bitrate)], ["Packets lost", `${inbound.packetsLost} of ${inbound.packetsReceived + inbound.packetsLost}`]];
  }

  close() {
    clearInterval(this.watch);
    hangUp(this.peer, this.session);
    super.close();
  }
}

// An element that loads an address by itself.
class Loaded extends Delivery {
  async start(volume) {
    const { element, source } = this;
    element.addEventListener("error", () => this.end("the sound cannot be loaded"));
    element.addEventListener("ended", () => this.end("the sound ended"));
    element.addEventListener("waiting", () => { this.stalls = (this.stalls || 0) + 1; });
    element.src = await this.address();
    this.setVolume(volume);
    const begun = new Promise((resolve) => element.addEventListener("playing", resolve, { once: true }));
    const late = new Promise((_, reject) => setTimeout(() => reject(new Error("nothing comes")), START_MS));
    await Promise.race([Promise.all([element.play(), begun]), late, this.over.then((why) => { throw new Error(why); })]);
    if (this.measured) this.measure(source.context.createMediaElementSource(element), true);
  }

  async facts() {
    const { buffered, currentTime } = this.element;
    const end = buffered.length ? buffered.end(buffered.length - 1) : currentTime;
    return [["Held in the buffer", ms(Math.max(0, end - currentTime))], ["Interruptions", String(this.stalls || 0)]];
  }
}

class NativeHls extends Loaded {
  static title = "HLS";
  static possible() { return Boolean(h("audio").canPlayType("application/vnd.apple.mpegurl")); }
  // Safari gives a page nothing of what it plays by HLS; the levels are then those of the source.
  measured = false;
  address() { return this.source.signed("hls", `/hls/${this.source.id}/master.m3u8`); }
}

class Progressive extends Loaded {
  static title = "plain HTTP";
  static possible() { return true; }
  measured = true;

  async address() {
    const ogg = h("audio").canPlayType('audio/ogg; codecs="opus"');
    const url = await this.source.signed("progressive", `/listen/${this.source.id}`);
    const [path, query = ""] = url.split("?");
    const quality = this.source.quality === "AUTO" ? "" : `quality=${this.source.quality.toLowerCase()}`;
    const asked = [query, quality].filter(Boolean).join("&");
    return `${path}${ogg ? "" : ".aac"}${asked ? `?${asked}` : ""}`;
  }
}

export const WAYS = [Whep, SocketSound, NativeHls, Progressive];
