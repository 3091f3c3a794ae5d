// The form by which people sign in, and sign up where that is offered.
//
//   signIn(session, {title, lead, offersSignUp, remembers, footer})   an element; the session tells of success

import { announce, busy, field, h } from "./dom.js";

export function signIn(session, { title, lead, offersSignUp = false, remembers = false, footer = null }) {
  const heading = h("h1", {}, title);
  const username = field("User name", { name: "username", autocomplete: "username", autocapitalize: "none",
    spellcheck: "false", required: true, maxlength: 32 });
  const display = field("Display name", { name: "display", autocomplete: "name", maxlength: 64 }, "What others see. You can leave it empty.");
  const password = field("Password", { name: "password", type: "password", required: true });
  const remember = h("input", { type: "checkbox", id: "remember" });
  const problem = h("p", { class: "error", role: "alert" });
  const submit = h("button", { type: "submit", class: "primary wide" });
  const other = h("button", { type: "button", class: "link" });
  const form = h("form", { class: "signin-form" }, username, display, password,
    remembers ? h("div", { class: "check" }, remember, h("label", { for: "remember" }, "Stay signed in on this device")) : null,
    problem, submit, offersSignUp ? h("p", { class: "centred" }, other) : null);
  let signingUp = false;

  const show = (up) => {
    signingUp = up;
    display.hidden = !up;
    submit.textContent = up ? "Create account" : "Sign in";
    other.textContent = up ? "I have an account" : "Create an account";
    password.input.autocomplete = up ? "new-password" : "current-password";
    for (const each of [username, display, password]) each.fail("");
    username.fail("");
    problem.textContent = "";
  };

  other.addEventListener("click", () => { show(!signingUp); username.input.focus(); });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.textContent = "";
    for (const each of [username, display, password]) each.fail("");
    const [name, secret] = [username.input.value.trim(), password.input.value];
    try {
      await busy(submit, () => signingUp ? session.signUp(name, secret, display.input.value.trim(), remember.checked)
        : session.signIn(name, secret, remember.checked));
    } catch (error) {
      const places = { username, display_name: display, password };
      const found = Object.entries(error.fields || {}).filter(([name]) => places[name]);
      for (const [name, text] of found) places[name].fail(text);
      if (found.length) places[found[0][0]].input.focus();
      else problem.textContent = error.message;
      if (found.length) announce(error.message, true);
    }
  });
  show(false);
  queueMicrotask(() => username.input.focus());
  return h("main", { class: "signin" },
    h("div", { class: "card" }, h("img", { src: "/assets/icon.svg", alt: "", width: 48, height: 48 }), heading, h("p", { class: "quiet" }, lead), form),
    footer);
}
