// What all ways of delivery have: an element that plays, a volume, a level, and an end.
//
//   class Way extends Delivery   .element · .source · .measure(node, plays) · .end(reason) · .over · …
//   ms(seconds) · rate(bitsPerSecond)   worded

import { h } from "../shared/dom.js";
import { number } from "../shared/time.js";
import { levelOf } from "./meter.js";

export const ms = (seconds) => `${number(Math.round(seconds * 1000))} ms`;
export const rate = (bps) => (bps ? `${number(Math.round(bps / 1000))} kbit/s` : "–");

export class Delivery {
  #ended = () => null;
  #analyser = null;

  constructor(source) {
    this.source = source;
    this.over = new Promise((resolve) => { this.#ended = resolve; });
    this.element = h("audio", { hidden: true });
    source.place.append(this.element);
  }

  get title() { return this.constructor.title; }

  end(reason) { this.#ended(reason); }

  setVolume(volume) { this.element.volume = volume; }

  // Listens to a node of the audio graph; one that has taken an element's sound has to play it, too.
  measure(node, plays = false) {
    const { context } = this.source;
    this.#analyser = new AnalyserNode(context, { fftSize: 4096 });
    node.connect(this.#analyser);
    if (plays) node.connect(context.destination);
    this.node = node;
    context.resume();
  }

  level() { return this.#analyser ? levelOf(this.#analyser) : null; }

  async facts() { return []; }

  close() {
    this.node?.disconnect();
    this.element.pause();
    this.element.removeAttribute("src");
    this.element.srcObject = null;
    this.element.remove();
    this.end("closed");
  }
}
