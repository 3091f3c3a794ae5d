// One conversation on screen: its head, its messages, who types, and where one writes.

import { Composer } from "../shared/composer.js";
import { Conversation } from "../shared/conversation.js";
import { h, iconButton } from "../shared/dom.js";
import { MessageLog } from "../shared/message-log.js";
import { showDetails } from "./details.js";
import { portrait } from "./sidebar.js";

export class TalkView {
  constructor(page, conversation) {
    Object.assign(this, { page, conversation, id: conversation.id });
    this.talk = new Conversation(page, conversation);
    this.log = new MessageLog(page, this.talk, {
      onReply: (message) => this.composer.replyTo(message, page.people.name(message.sender_id)),
    });
    this.composer = new Composer(page, this.talk);
    this.name = h("h1", {});
    this.line = h("p", { class: "quiet", role: "status" });
    this.typing = h("p", { class: "typing quiet", role: "status" });
    this.face = h("span", { class: "portrait" }, portrait(conversation, page.inbox.nameOf(conversation)));
    this.element = h("section", { class: "talk-view", "aria-label": page.inbox.nameOf(conversation) },
      h("header", { class: "talk-head" },
        iconButton("back", "Back to the list", () => { location.hash = "#/"; }, { class: "icon-button narrow-only" }),
        this.face, h("div", { class: "talk-title" }, this.name, this.line),
        iconButton("info", "Details", () => showDetails(page, this))),
      this.log.whole, this.typing, this.composer.element);
    this.element.addEventListener("problem", ({ detail }) => page.problem(detail));
    for (const event of ["about", "presence", "state"]) this.talk.addEventListener(event, () => this.#head());
    this.talk.addEventListener("typing", () => this.#typing());
    this.onLearned = () => { this.#head(); this.#typing(); };
    page.people.addEventListener("learned", this.onLearned);
    page.inbox.addEventListener("changed", this.onLearned);
  }

  start() {
    this.page.inbox.opened(this.talk);
    this.#head();
    this.talk.open();
    if (matchMedia("(min-width: 800px)").matches) this.composer.focus();
    else this.log.list.focus();
  }

  destroy() {
    this.page.people.removeEventListener("learned", this.onLearned);
    this.page.inbox.removeEventListener("changed", this.onLearned);
    this.page.inbox.opened(null);
    this.log.destroy();
    this.composer.destroy();
    this.talk.close();
  }

  #head() {
    const { inbox } = this.page;
    const { peer, kind } = this.conversation;
    const online = peer && (inbox.online(peer.user_id) || this.talk.presence.has(peer.user_id));
    put(this.name, inbox.nameOf(this.conversation));
    this.face.classList.toggle("online", Boolean(online));
    put(this.line, this.talk.state === "gone" ? this.talk.reason : peer ? (online ? "Online" : "Offline") : this.#company(kind));
  }

  #company(kind) {
    const count = this.talk.memberCount || this.conversation.member_count;
    const here = this.talk.presence.keys.length;
    const members = `${count} ${count === 1 ? "member" : "members"}`;
    return `${kind === "room" ? "Room" : "Group"} · ${members}${here > 1 ? ` · ${here} here now` : ""}`;
  }

  #typing() {
    const names = this.talk.typing.map((id) => this.page.people.name(id));
    put(this.typing, names.length === 0 ? "" : names.length === 1 ? `${names[0]} is typing…`
      : names.length === 2 ? `${names[0]} and ${names[1]} are typing…` : "Several people are typing…");
  }
}

// What is said by a screen reader is what has changed: the same text is not put again.
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
