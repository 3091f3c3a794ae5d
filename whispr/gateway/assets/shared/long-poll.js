// Phoenix's other transport, for networks where WebSockets do not get through: it has a WebSocket's face.
//
//   connection = new LongPoll(accessToken)   .readyState .send(text) .close(), and onopen, onmessage, onclose

const PATH = "/socket/longpoll?vsn=2.0.0";
const GONE = 410;

export class LongPoll {
  #token = null;
  #aborting = new AbortController();
  #queue = [];
  #sending = false;
  readyState = WebSocket.CONNECTING;

  constructor(accessToken) { this.#run(accessToken); }

  send(text) {
    this.#queue.push(text);
    if (!this.#sending) this.#flush();
  }

  close() {
    if (this.readyState === WebSocket.CLOSED) return;
    this.readyState = WebSocket.CLOSED;
    this.#aborting.abort();
    this.onclose?.();
  }

  async #run(accessToken) {
    try {
      const opened = await this.#ask("GET", { "x-phoenix-authtoken": accessToken });
      if (opened.status !== GONE || !opened.token) return this.close();
      this.#token = opened.token;
      this.readyState = WebSocket.OPEN;
      this.onopen?.();
      while (this.readyState === WebSocket.OPEN) {
        const { status, messages } = await this.#ask("GET", this.#own());
        if (status !== 200 && status !== 204) break;
        for (const data of messages || []) this.onmessage?.({ data });
      }
    } catch {
      // The network: whoever holds the connection opens another.
    }
    return this.close();
  }

  // What is sent meanwhile goes with the next request, so the order stays.
  async #flush() {
    this.#sending = true;
    try {
      while (this.#queue.length) {
        const lines = this.#queue.splice(0).join("\n");
        const { status } = await this.#ask("POST", { ...this.#own(), "content-type": "application/x-ndjson" }, lines);
        if (status !== 200) this.close();
      }
    } catch {
      this.close();
    } finally {
      this.#sending = false;
    }
  }

  #own() { return { "x-phoenix-longpoll-token": this.#token }; }

  async #ask(method, headers, body) {
    return (await fetch(PATH, { method, headers, body, cache: "no-store", signal: this.#aborting.signal })).json();
  }
}
