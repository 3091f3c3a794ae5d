// Building elements, icons, and speaking to screen readers.
//
//   h(tag, attributes, ...children)   an element; strings become text nodes, never markup, so what people write
//                                     stays text. `on…` attributes are listeners, `class`, `hidden` and others as
//                                     in HTML; null and false leave an attribute, or a child, out
//   icon(name)                        a drawing of our own, hidden from screen readers
//   avatar(name, id)                  a person's or a room's initials, in a colour of theirs
//   announce(text, urgent)            has a screen reader say something
//   busy(button, work)                runs async `work` with the button disabled
//   field(label, attributes, hint)    a labelled input with room for an error; `.input`, `.fail(text)`

const SVG = "http://www.w3.org/2000/svg";
const PATHS = {
  plus: "M12 5v14M5 12h14",
  send: "M4 12l16-8-6 16-3-7z",
  back: "M15 5l-7 7 7 7",
  close: "M6 6l12 12M18 6L6 18",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zm5 12l4 4",
  people: "M9 11a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM2.5 20a6.5 6.5 0 0 1 13 0M16 4.5a3.5 3.5 0 0 1 0 6.5M18 14.5a6 6 0 0 1 3.5 5.5",
  hash: "M9 4L7 20M17 4l-2 16M4 9h16M4 15h16",
  attach: "M20 11l-8.5 8.5a5 5 0 0 1-7-7L13 4a3.4 3.4 0 0 1 4.8 4.8L9.500 17a1.700 1.700 0 0 1-2.400-2.400L14.500 7.200",
  smile: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM8.500 14.500a4.500 4.500 0 0 0 7 0M9 9.500v.5M15 9.500v.5",
  reply: "M9 7l-5 5 5 5M4 12h9a7 7 0 0 1 7 6",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  bin: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  flag: "M6 21V4h12l-3 4 3 4H6",
  info: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 11v6M12 7.500v.5",
  exit: "M14 4H6v16h8M11 12h10M17 8l4 4-4 4",
  file: "M7 3h7l5 5v13H7zM14 3v5h5",
  down: "M12 5v14M6 13l6 6 6-6",
  play: "M7 4l13 8-13 8z",
  pause: "M8 5v14M16 5v14",
  stop: "M6 6h12v12H6z",
  volume: "M4 9v6h4l5 4V5L8 9zM16.500 9a4 4 0 0 1 0 6M19 6.500a8 8 0 0 1 0 11",
  muted: "M4 9v6h4l5 4V5L8 9zM17 9.500l5 5M22 9.500l-5 5",
  headphones: "M4 17v-4a8 8 0 0 1 16 0v4M4 15h3v6H5.500A1.500 1.500 0 0 1 4 19.500zM20 15h-3v6h1.500a1.500 1.500 0 0 0 1.500-1.500z",
  microphone: "M12 3a3 3 0 0 0-3 3v5a3 3 0 0 0 6 0V6a3 3 0 0 0-3-3zM6 11a6 6 0 0 0 12 0M12 17v4",
  record: "M12 5a7 7 0 1 0 0 14 7 7 0 0 0 0-14z",
  link: "M10 14a4 4 0 0 0 5.700 0l3.500-3.500a4 4 0 0 0-5.700-5.700L12 6.300M14 10a4 4 0 0 0-5.700 0l-3.500 3.500a4 4 0 0 0 5.700 5.700l1.500-1.500",
  refresh: "M19 8a8 8 0 1 0 1 6M19 3v5h-5",
};

export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "value") made.value = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) {
    drawing.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  drawing.append(path);
  return drawing;
}

export function iconButton(name, label, onclick, attributes = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes },
    icon(name));
}

export function avatar(name, id) {
  const words = name.trim().split(/[\s._-]+/).filter(Boolean);
  const letters = words.length > 1 ? [...words[0]][0] + [...words.at(-1)][0] : [...(words[0] || "?")].slice(0, 2).join("");
  let hash = 0;
  for (const character of id) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  return h("span", { class: `avatar tint-${hash % 8}`, "aria-hidden": "true" }, letters.toUpperCase());
}

const live = { polite: null, assertive: null };

export function announce(text, urgent = false) {
  const manner = urgent ? "assertive" : "polite";
  if (!live[manner]) {
    live[manner] = h("div", { class: "sr-only", "aria-live": manner, role: urgent ? "alert" : "status" });
    document.body.append(live[manner]);
  }
  // The same text twice is said twice only when the node has changed in between.
  live[manner].textContent = "";
  setTimeout(() => { live[manner].textContent = text; }, 30);
}

export async function busy(button, work) {
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  try {
    return await work();
  } finally {
    button.disabled = false;
    button.removeAttribute("aria-busy");
  }
}

let fields = 0;

export function field(label, attributes = {}, hint = "") {
  const id = `field-${++fields}`;
  const input = h(attributes.rows ? "textarea" : "input", { id, autocomplete: "off", ...attributes });
  const told = h("p", { class: "hint", id: `${id}-hint` }, hint);
  input.setAttribute("aria-describedby", told.id);
  const whole = h("div", { class: "field" }, h("label", { for: id }, label), input, told);
  whole.input = input;
  whole.fail = (text) => {
    told.textContent = text || hint;
    told.classList.toggle("error", Boolean(text));
    input.setAttribute("aria-invalid", text ? "true" : "false");
  };
  return whole;
}
