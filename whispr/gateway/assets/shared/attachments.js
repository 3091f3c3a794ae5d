// Files on messages: sent up by tus (https://tus.io, version 1.0.0), shown by signed URLs that expire.
//
//   upload(api, file, conversationId, onProgress)   resolves to what is linked to a message: {media_id, media_type, …}
//   attachmentView(api, attachment)                 an element: a picture, a player, or a file to download

import { h, icon } from "./dom.js";
import { bytes } from "./time.js";

const TYPES = { image: "image", video: "video", audio: "audio" };
const READY_TRIES = 40;

let mediaUrl = null;

// Signed URLs name the host that the server knows itself by; this page may have reached it under another name.
async function reachable(url) {
  mediaUrl ??= (await (await fetch("/client.json")).json()).media_url;
  if (mediaUrl) return url;
  const { pathname, search } = new URL(url, location.href);
  return pathname + search;
}

export async function upload(api, file, conversationId, onProgress) {
  const made = await api.post("/v1/media/uploads", {
    filename: file.name || "file",
    content_type: file.type || "application/octet-stream",
    file_size: file.size,
    conversation_id: conversationId,
  });
  await send(await reachable(made.upload_url), file, onProgress);
  const metadata = await ready(api, made.media_id);
  return {
    media_id: made.media_id,
    media_type: TYPES[metadata.kind] || "document",
    metadata: { filename: metadata.filename, size: String(metadata.file_size || file.size),
      width: String(metadata.width || ""), height: String(metadata.height || "") },
  };
}

function send(url, file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch tells nothing of how far it is
    request.open("PATCH", url);
    const headers = { "tus-resumable": "1.0.0", "upload-offset": "0", "content-type": "application/offset+octet-stream" };
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onProgress(event.loaded / file.size);
    request.onload = () => request.status < 300 ? resolve() : reject(new Error(`The upload was refused (${request.status}).`));
    request.onerror = () => reject(new Error("The upload was interrupted."));
    request.send(file);
  });
}

async function ready(api, mediaId) {
  for (let tries = 0; tries < READY_TRIES; tries++) {
    const { metadata } = await api.get(`/v1/media/${mediaId}`);
    if (metadata.upload_status === "ready") return metadata;
    if (metadata.upload_status === "error") throw new Error(metadata.error_message || "The file was refused.");
    await new Promise((resolve) => setTimeout(resolve, Math.min(2000, 100 * 1.3 ** tries)));
  }
  throw new Error("The file is still being looked at. Try again later.");
}

export function attachmentView(api, { media_id: id, media_type: type, metadata = {}, state }) {
  const name = metadata.filename || "File";
  if (state === "pending") return h("p", { class: "file" }, icon("file"), ` ${name} (being checked)`);
  const link = async (variant, save) =>
    reachable((await api.get(`/v1/media/${id}/url`, { variant, as_attachment: save ? "true" : "" })).url);
  const download = async (event) => {
    event.preventDefault();
    window.open(await link("", true), "_self");
  };
  if (type === "image") {
    const picture = h("img", { alt: name, class: "picture", loading: "lazy", width: 320, height: heightOf(metadata) });
    link("thumbnail_640").catch(() => link("")).then((url) => { picture.src = url; }).catch(() => null);
    return h("a", { href: "#", class: "picture-link", title: `Download ${name}`, onclick: download }, picture);
  }
  if (type === "audio" || type === "video") {
    const player = h(type, { controls: true, preload: "none", "aria-label": name });
    link("").then((url) => { player.src = url; }).catch(() => null);
    return player;
  }
  const size = Number(metadata.size) ? ` · ${bytes(Number(metadata.size))}` : "";
  return h("a", { href: "#", class: "file", onclick: download }, icon("file"), h("span", {}, name), h("span", { class: "quiet" }, size));
}

function heightOf({ width, height }) {
  return Number(width) && Number(height) ? Math.round((320 * Number(height)) / Number(width)) : 240;
}
