// What the pages of live audio share: their head, who is signed in, and words that pass.
//
//   shell = new Shell(here, makeView)   `here` is the link that is this page's; `makeView(shell)` makes {element, destroy()}
//     .begin()                          shows it, and anew whenever somebody signs in or out
//     .session .api .people .socket .outbox   as on the chat page; the last three are null for who is not signed in
//     .problem(text) · .askToSignIn(title, lead) · .resumes   whether one has just come back from signing in

import { Api, Session } from "../shared/api.js";
import { announce, h, iconButton } from "../shared/dom.js";
import { Outbox } from "../shared/outbox.js";
import { People } from "../shared/people.js";
import { signIn } from "../shared/signin.js";
import { Socket } from "../shared/socket.js";

const LINKS = [["/", "Messages"], ["/listen/", "Listen"], ["/live/", "Go live"]];
const SHOWN_MS = 6000;

export class Shell {
  #root = document.getElementById("root");
  #view = null;
  people = null;
  socket = null;
  outbox = null;
  resumes = false;

  constructor(here, makeView) {
    Object.assign(this, { here, makeView, session: new Session("chat") });
    this.api = new Api(this.session);
    this.session.addEventListener("changed", ({ detail }) => {
      this.resumes = detail === "signed in";
      this.begin();
    });
  }

  get user() { return this.session.user; }

  begin() {
    this.#view?.destroy();
    this.socket?.disconnect();
    [this.people, this.socket, this.outbox] = [null, null, null];
    if (this.session.signedIn) {
      this.people = new People(this.api);
      this.people.learn(this.user);
      this.outbox = new Outbox(this.session, this.api);
      this.socket = new Socket(this.session);
      this.socket.addEventListener("state", ({ detail }) => { if (detail === "online") this.outbox?.flush(); });
      this.socket.connect();
    }
    this.#view = this.makeView(this);
    this.#root.replaceChildren(h("div", { class: "site" },
      h("a", { href: "#main", class: "skip", onclick: (event) => { event.preventDefault(); document.getElementById("main").focus(); } }, "Skip to the page"),
      this.#head(), this.#view.element));
    this.resumes = false;
  }

  askToSignIn(title, lead) {
    const back = h("button", { type: "button", class: "link", onclick: () => this.begin() }, "Go back without signing in");
    this.#view?.destroy();
    this.#view = null;
    this.#root.replaceChildren(signIn(this.session, {
      title, lead, offersSignUp: true, remembers: true, footer: h("footer", { class: "site-footer" }, back),
    }));
  }

  problem(text) {
    announce(text, true);
    const toast = h("p", { class: "toast" }, text);
    document.body.append(toast);
    setTimeout(() => toast.remove(), SHOWN_MS);
  }

  #head() {
    const links = LINKS.map(([href, text]) => h("a", { href, "aria-current": href === this.here ? "page" : null }, text));
    const who = this.session.signedIn
      ? [h("span", { class: "quiet who-am-i" }, this.user.display_name), iconButton("exit", "Sign out", () => this.session.signOut())]
      : [h("button", { type: "button", class: "small", onclick: () => this.askToSignIn("Welcome to Whispr", "Sign in, or create an account.") }, "Sign in")];
    return h("header", { class: "site-head" },
      h("a", { href: "/", class: "home", "aria-label": "Whispr" }, h("img", { src: "/assets/icon.svg", alt: "", width: 28, height: 28 })),
      h("nav", { "aria-label": "Pages" }, links), ...who);
  }
}
