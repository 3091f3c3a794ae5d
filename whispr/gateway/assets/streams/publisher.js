// Sends a track to a stream by WHIP, and comes back by itself when the connection is lost: listeners stay meanwhile.
//
//   publisher = new Publisher(streamId, session)   an EventTarget: "state", "stopped" (detail: why it will not come back)
//     .state                          connecting, live, reconnecting, stopped; `.reason` of the last refusal
//     .start(track) · .replace(track) · .stop() · await .figures(): {bitrate, loss, roundTrip}

import { connected, hangUp, lost, negotiate } from "./webrtc.js";

const PAUSES_MS = [300, 1000, 2000, 3000];
const FINAL = new Set(["stream_ended", "not_started", "not_found", "not_the_streamer", "forbidden", "permission_denied"]);

export class Publisher extends EventTarget {
  #peer = null;
  #session = null;
  #last = { at: 0, bytes: 0 };
  #hurried = () => null;
  state = "stopped";
  reason = "";

  constructor(streamId, session) {
    super();
    Object.assign(this, { streamId, session });
    this.onOnline = () => this.#hurried();
    this.onHide = () => hangUp(this.#peer, this.#session);
  }

  start(track) {
    this.track = track;
    window.addEventListener("online", this.onOnline);
    window.addEventListener("pagehide", this.onHide);
    this.#become("connecting");
    this.#run();
  }

  replace(track) {
    this.track = track;
    this.#peer?.getSenders()[0]?.replaceTrack(track);
  }

  stop() {
    window.removeEventListener("online", this.onOnline);
    window.removeEventListener("pagehide", this.onHide);
    this.#become("stopped");
    hangUp(this.#peer, this.#session);
    this.#hurried();
  }

  #become(state) {
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state"));
  }

  async #run() {
    for (let failures = 0; this.state !== "stopped"; failures++) {
      try {
        await this.#connect();
        if (this.state === "stopped") return hangUp(this.#peer, this.#session);
        failures = 0;
        this.reason = "";
        this.#become("live");
        await lost(this.#peer);
      } catch (error) {
        this.reason = error.reason || "";
        if (FINAL.has(error.reason) || error.status === 401) {
          this.stop();
          this.dispatchEvent(new CustomEvent("stopped", { detail: error.message }));
        }
      }
      hangUp(this.#peer, this.#session);
      [this.#peer, this.#session] = [null, null];
      if (this.state === "stopped") return undefined;
      this.state = "reconnecting";
      this.dispatchEvent(new CustomEvent("state")); // also for another reason
      await this.#pause(PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)]);
    }
    return undefined;
  }

  async #connect() {
    const headers = { authorization: `Bearer ${await this.session.token()}` };
    const peer = this.#peer = new RTCPeerConnection();
    this.#last = { at: 0, bytes: 0 };
    const { sender } = peer.addTransceiver(this.track, { direction: "sendonly" });
    this.#session = await negotiate(peer, `/whip/${this.streamId}`, headers);
    await sender.replaceTrack(this.track); // it may have become another meanwhile
    await connected(peer);
  }

  async figures() {
    const figures = { bitrate: 0, loss: null, roundTrip: null };
    if (!this.#peer) return figures;
    const now = performance.now();
    (await this.#peer.getStats()).forEach((each) => {
      if (each.type === "outbound-rtp") {
        const { at, bytes } = this.#last;
        figures.bitrate = at ? ((each.bytesSent - bytes) * 8000) / (now - at) : 0;
        this.#last = { at: now, bytes: each.bytesSent };
      } else if (each.type === "remote-inbound-rtp") {
        figures.loss = each.fractionLost ?? null;
        figures.roundTrip = each.roundTripTime ?? null;
      }
    });
    return figures;
  }

  #pause(duration) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, duration);
      this.#hurried = () => { clearTimeout(timer); resolve(); };
    });
  }
}
