// Who is connected, and where most of them are.

import { h } from "../shared/dom.js";
import { number } from "../shared/time.js";
import { Poll, table } from "./parts.js";

const EVERY_MS = 3000;

export class Realtime {
  constructor(console) {
    this.console = console;
    this.workers = h("div", {});
    this.topics = h("div", {});
    this.element = h("div", { class: "stack" },
      h("section", {}, h("h2", {}, "Workers"), this.workers),
      h("section", {}, h("h2", {}, "Largest topics"), h("p", { class: "quiet" }, "A member is a socket that has joined, so a person on two devices counts twice."), this.topics));
    this.poll = new Poll(() => this.#ask(), EVERY_MS);
  }

  start() { this.poll.start(); }
  stop() { this.poll.stop(); }

  async #ask() {
    const census = await this.console.attempt(() => this.console.api.get("/v1/operations/realtime"));
    if (!census) return;
    const right = (name) => ({ name, right: true });
    const figure = (value) => (value === undefined ? "no answer" : number(value));
    this.workers.replaceChildren(table("Workers", ["Worker", right("Sockets"), right("People"), right("Channels"), right("Topics")],
      census.workers.map((each) => [each.worker, figure(each.sockets), figure(each.users), figure(each.channels), figure(each.topics)])));
    const most = Math.max(1, ...census.topics.map((each) => each.members));
    this.topics.replaceChildren(table("Largest topics", ["Topic", right("Members"), "Share"],
      census.topics.map(({ topic, members }) => [h("code", {}, topic), number(members), h("meter", { min: 0, max: most, value: members, "aria-label": `${members} of at most ${most}` })]),
      "Nobody has joined anything."));
  }
}
