// The page /listen/<id>/: plays a stream, says what is playing and how it comes here, with its chat beside it.
//
// A signed URL's query is passed on to whatever asks for sound, so that a link to this page is as good as it.

import { announce, h, icon } from "../shared/dom.js";
import { WAYS } from "./delivery.js";
import { Following } from "./following.js";
import { Meter } from "./meter.js";
import { Player } from "./player.js";
import { RoomChat } from "./room-chat.js";
import { Shell } from "./shell.js";
import { CATEGORIES, QUALITIES, clockOf, listeners, playing, refusal, stateOf, wordOf } from "./words.js";

const [, , id] = location.pathname.split("/");
const query = new URLSearchParams(location.search).has("signature") ? location.search : "";
const VOLUME = "whispr.volume";
const FACTS_MS = 1000;

const SAID = {
  connecting: "Connecting…",
  waiting: "Nothing is sent at the moment. It plays as soon as something is.",
  retrying: "The sound was interrupted. Connecting again…",
};

class Listen {
  #quality = "AUTO";
  #wantsOn = false;

  constructor(shell) {
    this.shell = shell;
    this.following = new Following(shell, id, query);
    this.element = h("main", { id: "main", class: "listen", tabindex: "-1" }, h("p", { class: "empty quiet", role: "status" }, "Loading…"));
    this.place = h("div", { hidden: true });
    this.player = new Player(this.#source(), WAYS);
    this.player.addEventListener("state", () => {
      this.#draw();
      if (!this.following.channel?.joined) this.following.refresh(); // there is one listener more, or less
    });
    this.player.addEventListener("refused", () => this.following.refresh());
    this.following.addEventListener("changed", () => this.#changed());
    this.following.addEventListener("sourced", () => this.player.hurry());
    this.ticking = setInterval(() => this.#tick(), FACTS_MS);
    this.following.start();
  }

  destroy() {
    clearInterval(this.ticking);
    this.player.stop();
    this.meter?.destroy();
    this.chat?.destroy();
    this.following.stop();
    resuming = this.#wantsOn;
  }

  #source() {
    const { following, place } = this;
    const quality = () => this.#quality;
    const signed = (name, path) => this.#signed(name, path);
    return { id, query, place, headers: () => following.headers(), signed, context: null,
      get channel() { return following.channel; }, get quality() { return quality(); } };
  }

  // An address that an element can load, which sends no token: signed for who is signed in, under the name of this host.
  async #signed(name, path) {
    if (query || !this.shell.session.signedIn) return path + query;
    const { urls } = await this.shell.api.post(`/v1/streams/${id}/join`, { preferred_quality: this.#quality });
    const { pathname, search } = new URL(urls[name], location.href);
    return pathname + search;
  }

  // Once there is something to show

  #changed() {
    const { stream, failed, refused } = this.following;
    if (!stream) {
      if (failed && !failed.retryable) this.#refuse(failed);
      return;
    }
    if (refused && !["not_started", "stream_ended"].includes(refused.reason)) {
      this.player.stop();
      this.#refuse(refused, stream);
      return;
    }
    if (!this.title) this.#build(stream);
    if (["ENDED", "ERROR"].includes(stream.status)) {
      this.#wantsOn = false;
      this.player.stop();
    }
    this.#draw();
  }

  #refuse(error, stream) {
    const signedIn = this.shell.session.signedIn;
    const asks = error.status === 401 || error.reason === "unauthenticated" || error.code === "UNAUTHENTICATED" || (error.reason === "not_found" && !signedIn);
    const text = asks && !signedIn ? "This stream is for people with an account, or for those who are invited." : refusal(error);
    this.title = null;
    this.element.replaceChildren(h("div", { class: "empty" }, h("span", { class: "avatar square large", "aria-hidden": "true" }, icon("headphones")),
      h("h1", {}, stream?.title || "You cannot listen to this"), h("p", { class: "quiet", role: "status" }, text),
      h("div", { class: "actions centred" },
        signedIn ? null : h("button", { type: "button", class: "primary", onclick: () => this.shell.askToSignIn("Sign in to listen", text) }, "Sign in"),
        h("a", { class: "button", href: "/listen/" }, "See what is live"))));
  }

  #build(stream) {
    this.tag = h("span", { class: "tag" });
    this.count = h("span", { class: "quiet" });
    this.title = h("h1", {});
    this.now = h("p", { class: "now-playing", "aria-live": "polite" });
    this.line = h("p", { class: "status-line quiet", role: "status" });
    this.about = h("p", { class: "description" });
    this.button = h("button", { type: "button", class: "play-button primary", onclick: () => this.#toggle() });
    this.facts = h("dl", { class: "facts" });
    this.meter?.destroy();
    this.meter = new Meter("Level", () => this.player.level() ?? (this.player.wanted ? this.following.levels?.peak : null));
    const aside = stream.room_id ? this.#chatOf(stream.room_id) : null;
    this.element.classList.toggle("with-chat", Boolean(aside));
    this.element.replaceChildren(h("section", { class: "player", "aria-label": "Player" },
      h("div", { class: "player-card" },
        h("p", { class: "player-state" }, this.tag, this.count),
        this.title,
        h("p", { class: "quiet byline" }, `by ${stream.streamer_username} · ${wordOf(CATEGORIES, stream.category)}`),
        this.now,
        h("div", { class: "transport" }, this.button, h("div", { class: "transport-side" }, this.meter.element, this.line)),
        h("div", { class: "controls" }, this.#volumeControl(), this.#qualityControl()),
        this.place),
      this.about,
      h("details", { class: "how" }, h("summary", {}, "How it comes here"), this.facts, this.#forOtherPlayers())), ...(aside ? [aside] : []));
    this.#mediaSession();
    if (resuming) this.#toggle();
    resuming = false;
  }

  #chatOf(roomId) {
    this.chat?.destroy();
    // Who listens to a private stream is let into its room by joining the stream.
    this.chat = new RoomChat(this.shell, roomId, () => this.shell.api.post(`/v1/streams/${id}/join`, {}));
    this.chat.start();
    return this.chat.element;
  }

  #volumeControl() {
    const kept = Number(localStorage.getItem(VOLUME) ?? 100);
    const slider = h("input", { type: "range", min: 0, max: 100, value: String(kept), id: "volume" });
    const mute = h("button", { type: "button", class: "icon-button" });
    let muted = false;
    const set = () => {
      const volume = muted ? 0 : Number(slider.value);
      this.player.setVolume((volume / 100) ** 2); // loudness is heard by its logarithm: a square comes near enough
      slider.setAttribute("aria-valuetext", `${volume} percent`);
      const silent = volume === 0;
      mute.replaceChildren(icon(silent ? "muted" : "volume"));
      mute.setAttribute("aria-label", silent ? "Unmute" : "Mute");
      mute.title = silent ? "Unmute" : "Mute";
    };
    slider.addEventListener("input", () => { muted = false; localStorage.setItem(VOLUME, slider.value); set(); });
    mute.addEventListener("click", () => {
      muted = !muted;
      if (!muted && slider.value === "0") slider.value = "100";
      set();
    });
    set();
    return h("div", { class: "volume" }, mute, h("label", { for: "volume", class: "sr-only" }, "Volume"), slider);
  }

  #qualityControl() {
    // The server hears of it under a person's name; who has none is served what arrives well.
    const may = this.shell.session.signedIn && !query;
    const select = h("select", { id: "quality", disabled: !may, "aria-describedby": may ? null : "quality-hint", onchange: () => this.#change(select.value) },
      QUALITIES.map(([value, words]) => h("option", { value }, words)));
    return h("div", { class: "quality" }, h("label", { for: "quality" }, "Quality"), select,
      may ? null : h("p", { class: "hint", id: "quality-hint" }, "Follows your network. Sign in to choose one."));
  }

  async #change(quality) {
    this.#quality = quality;
    try {
      const { channel } = this.following;
      if (channel?.joined) await channel.push("change_quality", { quality });
      else await this.shell.api.post(`/v1/streams/${id}/quality`, { quality });
      announce(`Quality: ${wordOf(QUALITIES, quality)}`);
    } catch (error) {
      this.shell.problem(error.message);
    }
  }

  #forOtherPlayers() {
    const link = (path, text) => h("li", {}, h("a", { href: `${path}${query}` }, text));
    return h("div", {}, h("h2", {}, "For other players"), h("ul", { class: "links" },
      link(`/listen/${id}`, "Ogg Opus"), link(`/listen/${id}.aac`, "AAC"), link(`/hls/${id}/master.m3u8`, "HLS")));
  }

  // While it runs

  #toggle() {
    this.#wantsOn = !this.player.wanted;
    if (this.player.wanted) this.player.stop();
    else this.player.play();
  }

  #draw() {
    if (!this.title) return;
    const { stream, hasSource, listenerCount } = this.following;
    const [word, manner] = stateOf(stream, hasSource);
    const over = manner === "bad";
    put(this.tag, word);
    this.tag.className = `tag ${manner}`;
    put(this.count, over ? "" : listeners(listenerCount));
    put(this.title, stream.title);
    put(this.now, over ? "" : playing(stream.metadata));
    put(this.about, stream.description);
    document.title = `${stream.title} · Whispr`;
    const { state, wanted } = this.player;
    const label = wanted ? "Stop listening" : "Listen";
    if (this.button.getAttribute("aria-label") !== label) {
      this.button.setAttribute("aria-label", label);
      this.button.title = label;
      this.button.replaceChildren(icon(wanted ? "stop" : "play"));
    }
    this.button.disabled = over;
    this.element.dataset.state = state;
    put(this.line, this.#said(stream, state, over, hasSource));
    if ("mediaSession" in navigator) navigator.mediaSession.playbackState = wanted ? "playing" : "paused";
    this.#describe(stream);
  }

  #said(stream, state, over, hasSource) {
    if (over) return `${refusal({ reason: "stream_ended" })} ${{ source_lost: "Its source was lost.", moderated: "A moderator ended it." }[stream.end_reason] || ""}`.trim();
    if (state === "idle") return stream.status === "CREATED" ? refusal({ reason: "not_started" }) : "";
    if (state === "playing" && stream.status === "PAUSED") return "Paused by the streamer.";
    if (state === "playing" && hasSource === false) return "The source is away. It may come back.";
    return state === "playing" ? `Playing by ${this.player.way}` : SAID[state];
  }

  async #tick() {
    if (!this.title || document.hidden) return;
    const { stream, levels } = this.following;
    const rows = [["Delivered by", this.player.way || "–"], ...await this.player.facts().catch(() => [])];
    for (const [title, why] of this.player.tried) rows.push([`Not by ${title}`, why]);
    if (levels?.short_term) rows.push(["Loudness", `${levels.short_term.toFixed(1)} LUFS`]);
    if (stream.started_at && stateOf(stream)[1] !== "bad") rows.push(["On air for", clockOf((Date.now() - new Date(stream.started_at)) / 1000)]);
    this.facts.replaceChildren(...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  #mediaSession() {
    if (!("mediaSession" in navigator)) return;
    const actions = { play: () => this.player.wanted || this.#toggle(), pause: () => this.player.wanted && this.#toggle(), stop: () => this.player.stop() };
    for (const [name, action] of Object.entries(actions)) navigator.mediaSession.setActionHandler(name, action);
  }

  #describe(stream) {
    if (!("mediaSession" in navigator)) return;
    const { current_track: track, artist, album } = stream.metadata;
    const facts = { title: track || stream.title, artist: artist || stream.streamer_username, album: album || stream.title,
      artwork: [{ src: "/assets/icon.svg", type: "image/svg+xml" }] };
    if (JSON.stringify(facts) === this.described) return;
    this.described = JSON.stringify(facts);
    navigator.mediaSession.metadata = new MediaMetadata(facts);
  }
}

// What is said by a screen reader is what has changed: the same text is not put again.
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Whoever signs in while they listen goes on listening.
let resuming = false;

new Shell("/listen/", (shell) => new Listen(shell)).begin();
