// The page /live/: goes live from this browser.

import { announce, h, icon } from "../shared/dom.js";
import { OnAir } from "./on-air.js";
import { Recordings } from "./recordings.js";
import { Setup } from "./setup.js";
import { Shell } from "./shell.js";
import { SoundSource } from "./sound-source.js";

const MAY = new Set(["premium", "admin"]);

class Live {
  constructor(shell) {
    this.shell = shell;
    this.element = h("main", { id: "main", class: "live", tabindex: "-1" });
    if (!shell.session.signedIn) {
      this.#explain("Go live", "Sign in to send sound from this browser to whoever listens.",
        h("button", { type: "button", class: "primary", onclick: () => shell.askToSignIn("Go live", "Sign in with an account that may stream.") }, "Sign in"));
      return;
    }
    if (!MAY.has(shell.user.role)) {
      this.#explain("Your account may not stream yet",
        `Going live needs the permission stream:write, which premium accounts and administrators have. Your role here is “${shell.user.role}”. An administrator of this server can give you another; sign in again then.`,
        h("a", { class: "button", href: "/listen/" }, "Listen to others"));
      return;
    }
    this.source = new SoundSource();
    this.recordings = new Recordings(shell);
    this.part = h("div", {});
    this.said = h("p", { class: "notice", role: "status", hidden: true });
    this.element.append(this.said, this.part, this.recordings.element);
    this.#prepare();
  }

  destroy() {
    this.view?.destroy();
    this.recordings?.destroy();
    this.source?.close();
  }

  #explain(title, text, action) {
    this.element.append(h("div", { class: "empty" }, h("span", { class: "avatar square large", "aria-hidden": "true" }, icon("microphone")),
      h("h1", {}, title), h("p", { class: "quiet" }, text), action));
  }

  #prepare(said = "") {
    this.view?.destroy();
    this.source.release();
    this.said.hidden = !said;
    this.said.textContent = said;
    this.view = new Setup(this.shell, this.source, (stream, key, ingest) => this.#begin(stream, key, ingest));
    this.part.replaceChildren(this.view.element);
  }

  #begin(stream, key, ingest) {
    this.view.destroy();
    this.said.hidden = true;
    const onEnd = (text) => {
      if (this.view !== air) return;
      this.#prepare(text);
      this.recordings.refresh();
      announce(text);
    };
    const air = this.view = new OnAir(this.shell, stream, { key, ingest, source: this.source, recordings: this.recordings, onEnd });
    this.part.replaceChildren(air.element);
    announce("You are live.");
  }
}

new Shell("/live/", (shell) => new Live(shell)).begin();
