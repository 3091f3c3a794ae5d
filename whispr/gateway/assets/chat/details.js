// About a conversation: who is in it, its address, and what one may change.

import { confirmed, openDialog } from "../shared/dialog.js";
import { avatar, busy, field, h, icon } from "../shared/dom.js";
import { peopleFinder } from "./starting.js";

const ABOVE = ["owner", "admin", "moderator"];

export function showDetails(page, view) {
  const { conversation, talk } = view;
  const { kind } = conversation;
  const close = () => dialog.close();
  const parts = [];
  if (kind === "room") parts.push(address(page, conversation));
  if (kind === "direct") parts.push(personParts(page, conversation, close));
  else parts.push(members(page, talk));
  if (kind === "group" && ABOVE.includes(talk.role)) parts.push(adding(page, conversation));
  if (kind === "room") parts.push(inviting(page, conversation));
  if (kind !== "direct") parts.push(leaving(page, conversation, close));
  const dialog = openDialog(page.inbox.nameOf(conversation), ...parts);
}

function address(page, { id }) {
  const link = `${location.origin}/#/room/${id}`;
  const shown = field("Its address", { readonly: true, value: link }, "Whoever opens it may join, if the room lets them.");
  shown.input.addEventListener("focus", () => shown.input.select());
  return shown;
}

function members(page, talk) {
  const rows = [...talk.members.values()].map((member) => h("li", {},
    h("span", { class: `portrait${talk.presence.has(member.user_id) ? " online" : ""}` }, avatar(page.people.name(member.user_id), member.user_id)),
    h("span", { class: "who" }, h("strong", {}, page.people.name(member.user_id), member.user_id === page.session.user.id ? " (you)" : ""),
      h("span", { class: "quiet" }, `@${page.people.username(member.user_id)}`)),
    member.role === "member" ? null : h("span", { class: "tag" }, member.role)));
  const more = talk.memberCount > rows.length ? h("p", { class: "quiet" }, `and ${talk.memberCount - rows.length} more`) : null;
  return h("section", {}, h("h3", {}, "Members"), h("ul", { class: "people" }, rows), more);
}

function personParts(page, { peer }, close) {
  const block = h("button", { type: "button", class: "danger", onclick: async () => {
    const name = page.people.name(peer.user_id);
    if (!(await confirmed(`Block ${name}?`, "Neither of you can write to the other until you unblock them.", "Block"))) return;
    try {
      await busy(block, () => page.api.put(`/v1/users/${peer.user_id}/block`));
      close();
    } catch (error) {
      page.problem(error.message);
    }
  } }, "Block");
  return h("section", {}, h("p", { class: "quiet" }, `@${page.people.username(peer.user_id)}`), h("div", { class: "actions" }, block));
}

function adding(page, { id }) {
  const add = async (user) => {
    try {
      await page.api.post(`/v1/conversations/${id}/members`, { user_ids: [user.id] });
      page.problem(`${user.display_name} was added.`);
    } catch (error) {
      page.problem(error.message);
    }
  };
  return h("details", {}, h("summary", {}, icon("people"), "Add somebody"), peopleFinder(page, "Who?", add));
}

function inviting(page, { id }) {
  const invite = async (user) => {
    try {
      await page.api.post(`/v1/rooms/${id}/invitations`, { user_id: user.id });
      page.problem(`${user.display_name} was invited.`);
    } catch (error) {
      page.problem(error.message);
    }
  };
  return h("details", {}, h("summary", {}, icon("people"), "Invite somebody"), peopleFinder(page, "Who?", invite));
}

function leaving(page, { id, kind }, close) {
  const leave = async () => {
    if (!(await confirmed("Leave?", "You will not get its messages any more.", "Leave"))) return;
    try {
      if (kind === "room") await page.api.post(`/v1/rooms/${id}/leave`);
      else await page.api.delete(`/v1/conversations/${id}/members/me`);
      close();
      page.inbox.later();
      location.hash = "#/";
    } catch (error) {
      page.problem(error.message);
    }
  };
  return h("div", { class: "actions" }, h("button", { type: "button", class: "danger", onclick: leave }, icon("exit"), kind === "room" ? "Leave room" : "Leave group"));
}
