// Dialogs, on the browser's own <dialog>: it keeps the focus inside, closes on Escape, and gives the focus back.
//
//   openDialog(title, ...content)                 shows it and returns it; `.close()` closes it
//   confirmed(title, text, action)                resolves to whether the person agreed
//   tabs(label, {name: content})                  panels with tabs, moved through by the arrow keys

import { h, iconButton } from "./dom.js";

let dialogs = 0;

export function openDialog(title, ...content) {
  const id = `dialog-${++dialogs}`;
  const dialog = h("dialog", { "aria-labelledby": id, class: "dialog" },
    h("header", {}, h("h2", { id }, title), iconButton("close", "Close", () => dialog.close())),
    h("div", { class: "dialog-body" }, ...content));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  dialog.showModal();
  dialog.querySelector("input, textarea, select, .primary")?.focus();
  return dialog;
}

export function confirmed(title, text, action) {
  return new Promise((resolve) => {
    let agreed = false;
    const dialog = openDialog(title, h("p", {}, text), h("div", { class: "actions" },
      h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel"),
      h("button", { type: "button", class: "danger primary", onclick: () => { agreed = true; dialog.close(); } }, action)));
    dialog.addEventListener("close", () => resolve(agreed));
  });
}

export function tabs(label, panels) {
  const names = Object.keys(panels);
  const list = h("div", { class: "tabs", role: "tablist", "aria-label": label });
  const whole = h("div", { class: "tabbed" }, list);
  const prefix = `tabs-${++dialogs}`;
  const select = (chosen, focus = false) => names.forEach((name, index) => {
    const on = index === chosen;
    list.children[index].setAttribute("aria-selected", String(on));
    list.children[index].tabIndex = on ? 0 : -1;
    panels[name].hidden = !on;
    if (on && focus) list.children[index].focus();
  });
  names.forEach((name, index) => {
    const tab = h("button", { type: "button", role: "tab", id: `${prefix}-${index}`, "aria-controls": `${prefix}-p${index}`,
      onclick: () => select(index) }, name);
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) select((index + step + names.length) % names.length, true);
    });
    list.append(tab);
    Object.entries({ role: "tabpanel", id: `${prefix}-p${index}`, "aria-labelledby": `${prefix}-${index}` })
      .forEach(([key, value]) => panels[name].setAttribute(key, value));
    whole.append(panels[name]);
  });
  select(0);
  return whole;
}
