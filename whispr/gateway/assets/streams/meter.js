// How loud it is, as a bar: -60 to 0 dBFS. Who asked for less motion sees it change once a second.
//
//   meter = new Meter(label, () => dB or null)   .element · .destroy()
//   levelOf(analyser)                            the loudest sample of the last moment, in dBFS

import { h } from "../shared/dom.js";

const [FLOOR_DB, EVERY_MS, CALM_MS, FALL_DB] = [-60, 66, 1000, 2.5];

export class Meter {
  #shown = FLOOR_DB;
  #most = FLOOR_DB; // since it was last told

  constructor(label, read) {
    this.read = read;
    this.bar = h("span", { class: "meter-bar" });
    this.element = h("div", { class: "meter", role: "meter", "aria-label": label, "aria-valuemin": FLOOR_DB, "aria-valuemax": 0, "aria-valuenow": FLOOR_DB,
      "aria-valuetext": "silent" }, this.bar);
    this.calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.timer = setInterval(() => this.#look(), EVERY_MS);
    this.telling = setInterval(() => this.#tell(), CALM_MS);
    this.#look();
  }

  destroy() {
    clearInterval(this.timer);
    clearInterval(this.telling);
  }

  #look() {
    if (document.hidden) return;
    const level = Math.max(FLOOR_DB, Math.min(0, this.read() ?? FLOOR_DB));
    this.#most = Math.max(this.#most, level);
    // It rises at once and falls slowly, as meters do, so that a short sound is seen.
    if (!this.calm) this.#draw(Math.max(level, this.#shown - FALL_DB));
  }

  #draw(level) {
    this.#shown = level;
    this.bar.style.clipPath = `inset(0 ${(level / FLOOR_DB) * 100}% 0 0)`;
  }

  #tell() {
    const level = Math.round(this.#most);
    if (this.calm) this.#draw(this.#most);
    this.#most = FLOOR_DB;
    this.element.setAttribute("aria-valuenow", String(level));
    this.element.setAttribute("aria-valuetext", level <= FLOOR_DB ? "silent" : `${level} decibels`);
  }
}

export function levelOf(analyser) {
  const wave = new Float32Array(analyser.fftSize);
  analyser.getFloatTimeDomainData(wave);
  const peak = wave.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
  return peak > 0 ? 20 * Math.log10(peak) : -Infinity;
}
