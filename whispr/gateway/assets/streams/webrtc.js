// What WHIP (RFC 9725) and WHEP have in common: an offer by POST, its answer, and looking after the connection.
//
//   await negotiate(peer, url, headers)    returns the session's URL; throws an ApiError
//   await connected(peer)                  throws when it does not connect in time
//   lost(peer)                             a promise that is kept when it is gone for good
//   hangUp(peer, sessionUrl)

import { ApiError } from "../shared/api.js";

const CONNECT_MS = 8000;
const AWAY_MS = 3000;
const LINK = /<([^>]+)>([^,]*)/g;

export async function negotiate(peer, url, headers) {
  const offer = await peer.createOffer();
  let reply;
  try {
    reply = await fetch(url, { method: "POST", cache: "no-store", headers: { "content-type": "application/sdp", ...headers }, body: offer.sdp });
  } catch {
    throw new ApiError(0, null);
  }
  const text = await reply.text();
  if (reply.status !== 201) throw new ApiError(reply.status, asJson(text));
  const session = new URL(reply.headers.get("location"), new URL(url, location.href)).href;
  try {
    // Servers that relay are told with the answer, so candidates are looked for only now: ours need not be told at all.
    const iceServers = serversIn(reply.headers.get("link") || "");
    if (iceServers.length) peer.setConfiguration({ iceServers });
    await peer.setLocalDescription(offer);
    await peer.setRemoteDescription({ type: "answer", sdp: text });
  } catch (error) {
    hangUp(peer, session); // given up meanwhile, or an answer that is of no use: nobody will come to it
    throw error;
  }
  return session;
}

function asJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function serversIn(links) {
  return [...links.matchAll(LINK)].filter(([, , facts]) => /rel="?ice-server"?/.test(facts)).map(([, urls, facts]) => {
    const fact = (name) => facts.match(new RegExp(`${name}="([^"]*)"`))?.[1];
    return fact("username") ? { urls, username: fact("username"), credential: fact("credential") } : { urls };
  });
}

export function connected(peer) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => settle(reject, new Error("no connection by UDP")), CONNECT_MS);
    const settle = (how, what) => {
      clearTimeout(timer);
      peer.removeEventListener("connectionstatechange", look);
      how(what);
    };
    const look = () => {
      if (peer.connectionState === "connected") settle(resolve);
      else if (["failed", "closed"].includes(peer.connectionState)) settle(reject, new Error("no connection by UDP"));
    };
    peer.addEventListener("connectionstatechange", look);
    look();
  });
}

export function lost(peer) {
  return new Promise((resolve) => {
    let timer = 0;
    peer.addEventListener("connectionstatechange", () => {
      clearTimeout(timer);
      if (["failed", "closed"].includes(peer.connectionState)) resolve();
      else if (peer.connectionState === "disconnected") timer = setTimeout(resolve, AWAY_MS);
    });
  });
}

export function hangUp(peer, sessionUrl) {
  peer?.close();
  // The connection's end says it, too: a page that is left may not get this through any more.
  if (sessionUrl) fetch(sessionUrl, { method: "DELETE", keepalive: true }).catch(() => null);
}
