// The chat page: signs people in, then shows their conversations and the one that the address names.
//
// Addresses: #/ the list, #/c/<id> a conversation, #/room/<id> a room, which whoever follows the link may join.

import { Api, Session } from "../shared/api.js";
import { announce, h } from "../shared/dom.js";
import { Outbox } from "../shared/outbox.js";
import { People } from "../shared/people.js";
import { signIn } from "../shared/signin.js";
import { Socket } from "../shared/socket.js";
import { Inbox } from "./inbox.js";
import { roomGate } from "./gate.js";
import { Sidebar } from "./sidebar.js";
import { TalkView } from "./talk-view.js";

const root = document.getElementById("root");
const session = new Session("chat");
let page = null;

function footer() {
  const link = (href, text) => h("a", { href }, text);
  return h("footer", { class: "site-footer" },
    h("p", {}, "This server runs ", h("strong", {}, "Whispr"), ", a backend for chat, presence and live audio."),
    h("nav", { "aria-label": "About this server" },
      link("/docs", "REST API"), link("/openapi.json", "OpenAPI document"), link("/.well-known/jwks.json", "Token keys"),
      link("/console", "Console"), link("/readyz", "Is it ready?"), link("/metrics", "Metrics")));
}

class Page {
  constructor() {
    this.api = new Api(session);
    this.session = session;
    this.people = new People(this.api);
    this.people.learn(session.user);
    this.outbox = new Outbox(session, this.api);
    this.socket = new Socket(session);
    this.inbox = new Inbox(this);
    this.view = null;
    this.status = h("p", { class: "connection", role: "status", hidden: true });
    this.sidebar = new Sidebar(this, footer());
    this.main = h("main", { id: "main", class: "main", tabindex: "-1" });
    this.element = h("div", { class: "app" },
      h("a", { href: "#main", class: "skip", onclick: (event) => { event.preventDefault(); this.main.focus(); } }, "Skip to the conversation"),
      this.sidebar.element, this.main, this.status);
    this.socket.addEventListener("state", () => this.#connection());
    this.inbox.addEventListener("changed", () => this.#title());
    this.onHash = () => this.route();
    window.addEventListener("hashchange", this.onHash);
  }

  start() {
    root.replaceChildren(this.element);
    this.socket.connect();
    this.inbox.start();
    this.route();
  }

  end() {
    window.removeEventListener("hashchange", this.onHash);
    this.view?.destroy();
    this.socket.disconnect();
    document.title = "Whispr";
  }

  // Shows what the address says. Whoever followed a link to a room that they are not in is asked first.
  async route() {
    const [, kind, id] = location.hash.match(/^#\/(c|room)\/([0-9a-f-]{36})$/) || [];
    if (this.view?.id === id && id) return;
    this.view?.destroy();
    this.view = null;
    this.element.classList.toggle("in-talk", Boolean(id));
    this.sidebar.current(id);
    if (!id) return this.#empty();
    this.main.replaceChildren(h("p", { class: "empty quiet", role: "status" }, "Loading…"));
    const conversation = await this.inbox.find(id).catch(() => null);
    if (!location.hash.endsWith(id)) return;
    if (!conversation && kind === "room") return this.main.replaceChildren(await roomGate(this, id));
    if (!conversation) return this.#empty("There is no such conversation, or you are not in it.");
    this.view = new TalkView(this, conversation);
    this.main.replaceChildren(this.view.element);
    this.view.start();
    this.#title();
  }

  open(conversation) {
    const kind = conversation.kind === "room" ? "room" : "c";
    location.hash = `#/${kind}/${conversation.id}`;
  }

  problem(text) {
    announce(text, true);
    const toast = h("p", { class: "toast" }, text);
    this.element.append(toast);
    setTimeout(() => toast.remove(), 6000);
  }

  #empty(text = "Choose a conversation, or begin one.") {
    this.main.replaceChildren(h("div", { class: "empty" },
      h("img", { src: "/assets/icon.svg", alt: "", width: 72, height: 72 }), h("h1", {}, "Whispr"), h("p", { class: "quiet" }, text),
      h("div", { class: "actions centred" },
        h("button", { type: "button", class: "primary", onclick: () => this.sidebar.write() }, "Write to somebody"),
        h("button", { type: "button", onclick: () => this.sidebar.browse() }, "Browse rooms"))));
    this.#title();
  }

  #connection() {
    const { state } = this.socket;
    clearTimeout(this.waiting);
    if (state === "online") {
      if (!this.status.hidden) announce("Connected again.");
      this.status.hidden = true;
      this.outbox.flush();
      return;
    }
    // Not at once: a connection that is back within a moment is not worth a word.
    this.waiting = setTimeout(() => {
      this.status.hidden = false;
      this.status.textContent = navigator.onLine === false ? "You are offline. What you write is sent when you are back."
        : "Connecting… What you write is sent when the server is back.";
    }, 700);
  }

  #title() {
    const { unread } = this.inbox;
    const name = this.view ? this.inbox.nameOf(this.view.conversation) : "Whispr";
    document.title = `${unread ? `(${unread}) ` : ""}${name}${this.view ? " · Whispr" : ""}`;
  }
}

function show(why) {
  page?.end();
  page = null;
  if (session.signedIn) {
    page = new Page();
    page.start();
    return;
  }
  root.replaceChildren(signIn(session, {
    title: "Welcome to Whispr",
    lead: why === "expired" ? "Your session has ended. Please sign in again." : "Sign in, or create an account, and talk.",
    offersSignUp: true,
    remembers: true,
    footer: footer(),
  }));
}

session.addEventListener("changed", ({ detail }) => show(detail));
show();
