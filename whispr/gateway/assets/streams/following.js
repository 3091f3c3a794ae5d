// What is so of a stream now: told over its channel to who is signed in, else asked for every few seconds.
//
//   following = new Following(shell, id, query)   `query`: of a signed URL, with its `?`; an EventTarget: "changed",
//     "sourced" (something is sent again), "event" (detail: {event, payload}, as the channel told it)
//     .start() · .stop() · .refresh() · .channel (or null)
//     .stream · .hasSource · .listenerCount · .refused ({reason, message} or null) · .levels · .failed (an ApiError)

import { ApiError } from "../shared/api.js";

const ASKED_MS = 8000;
const SOON_MS = 1500;
const COMES_OFTEN = new Set(["levels", "audio", "audio_init", "listener_count"]); // and says nothing of the stream itself

export class Following extends EventTarget {
  #timer = 0;
  #stopped = false;
  #asked = false;
  #heard = 0;
  stream = null;
  hasSource = null;
  listenerCount = null;
  refused = null;
  levels = null;
  failed = null;
  channel = null;

  constructor(shell, id, query) {
    super();
    Object.assign(this, { shell, id, query });
  }

  // With what this stream is asked for: a signed URL before the person's own token, which may allow less.
  async headers() {
    if (this.query || !this.shell.session.signedIn) return {};
    return { authorization: `Bearer ${await this.shell.session.token()}` };
  }

  start() { return this.refresh(); }

  #join() {
    if (this.#asked || !this.shell.socket) return;
    this.#asked = true;
    this.channel = this.shell.socket.channel(`stream:${this.id}`);
    this.channel.addEventListener("joined", ({ detail }) => this.#joined(detail));
    this.channel.addEventListener("refused", () => { this.channel = null; });
    this.channel.addEventListener("left", () => this.refresh());
    this.channel.addEventListener("interrupted", () => { this.levels = null; });
    this.channel.addEventListener("message", ({ detail }) => this.#told(detail.event, detail.payload));
    this.channel.join();
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.channel?.leave();
  }

  async refresh() {
    clearTimeout(this.#timer);
    try {
      let about, heard;
      do {
        heard = this.#heard;
        about = await this.#ask();
        if (this.#stopped) return;
      } while (heard !== this.#heard); // what the channel told meanwhile is newer than this answer
      const sourced = about.has_source && !this.hasSource;
      Object.assign(this, { stream: about.stream, hasSource: about.has_source, listenerCount: about.listener_count, refused: about.refused, failed: null });
      this.dispatchEvent(new CustomEvent("changed"));
      if (sourced) this.dispatchEvent(new CustomEvent("sourced"));
      this.#join();
    } catch (error) {
      if (this.#stopped) return;
      this.failed = error;
      this.dispatchEvent(new CustomEvent("changed"));
    }
    const over = ["ENDED", "ERROR"].includes(this.stream?.status);
    if (!over && !(this.failed && !this.failed.retryable)) this.#again(ASKED_MS);
  }

  #again(pause) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => (document.hidden || this.channel?.joined ? this.#again(ASKED_MS) : this.refresh()), pause);
  }

  async #ask() {
    let reply;
    try {
      reply = await fetch(`/listen/${this.id}/about${this.query}`, { cache: "no-store", headers: await this.headers() });
    } catch (error) {
      throw error instanceof ApiError ? error : new ApiError(0, null);
    }
    const said = await reply.json().catch(() => null);
    if (!reply.ok) throw new ApiError(reply.status, said);
    return said;
  }

  #joined({ stream, listener_count: count }) {
    Object.assign(this, { stream, listenerCount: count ?? this.listenerCount });
    this.refresh();
  }

  #told(event, payload) {
    if (!COMES_OFTEN.has(event)) this.#heard += 1;
    switch (event) {
      case "levels":
        this.levels = payload;
        return;
      case "audio":
      case "audio_init":
        return;
      case "listener_count":
        this.listenerCount = payload.count;
        break;
      case "metadata_updated":
        this.stream = { ...this.stream, title: payload.title, description: payload.description, metadata: payload.metadata };
        break;
      case "stream_paused":
        this.stream = { ...this.stream, status: "PAUSED" };
        break;
      case "stream_resumed":
        this.stream = { ...this.stream, status: "LIVE" };
        break;
      case "stream_stopped":
        this.stream = { ...this.stream, status: "ENDED", end_reason: payload.reason };
        break;
      case "source_changed":
        this.hasSource = payload.connected;
        if (payload.connected) this.dispatchEvent(new CustomEvent("sourced"));
        break;
      case "stream_started":
        this.stream = { ...this.stream, status: "LIVE" };
        this.#again(SOON_MS);
        break;
      default:
    }
    this.dispatchEvent(new CustomEvent("changed"));
    this.dispatchEvent(new CustomEvent("event", { detail: { event, payload } }));
  }
}
