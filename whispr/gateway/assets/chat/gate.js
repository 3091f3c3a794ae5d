// What somebody sees who follows a link to a room that they are not in.

import { busy, h, icon } from "../shared/dom.js";

export async function roomGate(page, id) {
  let room;
  try {
    ({ room } = await page.api.get(`/v1/rooms/${id}`));
  } catch (error) {
    return h("div", { class: "empty" }, h("h1", {}, "No such room"), h("p", { class: "quiet" }, error.message));
  }
  const problem = h("p", { class: "error", role: "alert" });
  const join = h("button", { type: "button", class: "primary", onclick: async () => {
    try {
      await busy(join, () => page.api.post(`/v1/rooms/${id}/join`));
      page.inbox.later();
      page.route();
    } catch (error) {
      problem.textContent = error.message;
    }
  } }, "Join this room");
  queueMicrotask(() => join.focus());
  return h("div", { class: "empty" }, h("span", { class: "avatar square large", "aria-hidden": "true" }, icon("hash")),
    h("h1", {}, room.name), h("p", {}, room.description),
    h("p", { class: "quiet" }, `${room.member_count} ${room.member_count === 1 ? "member" : "members"}`), problem, join);
}
