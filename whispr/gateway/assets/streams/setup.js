// Before one is live: what the stream is called and who may hear it, and where the sound comes from.
//
//   setup = new Setup(shell, source, onBegin)   onBegin(stream, key) once a stream is there to send to; .element
//   soundChooser(source, isLive)                the fields that choose a microphone; `.use()` has the chosen one

import { busy, field, h, icon } from "../shared/dom.js";
import { Meter } from "./meter.js";
import { TONE, microphoneProblem, microphones } from "./sound-source.js";
import { CATEGORIES, VISIBILITIES, stateOf } from "./words.js";

const MANNERS = [["voice", "A voice: echo and noise are taken out"], ["music", "Music: no echo cancellation, as it is"]];

export function chooser(id, label, options, attributes = {}) {
  const select = h("select", { id, ...attributes }, options.map(([value, words]) => h("option", { value }, words)));
  const whole = h("div", { class: "field" }, h("label", { for: id }, label), select);
  whole.input = select;
  return whole;
}

export function check(id, label, checked = false) {
  const input = h("input", { type: "checkbox", id, checked });
  const whole = h("div", { class: "check" }, input, h("label", { for: id }, label));
  whole.input = input;
  return whole;
}

export function soundChooser(source, isLive = false) {
  const device = chooser("device", "Where the sound comes from", [["", "The microphone"], [TONE, "A test tone"]]);
  const manner = chooser("manner", "What it is", MANNERS);
  const stereo = check("stereo", "In stereo, if the microphone is", source.chosen.stereo);
  const problem = h("p", { class: "error", role: "alert" }, microphoneProblem());
  const meter = new Meter("Level of what is sent", () => source.level());
  const test = h("button", { type: "button", class: "small", hidden: Boolean(source.track), onclick: () => busy(test, use).catch(() => null) }, icon("microphone"), "Try it");
  manner.input.value = source.chosen.processed ? "voice" : "music";

  async function use() {
    problem.textContent = "";
    const voice = manner.input.value === "voice";
    try {
      await source.use({ device: device.input.value, processed: voice, stereo: stereo.input.checked });
    } catch (error) {
      problem.textContent = error.message;
      throw error;
    }
    test.hidden = true;
    await list();
  }

  async function list(chosen = device.input.value) {
    const found = (await microphones()).map(({ id, name }) => [id, name]);
    device.input.replaceChildren(...[["", "The microphone"], ...found, [TONE, "A test tone"]].map(([value, words]) => h("option", { value }, words)));
    device.input.value = chosen;
    if (device.input.selectedIndex < 0) device.input.selectedIndex = 0;
  }

  // Once there is sound, or should be, another choice is heard at once.
  for (const each of [device, manner, stereo]) each.input.addEventListener("change", () => { if (source.track || isLive) use().catch(() => null); });
  const changed = () => list();
  navigator.mediaDevices?.addEventListener("devicechange", changed);
  list(problem.textContent ? TONE : source.chosen.device);
  const whole = h("div", { class: "sound" }, device, manner, stereo, h("div", { class: "sound-level" }, test, meter.element), problem);
  whole.use = () => (source.track ? Promise.resolve() : use());
  whole.destroy = () => {
    meter.destroy();
    navigator.mediaDevices?.removeEventListener("devicechange", changed);
  };
  return whole;
}

export class Setup {
  constructor(shell, source, onBegin) {
    Object.assign(this, { shell, source, onBegin });
    this.title = field("Title", { maxlength: 200, required: true, name: "title" });
    this.about = field("What it is about", { rows: 2, maxlength: 4000, name: "description" });
    this.category = chooser("category", "Category", CATEGORIES);
    this.category.input.value = "TALK";
    this.visibility = chooser("visibility", "Who may listen", VISIBILITIES);
    this.chat = check("chat", "With a chat", true);
    this.recording = check("recording", "Record it from the start");
    this.sound = soundChooser(source);
    this.problem = h("p", { class: "error", role: "alert" });
    this.begin = h("button", { type: "submit", class: "primary wide" }, "Go live");
    this.running = h("div", {});
    const form = h("form", { class: "setup card-section" }, h("h1", {}, "Go live"),
      h("div", { class: "columns" }, h("div", {}, this.title, this.about, h("div", { class: "two" }, this.category, this.visibility), this.chat, this.recording),
        h("fieldset", {}, h("legend", {}, "Sound"), this.sound)),
      this.problem, this.begin);
    form.addEventListener("submit", (event) => { event.preventDefault(); this.#submit(); });
    this.element = h("div", {}, this.running, form);
    this.#ask();
  }

  destroy() { this.sound.destroy(); }

  // Streams that run on without this page: after a reload, or begun elsewhere.
  async #ask() {
    try {
      const { streams } = await this.shell.api.get("/v1/users/me/streams", { page_size: 50 });
      const on = streams.filter(({ status }) => ["LIVE", "PAUSED"].includes(status));
      this.running.replaceChildren(...on.map((stream) => {
        const [word, manner] = stateOf(stream);
        const go = h("button", { type: "button", class: "primary", onclick: () => busy(go, () => this.#goOn(stream)) }, "Go on with it");
        return h("section", { class: "card-section running", "aria-label": stream.title }, h("div", { class: "who" }, h("strong", {}, stream.title),
          h("span", { class: "quiet" }, "is under way.")), h("span", { class: `tag ${manner}` }, word), go);
      }));
    } catch (error) {
      if (!error.retryable) this.shell.problem(error.message);
    }
  }

  async #goOn(stream) {
    try {
      await this.sound.use();
      this.onBegin(stream, "", null);
    } catch (error) {
      this.problem.textContent = error.message;
    }
  }

  async #submit() {
    this.title.fail("");
    this.problem.textContent = "";
    try {
      await busy(this.begin, () => this.#create());
    } catch (error) {
      if (error.fields?.title) this.title.fail(error.fields.title);
      else this.problem.textContent = error.message;
    }
  }

  async #create() {
    await this.sound.use();
    const { api } = this.shell;
    const made = await api.post("/v1/streams", { title: this.title.input.value.trim(), description: this.about.input.value.trim(),
      category: this.category.input.value, visibility: this.visibility.input.value });
    const config = { enable_chat: this.chat.input.checked, enable_recording: this.recording.input.checked };
    const { stream } = await api.post(`/v1/streams/${made.stream.id}/start`, { config });
    this.onBegin(stream, made.stream_key, made.ingest);
  }
}
