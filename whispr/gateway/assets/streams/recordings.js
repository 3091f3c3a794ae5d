// What one has recorded: to play, to keep, to delete.
//
//   recordings = new Recordings(shell)   .element · .refresh() · .destroy()

import { confirmed } from "../shared/dialog.js";
import { h, icon, iconButton } from "../shared/dom.js";
import { bytes, full } from "../shared/time.js";
import { clockOf } from "./words.js";

const STATES = { RECORDING: ["Recording", "bad"], PROCESSING: ["Being stored", "warn"], FAILED: ["Failed", "bad"] };
const SOON_MS = 3000;

export class Recordings {
  #stopped = false;
  #page = 1;

  constructor(shell) {
    this.shell = shell;
    this.list = h("ul", { class: "recordings", "aria-label": "Recordings" });
    this.none = h("p", { class: "quiet" }, "What you record is kept here.");
    this.more = h("button", { type: "button", class: "small", hidden: true, onclick: () => { this.#page += 1; this.refresh(); } }, "Show more");
    this.element = h("section", { class: "card-section", "aria-label": "Your recordings" }, h("h2", {}, "Your recordings"), this.none, this.list, this.more);
    this.refresh();
  }

  destroy() {
    this.#stopped = true;
    clearTimeout(this.timer);
  }

  async refresh() {
    clearTimeout(this.timer);
    try {
      const pages = await Promise.all([...Array(this.#page).keys()].map((index) => this.shell.api.get("/v1/recordings", { limit: 10, page: index + 1 })));
      const found = pages.flatMap((page) => page.recordings);
      // A recording that plays is not drawn again: it would begin anew.
      const facts = JSON.stringify(found.map(({ id, status, title }) => [id, status, title]));
      if (facts !== this.facts) this.list.replaceChildren(...found.map((each) => this.#row(each)));
      this.facts = facts;
      this.none.hidden = found.length > 0;
      this.more.hidden = found.length >= pages[0].total;
      if (found.some(({ status }) => status === "PROCESSING") && !this.#stopped) this.timer = setTimeout(() => this.refresh(), SOON_MS);
    } catch (error) {
      if (!error.retryable) this.shell.problem(error.message);
    }
  }

  #row(recording) {
    const [word, manner] = STATES[recording.status] || [];
    const done = recording.status === "COMPLETED";
    // Signed for the name that the server knows itself by; this page may have reached it under another.
    const { pathname, search } = done ? new URL(recording.file_url, location.href) : {};
    const about = [full(new Date(recording.created_at)), done ? clockOf(recording.duration) : "", done ? bytes(Number(recording.file_size)) : ""];
    return h("li", {}, h("div", { class: "recording-head" },
      h("div", { class: "who" }, h("strong", {}, recording.title), h("span", { class: "quiet" }, about.filter(Boolean).join(" · "), recording.error ? ` · ${recording.error}` : "")),
      word ? h("span", { class: `tag ${manner}` }, word) : null,
      done ? h("a", { class: "icon-button button", href: pathname + search, download: `${recording.title}.ogg`, "aria-label": `Download ${recording.title}`, title: "Download" }, icon("down")) : null,
      recording.status === "RECORDING" ? null : iconButton("bin", `Delete ${recording.title}`, () => this.#delete(recording))),
    done ? h("audio", { controls: true, preload: "none", src: pathname + search, "aria-label": recording.title }) : null);
  }

  async #delete({ id, title }) {
    if (!(await confirmed("Delete this recording?", `“${title}” is gone for good then.`, "Delete"))) return;
    try {
      await this.shell.api.delete(`/v1/recordings/${id}`);
      this.refresh();
    } catch (error) {
      this.shell.problem(error.message);
    }
  }
}
