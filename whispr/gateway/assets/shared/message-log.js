// The messages of a conversation, as a list that follows what comes and says it to screen readers.
//
//   log = new MessageLog({api, session, people}, talk, {onReply})
//     .element            scrolls; keeps to the end while one is there, else where one was reading
//     .destroy()
//
// Each message can be answered, reacted to, edited, deleted and reported, with the mouse and with the keyboard:
// messages are reached by the arrow keys, and their actions by Tab from there.

import { attachmentView } from "./attachments.js";
import { confirmed, openDialog } from "./dialog.js";
import { announce, avatar, busy, field, h, icon, iconButton } from "./dom.js";
import { clock, dayName, full } from "./time.js";

const EMOJI = ["👍", "❤️", "😂", "🎉", "😮", "😢", "🙏", "👀"];
const TOGETHER_MS = 5 * 60_000;
const NEAR_PX = 80;
const LINK = /\bhttps?:\/\/[^\s<>"']+[^\s<>"'.,;:!?)\]]/g;

export class MessageLog {
  #rows = new Map();
  #observed;

  constructor({ api, session, people }, talk, { onReply }) {
    Object.assign(this, { api, people, talk, onReply, me: session.user.id });
    // Additions are announced in our own words: what is drawn again, such as a receipt, is nothing new.
    this.list = h("div", { class: "messages", role: "log", "aria-label": "Messages", "aria-live": "off", tabindex: "0" });
    this.start = h("p", { class: "log-start quiet" });
    this.newer = h("button", { type: "button", class: "to-end", hidden: true, onclick: () => this.toEnd(true) },
      icon("down"), h("span", {}, "New messages"));
    this.element = h("div", { class: "log-scroll" }, this.start, this.list);
    this.whole = h("div", { class: "log" }, this.element, this.newer);
    this.element.addEventListener("scroll", () => this.#scrolled());
    this.list.addEventListener("keydown", (event) => this.#moved(event));
    this.listeners = [
      [talk, "messages", ({ detail }) => this.#changed(detail)],
      [talk, "about", () => this.#drawPending()],
      [people, "learned", () => this.#redraw()],
      [window, "focus", () => this.#seen()],
    ];
    for (const [target, name, listener] of this.listeners) target.addEventListener(name, listener);
    this.#observed = new ResizeObserver(() => { if (this.stuck !== false) this.toEnd(); });
    this.#observed.observe(this.list);
    this.#redraw();
  }

  destroy() {
    for (const [target, name, listener] of this.listeners) target.removeEventListener(name, listener);
    this.#observed.disconnect();
  }

  get atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.element;
    return scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  toEnd(focus = false) {
    this.stuck = true;
    this.element.scrollTop = this.element.scrollHeight;
    this.newer.hidden = true;
    this.#seen();
    if (focus) this.list.focus();
  }

  #changed(what) {
    if (!(what instanceof Set)) {
      const height = this.element.scrollHeight;
      this.#redraw();
      if (what === "older") this.element.scrollTop += this.element.scrollHeight - height;
      // On a tall screen there may be nothing to scroll yet.
      if (this.element.scrollHeight <= this.element.clientHeight) this.talk.loadOlder();
      return;
    }
    const come = [...what].map((seq) => this.talk.message(seq)).filter(Boolean);
    const fresh = come.filter((message) => !this.#rows.has(message.seq));
    this.#redraw();
    for (const message of fresh) {
      if (message.sender_id !== this.me && message.text) announce(`${this.people.name(message.sender_id)}: ${message.text}`);
    }
    if (fresh.length && this.stuck === false && !fresh.some((message) => message.sender_id === this.me)) {
      this.newer.hidden = false;
    } else if (fresh.length) this.toEnd();
  }

  // Rows are drawn again only when what they show has changed, so focus and selections stay.
  #redraw() {
    const shown = [];
    const known = new Set(this.talk.messages.map((message) => message.client_id).filter(Boolean));
    let before = null;
    for (const message of this.talk.messages) {
      const follows = before && sameBlock(before, message);
      if (!before || dayOf(before) !== dayOf(message)) shown.push(this.#row(`day-${dayOf(message)}`, dayOf(message), () => dayRow(message)));
      const facts = [message, follows, this.people.name(message.sender_id), this.#answered(message)?.text];
      shown.push(this.#row(message.seq, JSON.stringify(facts), () => this.#messageRow(message, follows)));
      before = message;
    }
    this.drawnPending = this.talk.pending.filter((entry) => !known.has(entry.client_id)).map((entry) =>
      this.#row(entry.client_id, entry.state + entry.error, () => this.#pendingRow(entry)));
    shown.push(...this.drawnPending);
    this.#place(shown);
    this.start.textContent = this.talk.hasOlder ? "Loading earlier messages…"
      : this.talk.messages.length || this.talk.pending.length ? "This is where it begins." : "";
    this.#receipts();
  }

  #drawPending() { this.#redraw(); if (this.stuck !== false) this.toEnd(); }

  #row(key, facts, make) {
    const kept = this.#rows.get(key);
    if (kept && kept.facts === facts) return kept.row;
    const row = make();
    if (kept?.row.contains(document.activeElement)) queueMicrotask(() => row.focus());
    this.#rows.set(key, { facts, row });
    return row;
  }

  #place(rows) {
    const wanted = new Set(rows);
    for (const row of [...this.list.children]) if (!wanted.has(row)) row.remove();
    rows.forEach((row, index) => {
      if (this.list.children[index] !== row) this.list.insertBefore(row, this.list.children[index] ?? null);
    });
    for (const [key, { row }] of this.#rows) if (!wanted.has(row)) this.#rows.delete(key);
  }

  #answered(message) { return message.reply_to_id ? this.talk.byId(message.reply_to_id) : null; }

  #messageRow(message, follows) {
    const mine = message.sender_id === this.me;
    const name = this.people.name(message.sender_id);
    const at = new Date(message.sent_at);
    if (message.message_type === "system") {
      return h("p", { class: "note", tabindex: "-1" }, message.text || "");
    }
    const time = h("time", { datetime: message.sent_at, title: full(at) }, clock(at));
    const head = follows ? null
      : h("div", { class: "head" }, h("span", { class: "name" }, mine ? "You" : name), time);
    const label = `${mine ? "You" : name}, ${clock(at)}`;
    const row = h("article", { class: `message${mine ? " mine" : ""}${follows ? " follows" : ""}`, tabindex: "-1", "aria-label": label, "data-seq": message.seq },
      h("div", { class: "side" }, follows ? null : avatar(name, message.sender_id)),
      h("div", { class: "bubble" }, head, this.#body(message), this.#reactions(message)),
      message.deleted_at ? null : this.#actions(message, mine));
    return row;
  }

  #body(message) {
    if (message.deleted_at) return h("p", { class: "text gone" }, "This message was deleted.");
    if (message.metadata?.hidden) return h("p", { class: "text gone" }, "Hidden until a moderator has looked at it.");
    const answered = this.#answered(message);
    const parts = [];
    if (message.reply_to_id) {
      parts.push(h("blockquote", {}, answered
        ? [h("strong", {}, this.people.name(answered.sender_id)), " ", answered.text || "…"] : "An earlier message"));
    }
    if (message.text) parts.push(h("p", { class: "text" }, ...linked(message.text)));
    else if (message.content) parts.push(h("p", { class: "text gone" }, "A message that this page cannot read."));
    for (const attachment of message.attachments || []) parts.push(attachmentView(this.api, attachment));
    if (message.edited_at) parts.push(h("span", { class: "edited" }, "edited"));
    return parts;
  }

  #reactions(message) {
    if (!message.reactions?.length || message.deleted_at) return null;
    return h("ul", { class: "reactions", "aria-label": "Reactions" }, message.reactions.map(({ emoji, count, user_ids: ids }) => {
      const mine = ids.includes(this.me);
      const who = ids.slice(0, 10).map((id) => (id === this.me ? "you" : this.people.name(id))).join(", ");
      return h("li", {}, h("button", { type: "button", "aria-pressed": String(mine), title: who,
        "aria-label": `${emoji} ${count}, ${who}`, onclick: () => this.#do(() => this.talk.react(message.id, emoji, !mine)) },
      `${emoji} ${count}`));
    }));
  }

  #actions(message, mine) {
    const react = iconButton("smile", "React", () => this.#pick(message, react), { "aria-haspopup": "true" });
    const canModerate = ["owner", "admin", "moderator"].includes(this.talk.role);
    return h("div", { class: "message-actions", role: "group", "aria-label": "Message actions" },
      react,
      iconButton("reply", "Reply", () => this.onReply(message)),
      mine && message.text ? iconButton("edit", "Edit", () => this.#edit(message)) : null,
      mine ? null : iconButton("flag", "Report", () => this.#report(message)),
      iconButton("bin", "Delete", () => this.#remove(message, mine || canModerate)));
  }

  #pick(message, anchor) {
    const open = this.whole.querySelector(".emoji-picker");
    open?.remove();
    if (open?.dataset.seq === String(message.seq)) return;
    const close = () => { picker.remove(); anchor.focus(); };
    const picker = h("div", { class: "emoji-picker", role: "group", "aria-label": "Choose a reaction", "data-seq": message.seq },
      EMOJI.map((emoji) => h("button", { type: "button", "aria-label": `React with ${emoji}`, onclick: () => {
        close();
        this.#do(() => this.talk.react(message.id, emoji, true));
      } }, emoji)));
    picker.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
    anchor.parentElement.append(picker);
    picker.firstChild.focus();
  }

  #edit(message) {
    const text = field("Message", { rows: 4, value: message.text, maxlength: 16000 });
    const save = h("button", { type: "submit", class: "primary" }, "Save");
    const dialog = openDialog("Edit message", h("form", { onsubmit: async (event) => {
      event.preventDefault();
      try {
        await busy(save, () => this.talk.edit(message.id, text.input.value));
        dialog.close();
      } catch (error) {
        text.fail(error.message);
      }
    } }, text, h("div", { class: "actions" }, save)));
  }

  async #remove(message, forEveryone) {
    const text = forEveryone ? "Nobody will be able to read it any more." : "It is deleted for you alone; others keep it.";
    if (await confirmed("Delete this message?", text, "Delete")) {
      await this.#do(() => this.talk.remove(message.id, forEveryone));
    }
  }

  #report(message) {
    const why = field("What is wrong with it?", { rows: 3, maxlength: 500 }, "Moderators will see the message and what you write.");
    const save = h("button", { type: "submit", class: "danger primary" }, "Report");
    const dialog = openDialog("Report this message", h("form", { onsubmit: async (event) => {
      event.preventDefault();
      try {
        await busy(save, () => this.api.post(`/v1/messages/${message.id}/report`, { reason: why.input.value }));
        dialog.close();
        announce("Reported. Thank you.");
      } catch (error) {
        why.fail(error.message);
      }
    } }, why, h("div", { class: "actions" }, save)));
  }

  #pendingRow(entry) {
    const failed = entry.state === "failed";
    return h("article", { "aria-label": "You, not sent yet", class: `message mine pending${failed ? " failed" : ""}`, tabindex: "-1" },
      h("div", { class: "side" }, avatar(this.people.name(this.me), this.me)),
      h("div", { class: "bubble" },
        h("div", { class: "head" }, h("span", { class: "name" }, "You"),
          h("span", { class: "quiet" }, failed ? `Not sent: ${entry.error}` : "Sending…")),
        entry.text ? h("p", { class: "text" }, ...linked(entry.text)) : null,
        entry.attachment ? h("p", { class: "file" }, icon("file"), entry.attachment.metadata.filename) : null,
        failed ? h("div", { class: "actions" },
          h("button", { type: "button", class: "quiet", onclick: () => this.talk.outbox.discard(entry.client_id) }, "Discard"),
          h("button", { type: "button", class: "quiet", onclick: () => this.talk.outbox.retry(entry.client_id) }, "Send again")) : null));
  }

  // Under the last message of one's own: who has it.
  #receipts() {
    this.list.querySelector(".receipt")?.remove();
    const last = this.talk.messages.findLast((message) => message.sender_id === this.me && !message.deleted_at);
    const row = last && this.#rows.get(last.seq)?.row;
    if (!row) return;
    const readers = this.talk.readBy(last.seq);
    const names = readers.slice(0, 3).map((id) => this.people.name(id)).join(", ");
    const more = readers.length > 3 ? ` and ${readers.length - 3} more` : "";
    const told = readers.length ? (this.talk.kind === "direct" ? "Read" : `Read by ${names}${more}`)
      : this.talk.deliveredTo(last.seq) ? "Delivered" : "Sent";
    row.querySelector(".bubble").append(h("span", { class: "receipt" }, told));
  }

  async #do(work) {
    try {
      await work();
    } catch (error) {
      announce(error.message, true);
      this.element.dispatchEvent(new CustomEvent("problem", { bubbles: true, detail: error.message }));
    }
  }

  #scrolled() {
    this.stuck = this.atEnd;
    if (this.stuck) this.newer.hidden = true;
    if (this.stuck) this.#seen();
    if (this.element.scrollTop < NEAR_PX && this.talk.hasOlder) this.talk.loadOlder();
  }

  #seen() {
    if (document.hasFocus() && !document.hidden && this.stuck !== false) this.talk.markRead();
  }

  #moved(event) {
    const rows = [...this.list.querySelectorAll(":scope > .message, :scope > .note")];
    const at = rows.indexOf(document.activeElement);
    const to = { ArrowUp: at < 0 ? rows.length - 1 : at - 1, ArrowDown: at + 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined || !rows[to] || (event.target !== this.list && at < 0)) return;
    event.preventDefault();
    rows[to].focus();
  }
}

function dayRow(message) {
  return h("p", { class: "day" }, h("span", {}, dayName(new Date(message.sent_at))));
}

const dayOf = (message) => new Date(message.sent_at).toDateString();

function sameBlock(before, message) {
  return before.sender_id === message.sender_id && before.message_type === message.message_type && !message.reply_to_id
    && dayOf(before) === dayOf(message) && new Date(message.sent_at) - new Date(before.sent_at) < TOGETHER_MS;
}

function linked(text) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(LINK)) {
    parts.push(text.slice(end, found.index), h("a", { href: found[0], target: "_blank", rel: "noopener noreferrer" }, found[0]));
    end = found.index + found[0].length;
  }
  return [...parts, text.slice(end)];
}
