// Beginning conversations: with a person, with several, in a room that is there, or in a new one.

import { openDialog, tabs } from "../shared/dialog.js";
import { announce, avatar, busy, field, h, icon } from "../shared/dom.js";

const PAUSE_MS = 200;

// A field that finds people, and a list of those found; `onChoose` is given a profile.
export function peopleFinder(page, label, onChoose) {
  const search = field(label, { type: "search", autocapitalize: "none", spellcheck: "false" }, "By the beginning of their user name.");
  const found = h("ul", { class: "people", "aria-label": "People found" });
  const none = h("p", { class: "quiet", role: "status" });
  let timer = 0;
  let asked = 0;
  search.input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const text = search.input.value.trim();
      const number = ++asked;
      try {
        const users = text ? (await page.people.search(text)).filter((user) => user.id !== page.session.user.id) : [];
        if (number !== asked) return;
        found.replaceChildren(...users.map((user) => personRow(user, onChoose)));
        none.textContent = text && !users.length ? `Nobody found for “${text}”.` : "";
      } catch (error) {
        search.fail(error.message);
      }
    }, PAUSE_MS);
  });
  return h("div", {}, search, none, found);
}

function personRow(user, onChoose) {
  return h("li", {}, h("button", { type: "button", class: "person", onclick: () => onChoose(user) },
    avatar(user.display_name, user.id), h("span", {}, h("strong", {}, user.display_name), h("span", { class: "quiet" }, `@${user.username}`))));
}

export function writeToSomebody(page) {
  const dialog = openDialog("New conversation", tabs("Kind of conversation", {
    "One person": peopleFinder(page, "Who do you want to write to?", (user) => begin([user])),
    "A group": groupForm(page, () => dialog),
  }));
  const begin = async ([user]) => {
    try {
      const { conversation } = await page.api.post("/v1/conversations", { kind: "direct", member_ids: [user.id] });
      dialog.close();
      page.inbox.later();
      page.open(conversation);
    } catch (error) {
      page.problem(error.message);
    }
  };
}

function groupForm(page, dialog) {
  const chosen = new Map();
  const name = field("Name of the group", { maxlength: 100, required: true });
  const list = h("ul", { class: "chips", "aria-label": "People in the group" });
  const create = h("button", { type: "submit", class: "primary" }, "Create group");
  const draw = () => list.replaceChildren(...[...chosen.values()].map((user) => h("li", {},
    h("button", { type: "button", "aria-label": `Remove ${user.display_name}`, onclick: () => { chosen.delete(user.id); draw(); } },
      user.display_name, icon("close")))));
  const finder = peopleFinder(page, "Who is in it?", (user) => {
    chosen.set(user.id, user);
    draw();
    announce(`${user.display_name} added.`);
  });
  return h("form", { onsubmit: async (event) => {
    event.preventDefault();
    if (!chosen.size) return page.problem("Choose somebody for the group.");
    try {
      const asked = { kind: "group", name: name.input.value.trim(), member_ids: [...chosen.keys()] };
      const { conversation } = await busy(create, () => page.api.post("/v1/conversations", asked));
      dialog().close();
      page.inbox.later();
      page.open(conversation);
    } catch (error) {
      name.fail(error.message);
    }
    return undefined;
  } }, name, list, finder, h("div", { class: "actions" }, create));
}

export function browseRooms(page) {
  const dialog = openDialog("Rooms", tabs("Rooms", { Browse: roomFinder(page, () => dialog), "New room": roomForm(page, () => dialog) }));
}

function roomFinder(page, dialog) {
  const search = field("Find a room", { type: "search" }, "By the beginning of its name.");
  const list = h("ul", { class: "rooms", "aria-label": "Rooms found" });
  const none = h("p", { class: "quiet", role: "status" });
  const ask = async () => {
    try {
      const { rooms } = await page.api.get("/v1/rooms", { query: search.input.value.trim(), limit: 50 });
      list.replaceChildren(...rooms.map((room) => roomRow(page, room, dialog)));
      none.textContent = rooms.length ? "" : "There is no such room yet. You can open it.";
    } catch (error) {
      search.fail(error.message);
    }
  };
  let timer = 0;
  search.input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, PAUSE_MS); });
  ask();
  return h("div", {}, search, none, list);
}

function roomRow(page, room, dialog) {
  const inside = Boolean(room.role);
  const button = h("button", { type: "button", class: inside ? "quiet" : "primary", "aria-label": `${inside ? "Open" : "Join"} ${room.name}`,
    onclick: async () => {
      try {
        if (!inside) await busy(button, () => page.api.post(`/v1/rooms/${room.id}/join`));
        dialog().close();
        page.inbox.later();
        page.open({ id: room.id, kind: "room" });
      } catch (error) {
        page.problem(error.message);
      }
    } }, inside ? "Open" : "Join");
  return h("li", {}, h("span", { class: "avatar square", "aria-hidden": "true" }, icon("hash")),
    h("div", { class: "room-about" }, h("strong", {}, room.name), h("span", { class: "quiet" },
      `${room.member_count} ${room.member_count === 1 ? "member" : "members"}${room.online_count ? ` · ${room.online_count} here now` : ""}`),
    room.description ? h("p", {}, room.description) : null), button);
}

function roomForm(page, dialog) {
  const name = field("Name", { maxlength: 100, required: true });
  const about = field("What it is about", { rows: 3, maxlength: 1000 });
  const isPrivate = h("input", { type: "checkbox", id: "room-private" });
  const create = h("button", { type: "submit", class: "primary" }, "Open room");
  return h("form", { onsubmit: async (event) => {
    event.preventDefault();
    const asked = { name: name.input.value.trim(), description: about.input.value.trim(), type: isPrivate.checked ? "PRIVATE" : "PUBLIC" };
    try {
      const { room } = await busy(create, () => page.api.post("/v1/rooms", asked));
      dialog().close();
      page.inbox.later();
      page.open({ id: room.id, kind: "room" });
    } catch (error) {
      (error.fields?.description ? about : name).fail(error.message);
    }
  } }, name, about,
  h("div", { class: "check" }, isPrivate, h("label", { for: "room-private" }, "By invitation only")), h("div", { class: "actions" }, create));
}
