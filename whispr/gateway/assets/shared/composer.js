// Where a message is written: Enter sends, Shift+Enter begins a line; files by button, paste and drop.
//
//   composer = new Composer({api}, talk)
//     .element · .focus() · .replyTo(message, name) · .destroy()

import { upload } from "./attachments.js";
import { announce, h, icon, iconButton } from "./dom.js";

const TEXT_MAX = 16_000;
const LINES_PX = 180;

export class Composer {
  #answering = null;

  constructor({ api }, talk) {
    Object.assign(this, { api, talk, draftKey: `whispr.draft.${talk.id}` });
    this.text = h("textarea", { rows: 1, placeholder: "Write a message", "aria-label": "Message", maxlength: TEXT_MAX,
      enterkeyhint: "send", value: sessionStorage.getItem(this.draftKey) || "" });
    this.files = h("input", { type: "file", multiple: true, hidden: true, tabindex: "-1", "aria-label": "Files" });
    this.answered = h("div", { class: "answering", hidden: true });
    this.progress = h("p", { class: "upload quiet", role: "status", hidden: true });
    this.element = h("form", { class: "composer" }, this.answered, this.progress,
      h("div", { class: "composer-row" },
        iconButton("attach", "Attach a file", () => this.files.click()),
        this.text, this.files,
        h("button", { type: "submit", class: "icon-button send", "aria-label": "Send", title: "Send" }, icon("send"))));
    this.element.addEventListener("submit", (event) => { event.preventDefault(); this.#send(); });
    this.text.addEventListener("keydown", (event) => this.#key(event));
    this.text.addEventListener("input", () => this.#typed());
    this.text.addEventListener("paste", (event) => this.#take(event, event.clipboardData.files));
    this.element.addEventListener("dragover", (event) => event.preventDefault());
    this.element.addEventListener("drop", (event) => this.#take(event, event.dataTransfer.files));
    this.files.addEventListener("change", () => { this.#attach([...this.files.files]); this.files.value = ""; });
    this.onState = () => this.#allow();
    talk.addEventListener("state", this.onState);
    this.#allow();
    queueMicrotask(() => this.#grow());
  }

  destroy() { this.talk.removeEventListener("state", this.onState); }
  focus() { this.text.focus(); }

  replyTo(message, name) {
    this.#answering = message;
    this.answered.hidden = !message;
    this.answered.replaceChildren();
    if (!message) return;
    this.answered.append(h("span", {}, "Replying to ", h("strong", {}, name), ` ${message.text || ""}`),
      iconButton("close", "Do not reply", () => { this.replyTo(null); this.focus(); }));
    this.focus();
  }

  #allow() {
    const gone = this.talk.state === "gone";
    for (const each of this.element.querySelectorAll("textarea, button")) each.disabled = gone;
    this.text.placeholder = gone ? this.talk.reason : "Write a message";
  }

  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.#send();
    } else if (event.key === "Escape" && this.#answering) this.replyTo(null);
  }

  #typed() {
    this.#grow();
    sessionStorage.setItem(this.draftKey, this.text.value);
    if (this.text.value.trim()) this.talk.startTyping();
    else this.talk.stopTyping();
  }

  #grow() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(LINES_PX, this.text.scrollHeight)}px`;
  }

  #send() {
    const text = this.text.value.trim();
    if (!text) return;
    this.talk.send(text, { replyTo: this.#answering?.id });
    this.text.value = "";
    sessionStorage.removeItem(this.draftKey);
    this.#grow();
    this.replyTo(null);
  }

  #take(event, files) {
    if (!files.length) return;
    event.preventDefault();
    this.#attach([...files]);
  }

  async #attach(files) {
    for (const file of files) {
      this.progress.hidden = false;
      this.progress.classList.remove("error");
      this.progress.textContent = `Sending ${file.name}…`;
      try {
        const attachment = await upload(this.api, file, this.talk.id, (share) => {
          this.progress.textContent = `Sending ${file.name}: ${Math.round(share * 100)} %`;
        });
        this.talk.send("", { attachment, type: "media", metadata: { media_type: attachment.media_type } });
        this.progress.hidden = true;
      } catch (error) {
        this.progress.textContent = `${file.name}: ${error.message}`;
        this.progress.classList.add("error");
        announce(this.progress.textContent, true);
      }
    }
  }
}
