// What the console's sections are made of.
//
//   table(caption, columns, rows)     columns: [{name, right}] or names; a row is a list of cells (text or elements)
//   status(word)                      a tag coloured by what it says
//   tile(name)                        a figure with its name: `.set(value, note)`
//   Poll(work, everyMs)               runs async `work` again and again while the page is looked at; .start() .stop()
//   workerChooser(console, onChange)  a select of workers, hidden when there is one

import { h } from "../shared/dom.js";

const GOOD = new Set(["ok", "up", "serving", "closed", "running", "online"]);
const BAD = new Set(["down", "open", "stopped", "failed"]);

export function table(caption, columns, rows, empty = "Nothing.") {
  const heads = columns.map((column) => (typeof column === "string" ? { name: column } : column));
  const body = rows.map((cells) => h("tr", { class: cells.selected ? "selected" : null },
    cells.map((cell, index) => h(index === 0 ? "th" : "td", { class: heads[index].right ? "right" : null, scope: index === 0 ? "row" : null }, cell))));
  if (!body.length) body.push(h("tr", {}, h("td", { colspan: columns.length, class: "quiet" }, empty)));
  return h("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "sr-only" }, caption),
      h("thead", {}, h("tr", {}, heads.map(({ name, right }) => h("th", { scope: "col", class: right ? "right" : null }, name === "Actions" ? h("span", { class: "sr-only" }, name) : name)))),
      h("tbody", {}, body)));
}

export function status(word) {
  const manner = GOOD.has(word) ? "good" : BAD.has(word) ? "bad" : "warn";
  return h("span", { class: `tag ${manner}` }, word.replaceAll("_", "-"));
}

export function tile(name) {
  const value = h("dd", {}, "–");
  const note = h("dd", { class: "quiet" });
  const whole = h("div", { class: "tile" }, h("dt", {}, name), value, note);
  whole.set = (text, more = "") => { value.textContent = text; note.textContent = more; };
  return whole;
}

export class Poll {
  #timer = 0;
  #stopped = true;

  constructor(work, everyMs) { Object.assign(this, { work, everyMs }); }

  start() {
    this.#stopped = false;
    this.#run();
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  async #run() {
    clearTimeout(this.#timer);
    if (!document.hidden) await this.work();
    if (!this.#stopped) this.#timer = setTimeout(() => this.#run(), this.everyMs);
  }
}

export function workerChooser(names, chosen, onChange) {
  const select = h("select", { id: "worker", onchange: () => onChange(select.value) },
    names.map((name) => h("option", { value: name }, `Worker ${name}`)));
  select.value = chosen;
  return h("div", { class: "chooser", hidden: names.length < 2 }, h("label", { for: "worker" }, "Seen by"), select);
}
