// The list of conversations, and where new ones begin.

import { avatar, h, icon, iconButton } from "../shared/dom.js";
import { shortly } from "../shared/time.js";
import { browseRooms, writeToSomebody } from "./starting.js";

export class Sidebar {
  #rows = new Map();
  #open = "";

  constructor(page, footer) {
    this.page = page;
    this.filter = h("input", { type: "search", placeholder: "Filter", "aria-label": "Filter conversations", oninput: () => this.draw() });
    this.list = h("ul", { class: "talks" });
    this.none = h("p", { class: "quiet none" });
    const user = page.session.user;
    const me = h("div", { class: "me" },
      avatar(user.display_name, user.id),
      h("div", { class: "who" }, h("strong", {}, user.display_name), h("span", { class: "quiet" }, `@${user.username}`)),
      iconButton("exit", "Sign out", () => page.session.signOut()));
    this.element = h("aside", { class: "sidebar", "aria-label": "Conversations and account" },
      h("div", { class: "sidebar-head" },
        h("h1", {}, "Messages"),
        iconButton("hash", "Browse rooms", () => this.browse()),
        iconButton("plus", "New conversation", () => this.write(), { class: "icon-button filled" })),
      h("div", { class: "filter" }, icon("search"), this.filter),
      h("nav", { class: "talks-nav", "aria-label": "Conversations" }, this.list, this.none),
      h("a", { class: "to-listen", href: "/listen/" }, icon("headphones"), "Listen"),
      h("details", { class: "about" }, h("summary", {}, "About this server"), footer), me);
    page.inbox.addEventListener("changed", () => this.draw());
    page.inbox.addEventListener("warning", ({ detail }) => page.problem(detail));
    this.draw();
  }

  write() { writeToSomebody(this.page); }
  browse() { browseRooms(this.page); }

  current(id) {
    this.#open = id;
    this.draw();
  }

  draw() {
    const { inbox } = this.page;
    const wanted = this.filter.value.trim().toLowerCase();
    const shown = inbox.list.filter((each) => inbox.nameOf(each).toLowerCase().includes(wanted));
    const rows = shown.map((each) => this.#row(each));
    rows.forEach((row, index) => {
      if (this.list.children[index] !== row) this.list.insertBefore(row, this.list.children[index] ?? null);
    });
    while (this.list.children.length > rows.length) this.list.lastChild.remove();
    this.none.hidden = shown.length > 0;
    this.none.textContent = wanted ? "No conversation of that name."
      : inbox.loaded ? "Nothing here yet. Write to somebody, or join a room." : "Loading…";
  }

  #row(conversation) {
    const { inbox, people, session } = this.page;
    const name = inbox.nameOf(conversation);
    const last = conversation.last_message;
    const unread = conversation.id === this.#open ? 0 : conversation.unread_count;
    const online = conversation.peer && inbox.online(conversation.peer.user_id);
    const preview = last ? previewOf(last, conversation, people, session.user.id) : "No messages yet";
    const facts = JSON.stringify([name, preview, unread, online, conversation.id === this.#open, last?.sent_at]);
    const kept = this.#rows.get(conversation.id);
    if (kept?.facts === facts) return kept.row;
    const row = h("li", {}, h("a", { class: "talk", href: `#/${conversation.kind === "room" ? "room" : "c"}/${conversation.id}`,
      "aria-current": conversation.id === this.#open ? "page" : null },
    h("span", { class: `portrait${online ? " online" : ""}` }, portrait(conversation, name)),
    h("span", { class: "talk-name" }, name, online ? h("span", { class: "sr-only" }, ", online") : null),
    h("span", { class: "talk-time" }, last ? shortly(new Date(last.sent_at)) : ""),
    h("span", { class: "talk-preview" }, preview),
    unread ? h("span", { class: "badge" }, unread > 99 ? "99+" : String(unread), h("span", { class: "sr-only" }, " unread")) : null));
    this.#rows.set(conversation.id, { facts, row });
    if (kept?.row.contains(document.activeElement)) queueMicrotask(() => row.firstChild.focus());
    return row;
  }
}

export function portrait(conversation, name) {
  if (conversation.kind === "room") return h("span", { class: "avatar square", "aria-hidden": "true" }, icon("hash"));
  return avatar(name, conversation.peer?.user_id || conversation.id);
}

function previewOf(message, conversation, people, me) {
  const said = message.deleted_at ? "Message deleted"
    : message.metadata?.hidden ? "Hidden message" : message.text || (message.message_type === "media" ? "A file" : "…");
  if (message.message_type === "system") return said;
  if (message.sender_id === me) return `You: ${said}`;
  return conversation.kind === "direct" ? said : `${people.name(message.sender_id)}: ${said}`;
}
