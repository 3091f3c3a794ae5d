// The outbox, the streams, how far consumers are, and the events they gave up on.

import { confirmed, openDialog } from "../shared/dialog.js";
import { h } from "../shared/dom.js";
import { bytes, duration, full, number } from "../shared/time.js";
import { Poll, status, table } from "./parts.js";

const EVERY_MS = 3000;

export class Events {
  constructor(console) {
    this.console = console;
    this.lag = h("div", { class: "stack" });
    this.letters = h("div", {});
    this.more = h("div", { class: "actions" });
    this.element = h("div", { class: "stack" },
      h("section", {}, h("h2", {}, "Dead letters"), h("p", { class: "quiet" }, "Events that a consumer gave up on, oldest first."), this.letters, this.more), this.lag);
    this.poll = new Poll(() => Promise.all([this.#askLag(), this.#askLetters()]), EVERY_MS);
  }

  start() { this.poll.start(); }
  stop() { this.poll.stop(); }

  async #askLag() {
    const lag = await this.console.attempt(() => this.console.api.get("/v1/operations/events"));
    if (!lag) return;
    const right = (name) => ({ name, right: true });
    this.lag.replaceChildren(
      h("section", {}, h("h2", {}, "Consumers"), table("Consumers", ["Consumer", "State", right("Waiting"), right("Dead")],
        lag.consumers.map((each) => [each.name, status(each.state), number(each.lag), number(each.dead)]))),
      h("section", {}, h("h2", {}, "Outbox and streams"),
        h("p", {}, `${number(lag.outbox_rows)} in the outbox`, lag.outbox_rows ? `, the oldest for ${duration(lag.outbox_age_s)}.` : "."),
        table("Streams", ["Stream", right("Events"), right("Size")],
          lag.streams.map((each) => [each.name, each.events === null ? "none yet" : number(each.events), bytes(each.bytes)]))));
  }

  async #askLetters() {
    const page = await this.console.attempt(() => this.console.api.get("/v1/operations/dead-letters", { limit: 50 }));
    // What is drawn again under somebody's hands is annoying: only when it has changed.
    const facts = JSON.stringify(page);
    if (!page || facts === this.drawn) return;
    this.drawn = facts;
    this.letters.replaceChildren(table("Dead letters", ["Number", "Consumer", "Event", "Died", { name: "Attempts", right: true }, "Error", "Actions"],
      page.letters.map((letter) => this.#row(letter)), "None: every event has been handled."));
    this.more.replaceChildren(...(page.letters.length > 1 ? [
      h("button", { type: "button", onclick: () => this.#act("replay", { all: true }) }, "Replay all"),
      h("button", { type: "button", class: "danger", onclick: () => this.#act("drop", { all: true }) }, "Drop all"),
    ] : []));
  }

  #row(letter) {
    const died = new Date(letter.died_at);
    return [String(letter.id), letter.consumer, letter.event, h("time", { datetime: letter.died_at, title: full(died) }, `${duration((Date.now() - died) / 1000)} ago`),
      String(letter.attempts), h("span", { class: "clipped", title: letter.error }, letter.error),
      h("div", { class: "row-actions" },
        h("button", { type: "button", class: "small", "aria-label": `Look at ${letter.id}`, onclick: () => this.#look(letter.id) }, "Look"),
        letter.to_replay ? h("span", { class: "tag warn" }, "to be replayed")
          : h("button", { type: "button", class: "small", "aria-label": `Replay ${letter.id}`, onclick: () => this.#act("replay", { ids: [letter.id] }) }, "Replay"),
        h("button", { type: "button", class: "small danger", "aria-label": `Drop ${letter.id}`, onclick: () => this.#act("drop", { ids: [letter.id] }) }, "Drop"))];
  }

  async #look(id) {
    const letter = await this.console.attempt(() => this.console.api.get(`/v1/operations/dead-letters/${id}`));
    if (!letter) return;
    const dialog = openDialog(`Dead letter ${id}`, h("h3", {}, "Error"), h("pre", { tabindex: "0" }, letter.error),
      h("h3", {}, `${letter.event}, event ${letter.event_id}`), h("pre", { tabindex: "0" }, JSON.stringify(letter.payload, null, 2)));
    dialog.classList.add("large");
  }

  async #act(act, choice) {
    const what = choice.all ? "all dead letters" : `dead letter ${choice.ids[0]}`;
    if (act === "drop" && !(await confirmed(`Drop ${what}?`, "What they tell of will never be handled.", "Drop"))) return;
    const done = await this.console.attempt(() => this.console.api.post(`/v1/operations/dead-letters/${act}`, choice));
    if (done) this.console.say(act === "drop" ? `${done.count} dropped.` : `${done.count} to be handled again.`);
    await this.#askLetters();
  }
}
