// How streams are worded.
//
//   CATEGORIES, QUALITIES, VISIBILITIES: [value, words] · wordOf(list, value) · listeners(count) · playing(metadata)
//   stateOf(stream, hasSource): [words, manner] · clockOf(seconds) 1:02:03 · refusal({reason, message})

import { number } from "../shared/time.js";

export const CATEGORIES = [["MUSIC", "Music"], ["TALK", "Talk"], ["PODCAST", "Podcast"], ["GAMING", "Gaming"], ["NEWS", "News"],
  ["EDUCATION", "Education"], ["ENTERTAINMENT", "Entertainment"], ["OTHER", "Other"]];
export const QUALITIES = [["AUTO", "Automatic"], ["LOW", "Low · 64 kbit/s"], ["MEDIUM", "Medium · 128 kbit/s"],
  ["HIGH", "High · 256 kbit/s"], ["ULTRA", "Ultra · 320 kbit/s"]];
export const VISIBILITIES = [["PUBLIC_STREAM", "Everybody, and it is listed"], ["UNLISTED", "Whoever has the link"],
  ["PRIVATE_STREAM", "Only whom I invite"], ["PREMIUM_ONLY", "Premium people"]];

export const wordOf = (list, value) => list.find(([each]) => each === value)?.[1] || "";
export const listeners = (count) => (count === null || count === undefined ? "" : `${number(count)} ${count === 1 ? "listener" : "listeners"}`);

export function playing({ current_track: track = "", artist = "", album = "" } = {}) {
  const what = [artist, track].filter(Boolean).join(" – ");
  return album && what ? `${what} (${album})` : what || album;
}

export function stateOf({ status }, hasSource) {
  if (status === "ENDED" || status === "ERROR") return ["Ended", "bad"];
  if (status === "CREATED") return ["Not started", "warn"];
  if (status === "PAUSED") return ["Paused", "warn"];
  return hasSource === false ? ["Source away", "warn"] : ["Live", "good"];
}

export function clockOf(seconds) {
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  return (parts[0] ? parts : parts.slice(1)).map((part, index) => (index ? String(part).padStart(2, "0") : part)).join(":");
}

const REFUSALS = {
  premium_required: "This stream is for premium people.",
  removed: "You have been put out of this stream.",
  url_expired: "This link has expired. Ask whoever gave it to you for a new one.",
  bad_signature: "This link is not whole, or was changed. Ask whoever gave it to you to send it again.",
  not_found: "There is no such stream, or it is for those who are invited.",
  stream_full: "The stream is full: it has as many listeners as it may have.",
  too_many_listeners: "Too many listeners come from here already.",
  not_started: "The stream has not begun yet. It plays as soon as it does.",
  stream_ended: "This stream has ended.",
};

export const refusal = ({ reason, message }) => REFUSALS[reason] || message;
