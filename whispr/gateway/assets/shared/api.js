// The REST API, and the session of who is signed in.
//
//   session = new Session("chat")     kept in this tab; with `remember`, on this device. An EventTarget: "changed"
//     .user, .signedIn, .token()      a good access token, renewed before it expires
//     .signIn(name, password, remember) · .signUp(name, password, displayName, remember) · .signOut()
//   api = new Api(session)            .get(path, query) .post(path, body) .put .patch .delete
//                                     each returns the decoded JSON or throws an ApiError
//   uuid(), deviceName()

const EARLY_MS = 60_000;

export class ApiError extends Error {
  constructor(status, body) {
    super(body?.message || (status ? `The server answered ${status}.` : "The server cannot be reached."));
    this.status = status;
    const details = body?.details || [];
    const type = (name) => details.find((each) => String(each["@type"]).endsWith(name));
    this.reason = type("ErrorInfo")?.reason || (status ? "" : "offline");
    this.fields = Object.fromEntries((type("BadRequest")?.field_violations || []).map((v) => [v.field, v.description]));
    this.retryable = status === 0 || status === 429 || status === 503 || status === 504;
  }
}

async function call(method, path, body, token) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const request = { method, headers, cache: "no-store" };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, request);
  } catch {
    throw new ApiError(0, null);
  }
  const said = await answer.json().catch(() => null);
  if (!answer.ok) throw new ApiError(answer.status, said);
  return said;
}

export class Session extends EventTarget {
  #name;
  #store = sessionStorage;
  #held = null;
  #renewing = null;

  constructor(name) {
    super();
    this.#name = `whispr.${name}`;
    for (const store of [sessionStorage, localStorage]) {
      const kept = store.getItem(this.#name);
      if (kept) {
        this.#store = store;
        this.#held = JSON.parse(kept);
        break;
      }
    }
  }

  get signedIn() { return this.#held !== null; }
  get user() { return this.#held?.user ?? null; }

  async signIn(username, password, remember = false) {
    this.#begin(await call("POST", "/v1/auth/login", { username, password, device: deviceName() }), remember);
  }

  async signUp(username, password, displayName, remember = false) {
    const asked = { username, password, display_name: displayName };
    this.#begin(await call("POST", "/v1/auth/register", asked), remember);
  }

  async signOut() {
    const token = this.#held?.access;
    this.#end("signed out");
    if (token) await call("POST", "/v1/auth/logout", {}, token).catch(() => null);
  }

  // Throws an ApiError; one of status 401 has ended the session.
  async token(force = false) {
    if (!this.#held) throw new ApiError(401, { message: "You are signed out." });
    if (!force && Date.now() < this.#held.renewAt) return this.#held.access;
    // Each refresh token works once, so one renewal serves all who wait, in all tabs that share it.
    this.#renewing ??= this.#locked(() => this.#renew(this.#held.refresh)).finally(() => { this.#renewing = null; });
    await this.#renewing;
    return this.#held.access;
  }

  async #locked(work) {
    return navigator.locks ? navigator.locks.request(this.#name, work) : work();
  }

  async #renew(used) {
    const kept = JSON.parse(this.#store.getItem(this.#name) || "null");
    if (kept && kept.refresh !== used) {
      this.#held = kept;
      return;
    }
    try {
      this.#keep(await call("POST", "/v1/auth/refresh", { refresh_token: used }));
    } catch (error) {
      if (error.status === 401 || error.status === 403) this.#end("expired");
      throw error;
    }
  }

  #begin(tokens, remember) {
    this.#store = remember ? localStorage : sessionStorage;
    this.#keep(tokens);
    this.dispatchEvent(new CustomEvent("changed", { detail: "signed in" }));
  }

  #keep(tokens) {
    this.#held = {
      user: tokens.user,
      access: tokens.access_token,
      refresh: tokens.refresh_token,
      renewAt: Date.now() + Math.max(tokens.expires_in * 500, tokens.expires_in * 1000 - EARLY_MS),
    };
    this.#store.setItem(this.#name, JSON.stringify(this.#held));
  }

  #end(why) {
    this.#store.removeItem(this.#name);
    this.#held = null;
    this.dispatchEvent(new CustomEvent("changed", { detail: why }));
  }
}

export class Api {
  constructor(session) { this.session = session; }

  get(path, query = {}) {
    const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
    const asked = new URLSearchParams(given).toString();
    return this.#call("GET", asked ? `${path}?${asked}` : path);
  }
  post(path, body = {}) { return this.#call("POST", path, body); }
  put(path, body) { return this.#call("PUT", path, body); }
  patch(path, body) { return this.#call("PATCH", path, body); }
  delete(path) { return this.#call("DELETE", path); }

  async #call(method, path, body) {
    try {
      return await call(method, path, body, await this.session.token());
    } catch (error) {
      if (error.status !== 401 || !this.session.signedIn) throw error;
      return call(method, path, body, await this.session.token(true));
    }
  }
}

// crypto.randomUUID is there in secure contexts alone; a page on a plain address of the network is none.
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

export function deviceName() {
  const agent = navigator.userAgent;
  const browser = ["Firefox", "Edg", "OPR", "Chrome", "Safari"].find((name) => agent.includes(name)) || "Browser";
  const system = ["Android", "iPhone", "iPad", "Windows", "Mac OS", "Linux"].find((name) => agent.includes(name));
  return `${{ Edg: "Edge", OPR: "Opera" }[browser] || browser}${system ? ` on ${system}` : ""}`;
}
