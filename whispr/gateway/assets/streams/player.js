// Plays a stream for as long as somebody wants to hear it: by the first way that works, and again when one breaks.
//
//   player = new Player(source, WAYS)   an EventTarget: "state", "refused" (detail: the ApiError)
//     .state                            idle, connecting, playing, waiting (nothing is sent), retrying
//     .play() · .stop() · .setVolume(0 to 1) · .level() · .facts() · .way (its title) · .tried: [[title, why]]
//     .hurry()                          tries at once: something is sent again

const PAUSES_MS = [500, 1000, 2000, 4000];
const START_MS = 12_000;
const FINAL = new Set(["stream_ended", "premium_required", "removed", "url_expired", "bad_signature", "not_found", "stream_full",
  "too_many_listeners", "invitation_required", "unauthenticated", "session_revoked"]);
const WAITING = new Set(["no_source", "not_started"]);

const late = () => new Promise((_, reject) => setTimeout(() => reject(new Error("nothing comes")), START_MS));

export class Player extends EventTarget {
  #turn = 0;
  #delivery = null;
  #hurried = () => null;
  #volume = 1;
  state = "idle";
  tried = [];

  constructor(source, ways) {
    super();
    Object.assign(this, { source, ways });
  }

  get wanted() { return this.state !== "idle"; }
  get way() { return this.#delivery?.title || ""; }
  level() { return this.#delivery?.level() ?? null; }
  async facts() { return this.#delivery ? this.#delivery.facts() : []; }

  play() {
    if (this.wanted) return;
    // Made by a click, as browsers want it.
    this.source.context ??= new AudioContext({ latencyHint: "interactive" });
    this.source.context.resume();
    this.#run(++this.#turn);
  }

  stop() {
    this.#turn += 1;
    this.#delivery?.close();
    this.#delivery = null;
    this.#become("idle");
    this.#hurried();
  }

  hurry() { this.#hurried(); }

  setVolume(volume) {
    this.#volume = volume;
    this.#delivery?.setVolume(volume);
  }

  #become(state) {
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state"));
  }

  async #run(turn) {
    for (let failures = 0; turn === this.#turn; failures++) {
      this.#become(failures ? "retrying" : "connecting");
      const outcome = await this.#first(turn);
      if (turn !== this.#turn) return;
      if (outcome === "playing") {
        failures = 0;
        this.#become("playing");
        await this.#delivery.over;
        if (turn !== this.#turn) return;
        this.#delivery.close();
        this.#delivery = null;
        this.#become("retrying");
      } else if (outcome === "waiting") this.#become("waiting");
      await this.#pause(PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)]);
    }
  }

  // Begins by the first way that works: playing, waiting, or nothing.
  async #first(turn) {
    this.tried = [];
    for (const Way of this.ways.filter((each) => each.possible(this.source))) {
      const delivery = new Way(this.source);
      try {
        await Promise.race([delivery.start(this.#volume), late()]);
        if (turn !== this.#turn) delivery.close();
        else this.#delivery = delivery;
        return "playing";
      } catch (error) {
        delivery.close();
        if (turn !== this.#turn) return "";
        if (FINAL.has(error.reason)) {
          this.stop();
          this.dispatchEvent(new CustomEvent("refused", { detail: error }));
          return "";
        }
        if (WAITING.has(error.reason)) return "waiting";
        if (error.name === "NotAllowedError") {
          this.stop(); // browsers play nothing before a click
          return "";
        }
        this.tried.push([Way.title, error.message]);
      }
    }
    return "";
  }

  #pause(duration) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, duration);
      this.#hurried = () => { clearTimeout(timer); resolve(); };
    });
  }
}
