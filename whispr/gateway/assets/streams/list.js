// The page /listen/: what is live and listed, by category, in the order one likes.

import { avatar, h, icon } from "../shared/dom.js";
import { Shell } from "./shell.js";
import { CATEGORIES, listeners, playing, stateOf, wordOf } from "./words.js";

const EVERY_MS = 10_000;
const PAGE = 30;
const ORDERS = [["LISTENERS", "Most listeners"], ["POPULAR", "Most popular today"], ["RECENT", "Latest"], ["TITLE", "Title"]];

class List {
  #page = 1;
  #stopped = false;

  constructor(shell) {
    this.shell = shell;
    this.element = h("main", { id: "main", class: "streams", tabindex: "-1" });
    if (!shell.session.signedIn) {
      this.element.append(h("div", { class: "empty" }, h("span", { class: "avatar square large", "aria-hidden": "true" }, icon("headphones")),
        h("h1", {}, "Live audio"), h("p", { class: "quiet" }, "Sign in to see what is live. Whoever has the link to a public stream listens without."),
        h("button", { type: "button", class: "primary", onclick: () => shell.askToSignIn("Live audio", "Sign in, or create an account, to see what is live.") }, "Sign in")));
      return;
    }
    const choice = (id, label, options) => {
      const select = h("select", { id, onchange: () => { this.#page = 1; this.#ask(); } }, options.map(([value, words]) => h("option", { value }, words)));
      return [select, h("div", { class: "choice" }, h("label", { for: id }, label), select)];
    };
    let category;
    let order;
    [this.category, category] = choice("category", "Category", [["", "All"], ...CATEGORIES]);
    [this.order, order] = choice("order", "Order", ORDERS);
    this.list = h("ul", { class: "stream-list", "aria-label": "Live streams" });
    this.none = h("p", { class: "empty quiet", role: "status" }, "Loading…");
    this.more = h("button", { type: "button", hidden: true, onclick: () => { this.#page += 1; this.#ask(); } }, "Show more");
    this.element.append(h("div", { class: "streams-head" }, h("h1", {}, "Live now"), h("div", { class: "choices" }, category, order)),
      this.list, this.none, h("div", { class: "actions centred" }, this.more));
    this.#ask();
  }

  destroy() {
    this.#stopped = true;
    clearTimeout(this.timer);
  }

  async #ask() {
    clearTimeout(this.timer);
    try {
      if (!document.hidden || !this.list.children.length) await this.#draw();
    } catch (error) {
      if (this.#stopped) return;
      this.none.hidden = false;
      this.none.textContent = error.message;
    }
    if (!this.#stopped) this.timer = setTimeout(() => this.#ask(), EVERY_MS);
  }

  async #draw() {
    const asked = { category: this.category.value, sort_by: this.order.value, limit: PAGE };
    const pages = await Promise.all([...Array(this.#page).keys()].map((index) => this.shell.api.get("/v1/streams", { ...asked, page: index + 1 })));
    if (this.#stopped) return;
    const streams = pages.flatMap((page) => page.streams);
    const focused = document.activeElement?.getAttribute("href");
    this.list.replaceChildren(...streams.map(row));
    if (focused) this.list.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
    this.more.hidden = streams.length >= pages[0].total;
    this.none.hidden = streams.length > 0;
    this.none.textContent = this.category.value ? "Nothing is live in this category." : "Nothing is live at the moment.";
  }
}

function row(stream) {
  const [word, manner] = stateOf(stream, stream.has_source);
  const track = playing(stream.metadata);
  return h("li", {}, h("a", { href: `/listen/${stream.id}/`, class: "stream-row" }, avatar(stream.title, stream.id),
    h("span", { class: "stream-about" }, h("strong", {}, stream.title),
      h("span", { class: "quiet" }, `${stream.streamer_username} · ${wordOf(CATEGORIES, stream.category)}${stream.visibility === "PREMIUM_ONLY" ? " · premium" : ""}`),
      track ? h("span", { class: "stream-track" }, track) : null),
    h("span", { class: "stream-side" }, h("span", { class: `tag ${manner}` }, word), h("span", { class: "quiet" }, listeners(stream.listener_count)))));
}

new Shell("/listen/", (shell) => new List(shell)).begin();
