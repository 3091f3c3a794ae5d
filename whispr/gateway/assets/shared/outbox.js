// Messages that are written and not yet acknowledged: kept in this tab over reloads, sent in order, sent again.
//
//   outbox = new Outbox(session, api)   an EventTarget: "changed" (detail: the conversation's id)
//     .add(conversationId, text, {replyTo, attachment, metadata, type})
//     .of(conversationId)               what waits there: {client_id, text, state: waiting | sending | failed, error}
//     .retry(clientId) · .discard(clientId) · .flush()
//     .attach(id, push) · .detach(id)   sends through an open conversation's channel while it is live, else by REST
//     .arrived(message)                 a message of ours is there, so it waits no longer
//
// Each has a client_id, by which the server knows it again: what was sent twice is there once.

import { uuid } from "./api.js";

const PAUSE_MS = [1000, 2000, 5000, 10_000];

export class Outbox extends EventTarget {
  #entries = [];
  #key;
  #pushes = new Map();
  #going = new Set();
  #tries = 0;

  constructor(session, api) {
    super();
    this.api = api;
    this.#key = `whispr.outbox.${session.user.id}`;
    const kept = JSON.parse(sessionStorage.getItem(this.#key) || "[]");
    this.#entries = kept.map((each) => ({ ...each, state: each.state === "failed" ? "failed" : "waiting" }));
  }

  of(conversationId) { return this.#entries.filter((each) => each.conversation === conversationId); }

  add(conversation, text, { replyTo = "", attachment = null, metadata = {}, type = "text" } = {}) {
    this.#entries.push({ client_id: uuid(), conversation, text, replyTo, attachment, metadata, type,
      at: new Date().toISOString(), state: "waiting", error: "" });
    this.#changed(conversation);
    this.#go(conversation);
  }

  attach(conversation, push) {
    this.#pushes.set(conversation, push);
    this.#tries = 0;
    this.#go(conversation);
  }

  detach(conversation) { this.#pushes.delete(conversation); }

  // Called when the network is back: whatever waits in conversations that are not open goes by REST.
  flush() {
    for (const conversation of new Set(this.#entries.map((each) => each.conversation))) this.#go(conversation);
  }

  retry(clientId) {
    const entry = this.#entries.find((each) => each.client_id === clientId);
    if (!entry) return;
    Object.assign(entry, { state: "waiting", error: "" });
    this.#changed(entry.conversation);
    this.#go(entry.conversation);
  }

  discard(clientId) {
    const entry = this.#entries.find((each) => each.client_id === clientId);
    if (!entry) return;
    this.#entries = this.#entries.filter((each) => each !== entry);
    this.#changed(entry.conversation);
  }

  arrived(message) {
    const entry = this.#entries.find((each) => each.client_id === message.client_id);
    // One with a file waits until the file is linked, too.
    if (entry && !entry.attachment && message.sender_id === this.api.session.user?.id) this.discard(entry.client_id);
  }

  async #go(conversation) {
    if (this.#going.has(conversation)) return;
    this.#going.add(conversation);
    try {
      for (let entry; (entry = this.of(conversation).find((each) => each.state === "waiting")); ) {
        if (!(await this.#send(entry))) break;
      }
    } finally {
      this.#going.delete(conversation);
    }
  }

  // Returns whether the next may follow.
  async #send(entry) {
    entry.state = "sending";
    this.#changed(entry.conversation);
    try {
      const messageId = await this.#submit(entry);
      if (entry.attachment) await this.api.post(`/v1/messages/${messageId}/media`, entry.attachment);
      this.discard(entry.client_id);
      this.#tries = 0;
      return true;
    } catch (error) {
      entry.state = error.retryable ? "waiting" : "failed";
      entry.error = error.retryable ? "" : error.message;
      this.#changed(entry.conversation);
      if (error.retryable) {
        const pause = error.response?.retry_after_ms || PAUSE_MS[Math.min(this.#tries++, PAUSE_MS.length - 1)];
        setTimeout(() => this.#go(entry.conversation), pause);
      }
      return !error.retryable;
    }
  }

  async #submit(entry) {
    const body = { text: entry.text, client_id: entry.client_id, message_type: entry.type, metadata: entry.metadata };
    if (entry.replyTo) body.reply_to_id = entry.replyTo;
    const push = this.#pushes.get(entry.conversation);
    if (push) return (await push("send_message", body)).message_id;
    return (await this.api.post(`/v1/conversations/${entry.conversation}/messages`, body)).message.id;
  }

  #changed(conversation) {
    sessionStorage.setItem(this.#key, JSON.stringify(this.#entries));
    this.dispatchEvent(new CustomEvent("changed", { detail: conversation }));
  }
}
