// Messages that were reported or flagged, in all conversations, and what is done about them.

import { openDialog } from "../shared/dialog.js";
import { busy, field, h } from "../shared/dom.js";
import { ago, full } from "../shared/time.js";
import { Poll } from "./parts.js";

const EVERY_MS = 5000;
const ACTS = {
  RESTORE: ["Leave it", "It is shown again, and reports of it are settled.", ""],
  WARN: ["Warn", "Its sender is told that it is not welcome.", ""],
  DELETE: ["Delete", "Nobody can read it any more.", "danger"],
  BAN: ["Ban sender", "They are removed from the room and kept out of it.", "danger"],
};

export class Moderation {
  #names = new Map();

  constructor(console) {
    this.console = console;
    this.list = h("ul", { class: "flags" });
    this.none = h("p", { class: "quiet", role: "status" }, "Loading…");
    this.more = h("p", { class: "quiet", hidden: true }, "There are more; they follow when these are dealt with.");
    this.element = h("div", { class: "stack" }, this.none, this.list, this.more);
    this.poll = new Poll(() => this.#ask(), EVERY_MS);
  }

  start() { this.poll.start(); }
  stop() { this.poll.stop(); }

  async #ask() {
    const page = await this.console.attempt(() => this.console.api.get("/v1/flags", { page_size: 50 }));
    const facts = JSON.stringify(page);
    if (!page || facts === this.drawn) return;
    this.drawn = facts;
    await Promise.all([...new Set(page.messages.map((each) => each.message.sender_id))].map((id) => this.#learn(id)));
    this.none.textContent = page.messages.length ? `${page.messages.length} to look at` : "Nothing waits for review.";
    this.more.hidden = !page.next_page_token;
    this.list.replaceChildren(...page.messages.map((flagged) => this.#row(flagged)));
  }

  async #learn(id) {
    if (this.#names.has(id)) return;
    const found = await this.console.api.get(`/v1/users/${id}`).catch(() => null);
    this.#names.set(id, found ? found.profile : { display_name: "Deleted account", username: "" });
  }

  #row(flagged) {
    const { message, reports, reasons, hidden } = flagged;
    const sender = this.#names.get(message.sender_id);
    const place = flagged.conversation_name || (flagged.conversation_kind === "direct" ? "a direct conversation" : flagged.conversation_kind);
    const acts = Object.keys(ACTS).filter((act) => act !== "BAN" || flagged.conversation_kind === "room");
    return h("li", { class: "flag-card" },
      h("header", {}, h("strong", {}, sender.display_name), h("span", { class: "quiet" }, sender.username ? `@${sender.username}` : ""), h("span", { class: "quiet" }, ` in ${place}`),
        h("time", { class: "quiet", datetime: flagged.flagged_at, title: full(new Date(flagged.flagged_at)) }, ago(new Date(flagged.flagged_at))),
        h("span", { class: "tag warn" }, `${reports} ${reports === 1 ? "report" : "reports"}`), hidden ? h("span", { class: "tag bad" }, "hidden") : null),
      h("blockquote", {}, message.text ?? (message.deleted_at ? "(deleted)" : "(not text)")),
      reasons?.length ? h("ul", { class: "reasons", "aria-label": "Reasons given" }, reasons.map((reason) => h("li", {}, `“${reason}”`))) : null,
      h("div", { class: "actions" }, acts.map((act) => h("button", { type: "button", class: `small ${ACTS[act][2]}`, onclick: () => this.#act(act, flagged) }, ACTS[act][0]))));
  }

  #act(act, { message }) {
    const [name, text] = ACTS[act];
    const reason = field("Reason", { rows: 2, maxlength: 500 }, "For the audit log; a warned or banned person sees it.");
    const submit = h("button", { type: "submit", class: `primary ${ACTS[act][2]}` }, name);
    const dialog = openDialog(name, h("form", { onsubmit: async (event) => {
      event.preventDefault();
      try {
        await busy(submit, () => this.#do(act, message, reason.input.value));
        dialog.close();
        this.console.say("Done.");
        await this.#ask();
      } catch (error) {
        reason.fail(error.message);
      }
    } }, h("p", {}, text), reason, h("div", { class: "actions" }, submit)));
  }

  async #do(act, message, reason) {
    const { api } = this.console;
    if (act === "BAN") {
      await api.post(`/v1/rooms/${message.conversation_id}/ban`, { user_id: message.sender_id, reason });
      await api.post(`/v1/messages/${message.id}/moderate`, { action: "DELETE", reason });
    } else {
      await api.post(`/v1/messages/${message.id}/moderate`, { action: act, reason });
    }
  }
}
