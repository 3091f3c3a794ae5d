// The chat that goes with a stream, beside it: the room's messages for who has joined it, a way in for who has not.
//
//   chat = new RoomChat(shell, roomId, enter)   `enter()` asks for what joining the room needs first, such as an invitation
//     .element · .start() · .destroy()

import { Composer } from "../shared/composer.js";
import { Conversation } from "../shared/conversation.js";
import { busy, h } from "../shared/dom.js";
import { MessageLog } from "../shared/message-log.js";

export class RoomChat {
  constructor(shell, roomId, enter = async () => null) {
    Object.assign(this, { shell, roomId, enter });
    this.body = h("div", { class: "room-body" });
    this.line = h("span", { class: "quiet" });
    this.element = h("section", { class: "room-chat", "aria-label": "Chat" }, h("header", { class: "room-head" }, h("h2", {}, "Chat"), this.line), this.body);
  }

  async start() {
    const { shell } = this;
    if (!shell.session.signedIn) {
      this.#offer("Sign in to read along and to write.", "Sign in", () => shell.askToSignIn("Join the chat", "Sign in, or create an account, to chat while you listen."));
      return;
    }
    try {
      await shell.api.get(`/v1/conversations/${this.roomId}`);
      this.#open();
    } catch (error) {
      if (error.retryable) this.retry = setTimeout(() => this.start(), 2000);
      else this.#offer("Everybody who listens may join.", "Join the chat", (button) => busy(button, () => this.#join()));
    }
  }

  #offer(text, action, work) {
    const button = h("button", { type: "button", class: "primary", onclick: () => work(button) }, action);
    this.body.replaceChildren(h("div", { class: "empty" }, h("p", { class: "quiet" }, text), button));
  }

  async #join() {
    try {
      await this.enter();
      await this.shell.api.post(`/v1/rooms/${this.roomId}/join`);
      this.#open(true);
    } catch (error) {
      this.shell.problem(error.message);
    }
  }

  #open(focus = false) {
    if (!this.shell.socket) return;
    this.talk = new Conversation(this.shell, { id: this.roomId, kind: "room" });
    this.log = new MessageLog(this.shell, this.talk, {
      onReply: (message) => this.composer.replyTo(message, this.shell.people.name(message.sender_id)),
    });
    this.composer = new Composer(this.shell, this.talk);
    this.typing = h("p", { class: "typing quiet", role: "status" });
    const here = () => { this.line.textContent = this.talk.presence.keys.length ? `${this.talk.presence.keys.length} here` : ""; };
    this.talk.addEventListener("presence", here);
    this.talk.addEventListener("typing", () => {
      const [first, ...more] = this.talk.typing.map((id) => this.shell.people.name(id));
      this.typing.textContent = !first ? "" : more.length ? "Several people are typing…" : `${first} is typing…`;
    });
    this.body.addEventListener("problem", ({ detail }) => this.shell.problem(detail));
    this.body.replaceChildren(this.log.whole, this.typing, this.composer.element);
    this.talk.open();
    if (focus) this.composer.focus();
  }

  destroy() {
    clearTimeout(this.retry);
    this.log?.destroy();
    this.composer?.destroy();
    this.talk?.close();
  }
}
