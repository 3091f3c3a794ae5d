// While one is live: what is sent and how well it arrives, who listens, what is playing, recording, and the end.
//
//   air = new OnAir(shell, stream, {key, ingest, source, onEnd})   .element · .destroy()

import { peopleFinder } from "../chat/starting.js";
import { confirmed } from "../shared/dialog.js";
import { announce, busy, field, h, icon } from "../shared/dom.js";
import { number } from "../shared/time.js";
import { rate, ms } from "./delivery-base.js";
import { Following } from "./following.js";
import { Publisher } from "./publisher.js";
import { RoomChat } from "./room-chat.js";
import { soundChooser } from "./setup.js";
import { clockOf, stateOf } from "./words.js";

const EVERY_MS = 1000;
const LINK_S = 24 * 3600;
const SENDING = { connecting: "Connecting…", live: "Your sound is being sent.", reconnecting: "The connection was lost. Connecting again; your listeners stay.", stopped: "Nothing is sent." };

function tile(name) {
  const value = h("dd", {}, "–");
  const whole = h("div", { class: "tile" }, h("dt", {}, name), value);
  whole.set = (text) => { if (value.textContent !== text) value.textContent = text; };
  return whole;
}

export class OnAir {
  #recording = "";

  constructor(shell, stream, { key, ingest, source, recordings, onEnd }) {
    Object.assign(this, { shell, id: stream.id, source, recordings, onEnd, path: `/v1/streams/${stream.id}` });
    this.following = new Following(shell, stream.id, "");
    this.following.addEventListener("changed", () => this.#draw());
    this.following.addEventListener("event", ({ detail }) => this.#heard(detail));
    this.publisher = new Publisher(stream.id, shell.session);
    this.publisher.addEventListener("state", () => this.#sending());
    this.publisher.addEventListener("stopped", ({ detail }) => this.shell.problem(detail));
    this.onTrack = () => {
      if (source.track) this.publisher.replace(source.track);
      else this.shell.problem("The microphone is gone. Choose another source; silence is sent meanwhile.");
    };
    source.addEventListener("changed", this.onTrack);
    this.sound = soundChooser(source, true);
    this.#build(stream, key, ingest);
    this.following.start();
    this.publisher.start(source.track);
    this.onLeave = (event) => event.preventDefault();
    window.addEventListener("beforeunload", this.onLeave);
    this.timer = setInterval(() => this.#tick(), EVERY_MS);
    this.#findRecording();
  }

  destroy() {
    clearInterval(this.timer);
    window.removeEventListener("beforeunload", this.onLeave);
    this.source.removeEventListener("changed", this.onTrack);
    this.publisher.stop();
    this.following.stop();
    this.sound.destroy();
    this.chat?.destroy();
  }

  #build(stream, key, ingest) {
    this.tag = h("span", { class: "tag" });
    this.clock = h("span", { class: "quiet", role: "timer", "aria-label": "On air for" });
    this.line = h("p", { class: "quiet", role: "status" });
    this.tiles = Object.fromEntries([["listeners", "Listeners"], ["bitrate", "Sent"], ["loss", "Lost on the way"], ["trip", "Round trip"]].map(([name, words]) => [name, tile(words)]));
    this.pause = h("button", { type: "button", onclick: () => this.#pause() });
    this.record = h("button", { type: "button", onclick: () => this.#record() });
    this.stop = h("button", { type: "button", class: "danger primary", onclick: () => this.#stop() }, icon("stop"), "End the stream");
    this.title = h("h1", {}, stream.title);
    this.listenPath = `/listen/${stream.id}/`;
    const left = h("div", { class: "on-air" },
      h("section", { class: "card-section", "aria-label": "On air" }, h("p", { class: "player-state" }, this.tag, this.clock), this.title, this.line,
        h("dl", { class: "tiles" }, Object.values(this.tiles)),
        h("div", { class: "actions" }, this.pause, this.record, this.stop)),
      h("section", { class: "card-section", "aria-label": "Sound" }, h("h2", {}, "Sound"), this.sound),
      this.#playingForm(stream.metadata || {}), this.#links(stream, key, ingest));
    this.chat = stream.room_id ? new RoomChat(this.shell, stream.room_id) : null;
    this.chat?.start();
    this.element = h("div", { class: `studio${this.chat ? " with-chat" : ""}` }, left, this.chat?.element);
    this.#draw();
    this.#sending();
    this.#showRecording();
  }

  #playingForm(metadata) {
    const track = field("Title of what is playing", { maxlength: 200, value: metadata.current_track || "" });
    const artist = field("By", { maxlength: 200, value: metadata.artist || "" });
    const submit = h("button", { type: "submit" }, "Tell the listeners");
    const form = h("form", { class: "card-section", "aria-label": "What is playing" }, h("h2", {}, "What is playing"), h("div", { class: "two" }, track, artist), h("div", { class: "actions" }, submit));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#try(submit, async () => {
        await this.shell.api.patch(this.path, { metadata: { ...this.following.stream?.metadata, current_track: track.input.value.trim(), artist: artist.input.value.trim() } });
        announce("The listeners have been told.");
      });
    });
    return form;
  }

  #links(stream, key, ingest) {
    const address = field("Where people listen", { readonly: true, value: location.origin + this.listenPath });
    address.input.addEventListener("focus", () => address.input.select());
    const parts = [address];
    if (stream.visibility === "PRIVATE_STREAM") {
      const make = h("button", { type: "button", onclick: () => this.#try(make, async () => {
        const { urls } = await this.shell.api.post(`${this.path}/urls`, { expires_in_s: LINK_S });
        address.input.value = location.origin + this.listenPath + new URL(urls.whep, location.href).search;
        address.input.select();
        announce("The link lets whoever has it listen for a day.");
      }) }, icon("link"), "Make a link that lets anybody listen for a day");
      const invite = (user) => this.#try(make, async () => {
        await this.shell.api.put(`${this.path}/invitations/${user.id}`);
        announce(`${user.display_name} may listen.`);
        invited.append(h("li", {}, h("span", { class: "tag good" }, `${user.display_name} may listen`)));
      });
      const invited = h("ul", { class: "links", "aria-label": "Invited now" });
      parts.push(h("div", { class: "actions" }, make),
        h("details", {}, h("summary", {}, icon("people"), "Invite somebody"), peopleFinder(this.shell, "Who may listen?", invite), invited));
    }
    if (key) {
      const shown = (label, value) => field(label, { readonly: true, value });
      parts.push(h("details", {}, h("summary", {}, "Send from another program instead"),
        h("p", { class: "quiet" }, "OBS sends by WHIP, with the key as its bearer token; BUTT, Mixxx and ffmpeg by Icecast, as source with the key as the password. One source at a time."),
        shown("WHIP", ingest.whip), shown("Icecast", ingest.icecast), shown("Key, shown this once", key)));
    }
    return h("section", { class: "card-section", "aria-label": "Links" }, h("h2", {}, "Links"), ...parts);
  }

  // What happens

  #draw() {
    const { stream, hasSource, listenerCount } = this.following;
    if (!stream) return;
    const [word, manner] = stateOf(stream, hasSource);
    this.tag.textContent = word;
    this.tag.className = `tag ${manner}`;
    this.title.textContent = stream.title;
    this.tiles.listeners.set(number(listenerCount ?? 0));
    this.#showPause(stream.status === "PAUSED");
    if (manner === "bad") this.onEnd(stream.end_reason === "source_lost" ? "The stream ended: nothing was sent for too long." : "The stream has ended.");
  }

  #sending() {
    const taken = this.publisher.state === "reconnecting" && this.publisher.reason === "source_connected";
    this.line.textContent = taken ? "Something else sends to this stream already. Yours follows when that stops." : SENDING[this.publisher.state];
    this.line.classList.toggle("error", this.publisher.state === "reconnecting");
  }

  #heard({ event, payload }) {
    if (event === "recording_started") this.#recording = payload.recording_id;
    if (event === "recording_completed" && payload.recording_id === this.#recording) this.#recording = "";
    if (event.startsWith("recording_")) {
      this.#showRecording();
      this.recordings.refresh();
    }
  }

  async #tick() {
    const { stream } = this.following;
    if (stream?.started_at) this.clock.textContent = clockOf(Math.max(0, (Date.now() - new Date(stream.started_at)) / 1000));
    const { bitrate, loss, roundTrip } = await this.publisher.figures();
    this.tiles.bitrate.set(rate(bitrate));
    this.tiles.loss.set(loss === null ? "–" : `${number(Math.round(loss * 1000) / 10)} %`);
    this.tiles.trip.set(roundTrip === null ? "–" : ms(roundTrip));
  }

  // What one does

  async #try(button, work) {
    try {
      await busy(button, work);
    } catch (error) {
      this.shell.problem(error.message);
    }
  }

  #showPause(paused) {
    if (this.pause.dataset.paused === String(paused)) return;
    this.pause.dataset.paused = String(paused);
    this.pause.replaceChildren(icon(paused ? "play" : "pause"), paused ? "Go on" : "Pause");
  }

  #pause() {
    const paused = this.following.stream?.status === "PAUSED";
    return this.#try(this.pause, async () => {
      await this.shell.api.post(`${this.path}/${paused ? "resume" : "pause"}`);
      announce(paused ? "You can be heard again." : "Silence is sent.");
      await this.following.refresh();
    });
  }

  async #findRecording() {
    try {
      const { recordings } = await this.shell.api.get("/v1/recordings", { limit: 20 });
      this.#recording = recordings.find((each) => each.stream_id === this.id && each.status === "RECORDING")?.id || "";
      this.#showRecording();
    } catch (error) {
      if (!error.retryable) this.shell.problem(error.message);
    }
  }

  #showRecording() {
    const on = Boolean(this.#recording);
    this.record.replaceChildren(icon(on ? "stop" : "record"), on ? "Stop recording" : "Record");
    this.record.classList.toggle("recording", on);
  }

  #record() {
    return this.#try(this.record, async () => {
      if (this.#recording) {
        await this.shell.api.post(`/v1/recordings/${this.#recording}/stop`);
        this.#recording = "";
      } else this.#recording = (await this.shell.api.post(`${this.path}/recordings`)).recording_id;
      this.#showRecording();
      this.recordings.refresh();
    });
  }

  async #stop() {
    if (!(await confirmed("End the stream?", "It ends for everybody, for good. You can make another.", "End it"))) return;
    await this.#try(this.stop, async () => {
      const { summary } = await this.shell.api.post(`${this.path}/stop`, { reason: "" });
      const most = summary.max_listeners;
      this.onEnd(`The stream has ended, after ${clockOf(Number(summary.total_duration))}${most ? `, with up to ${most} ${most === 1 ? "listener" : "listeners"} at once` : ""}.`);
    });
  }
}
