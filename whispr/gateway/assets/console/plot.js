// Lines over the last minutes, drawn as SVG.
//
//   plot = new Plot({title, lines: ["p50", "p99"], format})   .element · .push(unixSeconds, [values])
//
// A value of null is a gap. What it says last is in its caption, so nobody needs to see the lines to know it.

import { h } from "../shared/dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, TOP, BOTTOM] = [480, 150, 46, 8, 18];
const SPAN_S = 300;
const SPAN_S_MIN = 60;

function draw(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// A round number at or above the largest value: 1, 2 or 5 times a power of ten.
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

export class Plot {
  #points = [];

  constructor({ title, lines, format, floor = 0 }) {
    Object.assign(this, { lines, format, floor, title });
    this.drawing = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plot", role: "img", "aria-label": title });
    this.values = lines.map((line, index) => h("span", { class: `legend line-${index}` }, h("i", { "aria-hidden": "true" }), h("span", {}, `${line} `), h("b", {}, "–")));
    this.element = h("figure", { class: "plot-card" }, h("figcaption", {}, h("h3", {}, title), h("span", { class: "legends" }, this.values)), this.drawing);
    this.#draw(Date.now() / 1000);
  }

  push(at, values) {
    this.#points.push({ at, values });
    while (this.#points[0].at < at - SPAN_S) this.#points.shift();
    values.forEach((value, index) => {
      this.values[index].lastChild.textContent = value === null ? "–" : this.format(value);
    });
    const told = this.lines.map((line, index) => `${line} ${values[index] === null ? "none" : this.format(values[index])}`);
    this.drawing.setAttribute("aria-label", `${this.title}, now: ${told.join(", ")}`);
    this.#draw(at);
  }

  #draw(now) {
    const top = Math.max(this.floor, ceiling(Math.max(0, ...this.#points.flatMap(({ values }) => values.map((value) => value ?? 0)))));
    // A page that was just opened has little to show: the time axis grows with it.
    const span = Math.min(SPAN_S, Math.max(SPAN_S_MIN, Math.ceil((now - (this.#points[0]?.at ?? now)) / 60) * 60));
    const x = (at) => LEFT + (WIDTH - LEFT - 6) * (1 - (now - at) / span);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      parts.push(draw("line", { x1: LEFT, x2: WIDTH - 6, y1: y(top * share), y2: y(top * share), class: "grid" }),
        draw("text", { x: LEFT - 6, y: y(top * share) + 4, class: "tick", "text-anchor": "end" }, this.format(top * share)));
    }
    for (let minutes = 1; minutes <= span / 60; minutes++) {
      const anchor = minutes === span / 60 ? "start" : "middle";
      parts.push(draw("text", { x: x(now - 60 * minutes), y: HEIGHT - 4, class: "tick", "text-anchor": anchor }, `−${minutes} min`));
    }
    parts.push(draw("text", { x: WIDTH - 6, y: HEIGHT - 4, class: "tick", "text-anchor": "end" }, "now"));
    this.lines.forEach((_, index) => {
      let [path, pen] = ["", "M"];
      for (const { at, values } of this.#points) {
        if (values[index] === null) { pen = "M"; continue; }
        path += `${pen}${x(at).toFixed(1)} ${y(values[index]).toFixed(1)}`;
        pen = "L";
      }
      parts.push(draw("path", { d: path, class: `line line-${index}` }));
    });
    this.drawing.replaceChildren(...parts);
  }
}
