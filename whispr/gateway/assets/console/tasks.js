// The live task tree of a worker: who started whom, how long ago, and what each waits on.

import { h } from "../shared/dom.js";
import { duration, number } from "../shared/time.js";
import { Poll, workerChooser } from "./parts.js";

const EVERY_MS = 2000;

export class Tasks {
  #expand = new Set();
  #closed = new Set();

  constructor(console) {
    this.console = console;
    this.worker = console.workers[0];
    this.head = h("p", { class: "quiet", role: "status" }, "Loading…");
    this.tree = h("ul", { class: "tree" });
    this.paused = h("input", { type: "checkbox", id: "paused" });
    this.element = h("div", { class: "stack" },
      h("div", { class: "section-head" }, this.head,
        h("div", { class: "check" }, this.paused, h("label", { for: "paused" }, "Hold still")),
        workerChooser(console.workers, this.worker, (worker) => { this.worker = worker; this.#ask(); })),
      this.tree);
    this.poll = new Poll(() => (this.paused.checked ? undefined : this.#ask()), EVERY_MS);
  }

  start() { this.poll.start(); }
  stop() { this.poll.stop(); }

  async #ask() {
    const query = new URLSearchParams({ worker: this.worker, nodes: "1000" });
    for (const name of this.#expand) query.append("expand", name);
    const answer = await this.console.attempt(() => this.console.api.get(`/v1/debug/tasks?${query}`));
    if (!answer) return;
    const own = answer.process;
    this.head.textContent = `${number(own.tasks)} tasks in process ${own.pid} · ${own.services.join(", ")} · up ${duration(own.uptime_s)}`;
    const focused = document.activeElement?.closest?.(".tree details")?.dataset.path;
    this.tree.replaceChildren(this.#node(answer.tree, ""));
    if (focused) this.tree.querySelector(`[data-path="${CSS.escape(focused)}"] > summary`)?.focus();
  }

  #node(node, path) {
    const here = `${path}/${node.kind}:${node.name}`;
    const below = node.children || node.examples;
    const line = this.#line(node);
    if (node.count > (node.examples?.length || 0)) line.push(this.#more(node));
    if (!below?.length) return h("li", { class: "leaf" }, line);
    const details = h("details", { open: !this.#closed.has(here), "data-path": here }, h("summary", {}, line),
      h("ul", {}, below.map((child, index) => this.#node(child, `${here}#${index}`))));
    details.addEventListener("toggle", () => (details.open ? this.#closed.delete(here) : this.#closed.add(here)));
    return h("li", {}, details);
  }

  #line(node) {
    const parts = [h("span", { class: "kind" }, node.kind), h("span", { class: "task-name" }, node.name === node.kind ? "" : node.name)];
    if (node.count) parts.push(h("span", { class: "tag" }, `× ${number(node.count)}`));
    const age = node.age_s ?? node.oldest_s;
    if (age !== null && age !== undefined) parts.push(h("span", { class: "quiet" }, `${node.at_least ? "over " : ""}${duration(age)}`));
    if (node.deadline_in_s !== null && node.deadline_in_s !== undefined) parts.push(h("span", { class: "tag warn" }, `${duration(Math.max(0, node.deadline_in_s))} left`));
    if (node.at) parts.push(h("code", { class: "at" }, node.at + (node.waits_on ? ` ← ${node.waits_on}` : "")));
    if (node.omitted) parts.push(h("span", { class: "quiet" }, `${number(node.omitted)} below left out`));
    return parts;
  }

  #more(node) {
    const expanded = this.#expand.has(node.name);
    return h("button", { type: "button", class: "link", onclick: (event) => {
      event.preventDefault();
      if (expanded) this.#expand.delete(node.name);
      else this.#expand.add(node.name);
      this.#ask();
    } }, expanded ? "fewer" : "more");
  }
}
