// The operator's console: for administrators, who sign in with their account. Its tokens stay in this tab.
//
// A section is a class with `.element`, `.start()` and `.stop()`, made with the console, which has `.api`,
// `.workers` (their names), `.attempt(work)` (tells of what fails) and `.say(text)`.

import { Api, Session } from "../shared/api.js";
import { announce, h, iconButton } from "../shared/dom.js";
import { signIn } from "../shared/signin.js";
import { Events } from "./events.js";
import { Moderation } from "./moderation.js";
import { Overview } from "./overview.js";
import { People } from "./people.js";
import { Realtime } from "./realtime.js";
import { Tasks } from "./tasks.js";

const SECTIONS = {
  overview: ["Overview", Overview],
  realtime: ["Real time", Realtime],
  events: ["Events", Events],
  people: ["People", People],
  moderation: ["Moderation", Moderation],
  tasks: ["Tasks", Tasks],
};

const root = document.getElementById("root");
const session = new Session("console");
let shown = null;

class Console {
  constructor(workers) {
    this.api = new Api(session);
    this.workers = workers;
    this.section = null;
    this.away = h("p", { class: "away error", role: "status", hidden: true });
    this.links = Object.entries(SECTIONS).map(([name, [title]]) => h("a", { href: `#/${name}`, "data-name": name }, title));
    this.main = h("main", { id: "main", tabindex: "-1" });
    this.element = h("div", { class: "console" },
      h("header", { class: "top" },
        h("a", { class: "brand", href: "/" }, h("img", { src: "/assets/icon.svg", alt: "", width: 28, height: 28 }), h("span", {}, "Whispr console")),
        h("nav", { class: "sections", "aria-label": "Sections" }, this.links),
        h("span", { class: "quiet signed-in" }, session.user.username), iconButton("exit", "Sign out", () => session.signOut())),
      this.away, this.main);
    this.onHash = () => this.route();
    window.addEventListener("hashchange", this.onHash);
  }

  route() {
    const name = location.hash.slice(2).split("/")[0];
    const [title, Section] = SECTIONS[name] || SECTIONS.overview;
    this.section?.stop();
    for (const link of this.links) {
      const here = link.textContent === title;
      if (here) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
      if (here) link.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    document.title = `${title} · Whispr console`;
    this.section = new Section(this);
    this.main.replaceChildren(h("h1", {}, title), this.section.element);
    this.section.start();
  }

  end() {
    window.removeEventListener("hashchange", this.onHash);
    this.section?.stop();
  }

  // Runs what asks the server; what fails is told, and what fails while the server is away is told until it is back.
  async attempt(work) {
    try {
      const done = await work();
      this.away.hidden = true;
      return done;
    } catch (error) {
      if (error.retryable || error.status === undefined) {
        this.away.hidden = false;
        this.away.textContent = `${error.message} Trying again…`;
      } else if (session.signedIn) this.say(error.message);
      return undefined;
    }
  }

  say(text) {
    announce(text, true);
    const toast = h("p", { class: "toast" }, text);
    this.element.append(toast);
    setTimeout(() => toast.remove(), 6000);
  }
}

async function show(why) {
  shown?.end();
  shown = null;
  if (!session.signedIn) {
    const lead = why === "refused" ? "That account is no administrator's. `whispr account promote` makes it one."
      : "For administrators. Your session stays in this tab.";
    root.replaceChildren(signIn(session, { title: "Whispr console", lead, footer: h("p", { class: "site-footer" }, h("a", { href: "/" }, "To the chat page")) }));
    return;
  }
  try {
    const { workers } = await new Api(session).get("/v1/operations/workers");
    shown = new Console(workers.map((each) => each.worker));
    root.replaceChildren(shown.element);
    shown.route();
  } catch (error) {
    if (error.status === 403) {
      await session.signOut();
      show("refused");
    } else if (session.signedIn) {
      root.replaceChildren(h("main", { class: "signin" }, h("p", { role: "alert" }, error.message)));
      setTimeout(show, 2000);
    }
  }
}

session.addEventListener("changed", ({ detail }) => show(detail));
show();
