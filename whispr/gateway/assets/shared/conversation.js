// One conversation or room, kept up to date: its messages, receipts, reactions, who is there and who types.
//
//   talk = new Conversation({socket, session, people, outbox}, {id, kind})
//     an EventTarget: "messages" (detail: what changed: "reset", "older", or a Set of seqs), "about" (name, members,
//     receipts or pending messages changed), "typing", "presence", "state" (connecting, live, or gone with a reason)
//     .open() · .close() · .loadOlder() · .messages (in order) · .pending · .typing · .presence · .readBy(seq)
//     .send(text, options) · .edit(id, text) · .remove(id, forEveryone) · .react(id, emoji, on)
//     .markRead() · .startTyping() · .stopTyping()
//
// It joins with the last seq and change it knows, so after an interruption it is told what it missed, no more.

import { Presence } from "./socket.js";

const PAGE = 50;
const TYPING_EVERY_MS = 4000;
const TYPING_SHOWN_MS = 10_000;
const ENDINGS = new Set(["user_kicked", "user_banned", "room_closed", "member_removed", "user_left"]);

export class Conversation extends EventTarget {
  #messages = new Map();
  #order = null;
  #seq = null;
  #change = null;
  #channel;
  #typing = new Map();
  #typingSaid = 0;
  #readSaid = 0;
  #loading = null;
  presence = new Presence();
  members = new Map();
  receipts = new Map();
  hasOlder = false;
  state = "connecting";
  reason = "";
  role = "";
  memberCount = 0;
  ending = "";

  constructor({ socket, session, people, outbox }, { id, kind }) {
    super();
    Object.assign(this, { id, kind, people, outbox, me: session.user.id });
    const topic = `${kind === "room" ? "room" : "conversation"}:${id}`;
    this.#channel = socket.channel(topic, () => this.#joining());
    this.#channel.addEventListener("joined", ({ detail }) => this.#joined(detail));
    this.#channel.addEventListener("message", ({ detail }) => this.#told(detail.event, detail.payload));
    this.#channel.addEventListener("interrupted", () => this.#become("connecting"));
    this.#channel.addEventListener("refused", ({ detail }) => this.#become("gone", detail.message));
    this.#channel.addEventListener("left", () => this.#become("gone", this.ending || "This conversation was closed."));
    this.onOutbox = ({ detail }) => { if (detail === this.id) this.#tell("about"); };
    outbox.addEventListener("changed", this.onOutbox);
  }

  open() { this.#channel.join(); }

  close() {
    this.stopTyping();
    this.outbox.removeEventListener("changed", this.onOutbox);
    this.outbox.detach(this.id);
    return this.#channel.leave();
  }

  get messages() {
    this.#order ??= [...this.#messages.values()].sort((a, b) => a.seq - b.seq);
    return this.#order;
  }

  get pending() { return this.outbox.of(this.id); }
  get typing() { return [...this.#typing.keys()]; }
  get lastSeq() { return this.messages.at(-1)?.seq ?? 0; }
  message(seq) { return this.#messages.get(seq); }
  byId(id) { return this.messages.find((message) => message.id === id); }

  // The others who have read up to a message.
  readBy(seq) {
    return [...this.receipts].filter(([id, mark]) => id !== this.me && mark.read >= seq).map(([id]) => id);
  }

  deliveredTo(seq) {
    return [...this.receipts].some(([id, mark]) => id !== this.me && Math.max(mark.delivered, mark.read) >= seq);
  }

  // Doing

  send(text, options = {}) {
    this.stopTyping();
    this.outbox.add(this.id, text, options);
  }

  edit(messageId, text) { return this.#channel.push("edit_message", { message_id: messageId, text }); }

  async remove(messageId, forEveryone) {
    await this.#channel.push("delete_message", { message_id: messageId, for_everyone: forEveryone });
    const message = this.byId(messageId);
    if (!forEveryone && message) this.#hide([message.seq]);
  }

  react(messageId, emoji, on) {
    return this.#channel.push(on ? "add_reaction" : "remove_reaction", { message_id: messageId, emoji });
  }

  async markRead() {
    const seq = this.lastSeq;
    if (!seq || seq <= this.#readSaid || !this.#channel.joined) return;
    this.#readSaid = seq;
    await this.#channel.push("mark_read", { seq }).catch(() => { this.#readSaid = 0; });
  }

  startTyping() {
    const now = Date.now();
    if (now - this.#typingSaid < TYPING_EVERY_MS) return;
    this.#typingSaid = now;
    this.#channel.push("typing_start").catch(() => null);
  }

  stopTyping() {
    if (!this.#typingSaid) return;
    this.#typingSaid = 0;
    this.#channel.push("typing_stop").catch(() => null);
  }

  async loadOlder() {
    const first = this.messages[0]?.seq;
    if (!this.hasOlder || !first) return;
    this.#loading ??= this.#channel.push("get_history", { before_seq: first, limit: PAGE }).then((page) => {
      this.#put(page.messages);
      this.hasOlder = page.has_more;
      this.#tell("messages", "older");
    }).catch(() => null).finally(() => { this.#loading = null; });
    await this.#loading;
  }

  // Joining and resuming

  #joining() {
    return this.#seq === null ? {} : { since_seq: this.#seq, since_change: this.#change };
  }

  async #joined(reply) {
    this.role = reply.role;
    this.memberCount = reply.member_count;
    for (const member of reply.members) this.#seat(member);
    if (this.#seq === null) await this.#load(reply);
    else await this.#resume(reply);
    this.outbox.attach(this.id, (event, payload) => this.#channel.push(event, payload));
    this.#become("live");
  }

  async #load(reply) {
    [this.#seq, this.#change] = [reply.seq, reply.change];
    try {
      const page = await this.#channel.push("get_history", { limit: PAGE });
      this.#put(page.messages);
      this.hasOlder = page.has_more;
    } catch {
      [this.#seq, this.#change] = [null, null]; // interrupted: the next join starts over
    }
    this.#tell("messages", "reset");
    this.#tell("about");
  }

  async #resume(reply) {
    for (let missed = reply; ; ) {
      this.#put(missed.messages);
      for (const { event, ...payload } of missed.changes) this.#apply(event, payload);
      this.#put(missed.changed_messages);
      this.#hide(missed.hidden_seqs || []);
      for (const receipt of missed.receipts || []) this.#receipt(receipt.user_id, receipt);
      [this.#seq, this.#change] = [Math.max(this.#seq, missed.seq), Math.max(this.#change, missed.change)];
      if (!missed.has_more || !missed.cursor) break;
      try {
        missed = await this.#channel.push("get_history", { cursor: missed.cursor });
      } catch {
        break;
      }
    }
    this.#tell("messages", "reset");
    this.#tell("about");
  }

  // What is told live

  #told(event, payload) {
    if (event === "new_message") {
      this.#seq = Math.max(this.#seq ?? 0, payload.seq);
      this.#put([payload]);
      this.#typing.delete(payload.sender_id);
      this.outbox.arrived(payload);
      this.#tell("messages", new Set([payload.seq]));
      this.#tell("typing");
      return;
    }
    if (payload.change) this.#change = Math.max(this.#change ?? 0, payload.change);
    this.#apply(event, payload);
    if (payload.seq && this.#messages.has(payload.seq)) this.#tell("messages", new Set([payload.seq]));
  }

  #apply(event, payload) {
    const message = this.#messages.get(payload.seq);
    switch (event) {
      case "message_edited":
        if (payload.message) this.#put([{ ...pick(message, "reactions", "attachments"), ...payload.message }]);
        break;
      case "message_deleted":
        if (message) this.#put([{ ...message, text: undefined, content: undefined, reactions: [], attachments: [],
          deleted_at: payload.deleted_at }]);
        break;
      case "reaction_added":
      case "reaction_removed":
        if (message) this.#put([withReaction(message, payload, event === "reaction_added")]);
        break;
      case "media_linked":
        if (message) this.#put([{ ...message, attachments: [
          ...(message.attachments || []).filter((each) => each.media_id !== payload.media_id),
          { ...payload, state: "linked" }] }]);
        break;
      case "media_unlinked":
        if (message) this.#put([{ ...message,
          attachments: (message.attachments || []).filter((each) => each.media_id !== payload.media_id) }]);
        break;
      case "typing_indicator":
        this.#typed(payload);
        break;
      case "read_receipt":
        this.#receipt(payload.user_id, { read_seq: payload.seq });
        this.#tell("about");
        break;
      case "delivery_status":
        this.#receipt(payload.user_id, { delivered_seq: payload.seq });
        this.#tell("about");
        break;
      case "presence_state":
      case "presence_diff":
        this.presence.apply(event, payload);
        this.#tell("presence");
        break;
      default:
        this.#membership(event, payload);
    }
  }

  #membership(event, payload) {
    if (payload.user_id === this.me && ENDINGS.has(event)) this.ending = endingOf(event, payload);
    if (event === "room_closed") this.ending = endingOf(event, payload);
    if (event === "member_added" || event === "user_joined") {
      this.#seat({ user_id: payload.user_id, ...payload.member });
      this.memberCount += 1;
    } else if (ENDINGS.has(event) && payload.user_id) {
      this.members.delete(payload.user_id);
      this.memberCount -= 1;
    } else if (event === "settings_changed" && payload.user_id && payload.role) {
      const member = this.members.get(payload.user_id);
      if (member) member.role = payload.role;
    }
    this.#tell("about", payload);
  }

  #typed({ user_id: userId, action }) {
    clearTimeout(this.#typing.get(userId));
    this.#typing.delete(userId);
    if (action === "start" && userId !== this.me) {
      this.#typing.set(userId, setTimeout(() => this.#typed({ user_id: userId, action: "stop" }), TYPING_SHOWN_MS));
    }
    this.#tell("typing");
  }

  #receipt(userId, { read_seq: read = 0, delivered_seq: delivered = 0 }) {
    const mark = this.receipts.get(userId) || { read: 0, delivered: 0 };
    this.receipts.set(userId, { read: Math.max(mark.read, read), delivered: Math.max(mark.delivered, delivered) });
  }

  #seat(member) {
    this.members.set(member.user_id, member);
    this.people.learn(member);
    this.#receipt(member.user_id, member);
  }

  #put(messages) {
    for (const message of messages) {
      this.#messages.set(message.seq, message);
      this.outbox.arrived(message);
    }
    this.#order = null;
  }

  #hide(seqs) {
    for (const seq of seqs) this.#messages.delete(seq);
    this.#order = null;
    if (seqs.length) this.#tell("messages", "reset");
  }

  #become(state, reason = "") {
    this.state = state;
    this.reason = reason;
    if (state !== "live") this.outbox.detach(this.id);
    if (state !== "live" && this.presence.keys.length) {
      this.presence.clear();
      this.#tell("presence");
    }
    this.#tell("state");
  }

  #tell(what, detail) { this.dispatchEvent(new CustomEvent(what, { detail })); }
}

function pick(from, ...names) {
  return Object.fromEntries(names.filter((name) => from?.[name]).map((name) => [name, from[name]]));
}

function withReaction(message, { emoji, user_id: userId }, added) {
  const reactions = (message.reactions || []).map((each) => ({ ...each, user_ids: [...each.user_ids] }));
  let found = reactions.find((each) => each.emoji === emoji);
  if (!found) reactions.push((found = { emoji, user_ids: [], count: 0 }));
  const had = found.user_ids.includes(userId);
  if (added && !had) {
    found.user_ids.push(userId);
    found.count += 1;
  } else if (!added && had) {
    found.user_ids = found.user_ids.filter((id) => id !== userId);
    found.count -= 1;
  }
  return { ...message, reactions: reactions.filter((each) => each.count > 0) };
}

function endingOf(event, payload) {
  const why = payload.reason && payload.reason !== "removed" ? ` (${payload.reason})` : "";
  return {
    user_kicked: `You were removed from this conversation${why}.`,
    user_banned: `You were banned from this room${why}.`,
    room_closed: `This room was closed${why}.`,
    member_removed: "You are no longer in this conversation.",
    user_left: "You have left this room.",
  }[event];
}
