// A person's conversations, the most recently active first, with what is unread; kept by the topic `user:<id>`.
//
//   inbox = new Inbox({api, socket, session, people})   an EventTarget: "changed"
//     .start() · .list · .unread · .find(id) · .nameOf(conversation) · .online(userId) · .refresh()

import { Presence } from "../shared/socket.js";

const SOON_MS = 300;

export class Inbox extends EventTarget {
  #known = new Map();
  #opened = null;
  #soon = 0;
  #befriended = new Set();
  presence = new Presence();
  loaded = false;

  constructor({ api, socket, session, people }) {
    super();
    Object.assign(this, { api, session, people, me: session.user.id });
    this.channel = socket.channel(`user:${this.me}`);
    this.channel.addEventListener("joined", () => this.refresh());
    this.channel.addEventListener("message", ({ detail }) => this.#told(detail.event, detail.payload));
    this.channel.addEventListener("interrupted", () => { this.presence.clear(); this.#tell(); });
    people.addEventListener("learned", () => this.#tell());
  }

  async start() {
    this.channel.join();
    await this.refresh();
  }

  get list() {
    const at = (each) => each.last_message?.sent_at || each.created_at;
    return [...this.#known.values()].sort((a, b) => (at(a) < at(b) ? 1 : -1));
  }

  get unread() { return this.list.filter((each) => each.unread_count > 0).length; }

  nameOf(conversation) {
    if (conversation.kind !== "direct") return conversation.name || "Unnamed";
    const peer = conversation.peer;
    return peer ? this.people.name(peer.user_id) : "Nobody";
  }

  online(userId) { return this.presence.has(userId); }

  async refresh() {
    const found = [];
    try {
      for (let token = ""; found.length < 200; ) {
        const page = await this.api.get("/v1/conversations", { page_size: 100, page_token: token });
        found.push(...page.conversations);
        if (!(token = page.next_page_token)) break;
      }
    } catch (error) {
      if (!error.retryable) throw error;
      this.later();
      return;
    }
    this.#known = new Map(found.map((each) => [each.id, each]));
    for (const each of found) if (each.peer) this.people.learn(each.peer);
    this.loaded = true;
    this.#tell();
  }

  later() {
    clearTimeout(this.#soon);
    this.#soon = setTimeout(() => this.refresh(), SOON_MS);
  }

  async find(id) {
    if (!this.#known.has(id)) {
      const { conversation } = await this.api.get(`/v1/conversations/${id}`);
      this.#known.set(id, conversation);
      if (conversation.peer) this.people.learn(conversation.peer);
      this.#tell();
    }
    return this.#known.get(id);
  }

  // The conversation on screen: what comes there is seen by its own view, and counts as read when it is.
  opened(talk) {
    this.#opened = talk;
    if (!talk) return;
    const peer = this.#known.get(talk.id)?.peer?.user_id;
    // Whether somebody is there is shown for contacts: people whom one talks to become that.
    if (peer && !this.#befriended.has(peer)) {
      this.#befriended.add(peer);
      this.api.put(`/v1/users/${peer}/contact`).catch(() => this.#befriended.delete(peer));
    }
    talk.addEventListener("messages", ({ detail }) => this.#cameWhileOpen(talk, detail));
  }

  #cameWhileOpen(talk, what) {
    const [known, last] = [this.#known.get(talk.id), talk.messages.at(-1)];
    if (!known || !last || last.seq < (known.last_message?.seq || 0)) return;
    const isNew = what instanceof Set && what.has(last.seq) && last.seq > (known.last_message?.seq || 0);
    // While nobody looks it is unread; the server says how many are left once it has been read.
    const unseen = isNew && last.sender_id !== this.me && !document.hasFocus();
    this.#known.set(talk.id, { ...known, last_message: last, unread_count: known.unread_count + (unseen ? 1 : 0) });
    this.#tell();
  }

  #told(event, payload) {
    const id = payload.conversation_id || payload.conversation?.id;
    const known = this.#known.get(id);
    switch (event) {
      case "new_message":
        if (!known) return this.later();
        this.#known.set(id, { ...known, last_message: payload,
          unread_count: payload.sender_id === this.me ? 0 : known.unread_count + 1 });
        break;
      case "conversation_updated":
        if (!known) return this.later();
        if (payload.user_id === this.me && !("unread_count" in payload)) return this.later();
        this.#known.set(id, { ...known, ...pick(payload, "unread_count", "name", "archived", "settings") });
        break;
      case "conversation_invitation":
      case "message_deleted":
      case "resync":
        return this.later();
      case "presence_state":
      case "presence_diff":
        this.presence.apply(event, payload);
        break;
      case "notification":
        if (payload.kind === "warning") {
          this.dispatchEvent(new CustomEvent("warning", { detail: `A moderator warns you: ${payload.reason}` }));
        }
        return undefined;
      default:
        return undefined;
    }
    return this.#tell();
  }

  #tell() { this.dispatchEvent(new CustomEvent("changed")); }
}

function pick(from, ...names) {
  return Object.fromEntries(names.filter((name) => from[name] !== undefined).map((name) => [name, from[name]]));
}
