// Accounts: found by the beginning of their user name, with their sessions, which can be ended.

import { confirmed } from "../shared/dialog.js";
import { avatar, field, h } from "../shared/dom.js";
import { ago, full } from "../shared/time.js";
import { status, table } from "./parts.js";

const PAUSE_MS = 200;

export class People {
  #asked = 0;

  constructor(console) {
    this.console = console;
    this.search = field("Find an account", { type: "search", autocapitalize: "none", spellcheck: "false" }, "By the beginning of the user name.");
    this.found = h("ul", { class: "people", "aria-label": "Accounts found" });
    this.none = h("p", { class: "quiet", role: "status" });
    this.account = h("section", { class: "account", "aria-live": "polite" });
    this.element = h("div", { class: "two" }, h("section", {}, this.search, this.none, this.found), this.account);
    let timer = 0;
    this.search.input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.#find(), PAUSE_MS);
    });
  }

  start() { this.search.input.focus(); }
  stop() { this.#asked = -1; }

  async #find() {
    const query = this.search.input.value.trim();
    const number = ++this.#asked;
    const page = query ? await this.console.attempt(() => this.console.api.get("/v1/users", { query, page_size: 20 })) : { users: [] };
    if (!page || number !== this.#asked) return;
    this.none.textContent = query && !page.users.length ? "No such account." : "";
    this.found.replaceChildren(...page.users.map((user) => h("li", {}, h("button", { type: "button", class: "person", onclick: () => this.#show(user.id) },
      avatar(user.display_name, user.id), h("span", {}, h("strong", {}, user.display_name), h("span", { class: "quiet" }, `@${user.username}`))))));
  }

  async #show(id) {
    const { api } = this.console;
    const found = await this.console.attempt(() => Promise.all([api.get(`/v1/auth/users/${id}`), api.get("/v1/auth/sessions", { user_id: id })]));
    if (!found) return;
    const [{ user }, { sessions }] = found;
    this.account.replaceChildren(
      h("header", { class: "account-head" }, avatar(user.display_name, user.id),
        h("div", { class: "who" }, h("h2", {}, user.display_name), h("span", { class: "quiet" }, `@${user.username} · ${user.email || "no e-mail address"}`)),
        h("span", { class: "tag" }, user.role), user.is_active ? null : status("closed account")),
      h("p", { class: "quiet" }, `Signed up ${full(new Date(user.created_at))}. `, h("code", {}, user.id)),
      h("h3", {}, "Sessions"),
      table("Sessions", ["Device", "Address", "Signed in", "Last seen", "Actions"], sessions.map((session) => [session.device || "unnamed", session.address || "–",
        moment(session.created_at), moment(session.last_seen_at),
        h("button", { type: "button", class: "small danger", "aria-label": `End the session on ${session.device || "an unnamed device"}`,
          onclick: () => this.#end(user, [session]) }, "End")]), "None: nobody is signed in to it."),
      h("div", { class: "actions" },
        sessions.length > 1 ? h("button", { type: "button", class: "danger", onclick: () => this.#end(user, sessions) }, "End all sessions") : null,
        user.is_active ? h("button", { type: "button", class: "danger", onclick: () => this.#close(user) }, "Close account")
          : h("button", { type: "button", onclick: () => this.#act(() => api.post(`/v1/auth/users/${user.id}/reactivate`), user) }, "Open account")));
  }

  async #end(user, sessions) {
    const text = "Its tokens are refused from then on, and its sockets are closed.";
    const title = sessions.length > 1 ? `End ${sessions.length} sessions of ${user.username}?` : `End this session of ${user.username}?`;
    if (!(await confirmed(title, text, "End"))) return;
    await this.#act(async () => {
      for (const { session_id: id } of sessions) await this.console.api.delete(`/v1/auth/sessions/${id}?user_id=${user.id}`);
    }, user);
  }

  async #close(user) {
    if (!(await confirmed(`Close the account of ${user.username}?`, "They are signed out and cannot sign in. Nothing is deleted; you can open it again.", "Close"))) return;
    await this.#act(() => this.console.api.post(`/v1/auth/users/${user.id}/deactivate`), user);
  }

  async #act(work, user) {
    await this.console.attempt(async () => { await work(); this.console.say("Done."); });
    await this.#show(user.id);
  }
}

function moment(text) {
  const at = new Date(text);
  return h("time", { datetime: text, title: full(at) }, ago(at));
}
