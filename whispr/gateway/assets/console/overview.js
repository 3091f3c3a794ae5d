// How everything is: services and what they depend on, with their breakers; rates and latencies as they run.

import { h } from "../shared/dom.js";
import { bytes, duration, number } from "../shared/time.js";
import { between } from "./figures.js";
import { Poll, status, table, tile, workerChooser } from "./parts.js";
import { Plot } from "./plot.js";

const EVERY_MS = 2000;
const rate = (value) => (value >= 10 || Number.isInteger(value) ? number(Math.round(value)) : value.toFixed(1));
const latency = (value) => duration(value < 0.01 ? Math.round(value * 10_000) / 10_000 : value);
const millis = (value) => (value === null ? "–" : value === 0 ? "0" : value < 1 ? `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(1)} s`);

export class Overview {
  #before = null;
  #worker = "";

  constructor(console) {
    this.console = console;
    this.tiles = Object.fromEntries(["Status", "Sockets", "Calls", "Messages", "Outbox", "Memory", "CPU", "Workers"].map((name) => [name, tile(name)]));
    this.plots = {
      rates: new Plot({ title: "Requests a second", lines: ["gRPC", "REST", "failed"], format: rate, floor: 1 }),
      calls: new Plot({ title: "gRPC latency", lines: ["p50", "p99"], format: millis, floor: 0.001 }),
      rest: new Plot({ title: "REST latency", lines: ["p50", "p99"], format: millis, floor: 0.001 }),
      live: new Plot({ title: "Deliveries to sockets a second", lines: ["deliveries", "pushes"], format: rate, floor: 1 }),
      writes: new Plot({ title: "Message write latency", lines: ["p50", "p99"], format: millis, floor: 0.001 }),
      queues: new Plot({ title: "Queue depths", lines: ["messages", "outbox", "database"], format: rate, floor: 5 }),
    };
    this.health = h("div", {});
    this.busiest = h("div", {});
    this.element = h("div", { class: "stack" },
      h("dl", { class: "tiles" }, Object.values(this.tiles)),
      h("section", {}, h("h2", { class: "sr-only" }, "The last minutes"), h("div", { class: "plots" }, Object.values(this.plots).map((plot) => plot.element))),
      h("section", {}, h("div", { class: "section-head" }, h("h2", {}, "Services and dependencies"),
        workerChooser(console.workers, console.workers[0], (worker) => { this.#worker = worker; this.#askHealth(); })), this.health),
      h("section", {}, h("h2", {}, "Busiest calls"), this.busiest));
    this.poll = new Poll(() => Promise.all([this.#askHealth(), this.#askFigures()]), EVERY_MS);
  }

  start() { this.poll.start(); }
  stop() { this.poll.stop(); }

  async #askHealth() {
    const report = await this.console.attempt(() => this.console.api.get("/v1/operations/health", { worker: this.#worker }));
    if (!report) return;
    this.tiles.Status.set(report.status, report.state);
    this.tiles.Status.dataset.status = report.status;
    const rows = [...Object.entries(report.services).map(([name, facts]) => [name + (facts.here ? "" : " (elsewhere)"), facts]),
      ...Object.entries(report.dependencies)];
    this.health.replaceChildren(table("Services and dependencies",
      ["Name", "Status", { name: "Latency", right: true }, "Breaker", { name: "In flight", right: true }, { name: "Queued", right: true }, "Last error"],
      rows.map(([name, facts]) => [name, status(facts.status), facts.latency_ms === null ? "–" : `${facts.latency_ms.toFixed(1)} ms`,
        status(facts.breaker), String(facts.in_flight), String(facts.queued), errorOf(facts.last_error)])));
  }

  async #askFigures() {
    const now = await this.console.attempt(() => this.console.api.get("/v1/operations/figures"));
    if (!now) return;
    const since = between(this.#before ?? now, now);
    this.#state(since);
    if (this.#before) this.#rates(since, now.at);
    this.#before = now;
  }

  // What is so now, for which one answer is enough.
  #state({ numbers, workers }) {
    this.tiles.Sockets.set(number(numbers.whispr_ws_sockets || 0), `${number(numbers.whispr_ws_channels || 0)} channels`);
    this.tiles.Outbox.set(number(numbers.whispr_events_outbox_rows || 0), `oldest ${latency(numbers.whispr_events_outbox_lag_seconds || 0)}`);
    this.tiles.Memory.set(bytes(numbers.process_resident_memory_bytes || 0), `${number(numbers.whispr_tasks || 0)} tasks`);
    const named = Object.entries(workers).filter(([name]) => name !== "supervisor");
    this.tiles.Workers.set(String(named.length ? named.filter(([, up]) => up).length : 1), named.length ? `of ${named.length}` : "one process");
  }

  #rates(since, at) {
    const { numbers, perSecond, calls, routes, writes } = since;
    this.plots.rates.push(at, [calls.total.rate, routes.total.rate, calls.total.failed]);
    this.plots.calls.push(at, [calls.total.p50, calls.total.p99]);
    this.plots.rest.push(at, [routes.total.p50, routes.total.p99]);
    this.plots.live.push(at, [perSecond.whispr_ws_deliveries_total || 0, perSecond.whispr_ws_pushes_total || 0]);
    this.plots.writes.push(at, [writes.total.p50, writes.total.p99]);
    this.plots.queues.push(at, [numbers.whispr_messages_queued || 0, numbers.whispr_events_outbox_rows || 0, numbers.whispr_postgres_pool_waiting || 0]);
    this.tiles.Calls.set(`${rate(calls.total.rate)}/s`, `${number(numbers.whispr_rpc_calls_in_progress || 0)} in progress`);
    this.tiles.Messages.set(`${rate(perSecond.whispr_message_batch_len_sum || 0)}/s`, `${number(numbers.whispr_messages_queued || 0)} queued`);
    this.tiles.CPU.set(`${((perSecond.process_cpu_seconds_total || 0) * 100).toFixed(0)} %`, `loop lag ${millis(since.loop.total.p99)}`);
    const busiest = calls.rows.filter((row) => row.rate > 0).slice(0, 12);
    this.busiest.replaceChildren(table("Busiest calls",
      ["Method", { name: "A second", right: true }, { name: "Failed", right: true }, { name: "p50", right: true }, { name: "p99", right: true }],
      busiest.map((row) => [`${row.labels.service.replace(/^.*\./, "")}/${row.labels.method}`, rate(row.rate), rate(row.failed), millis(row.p50), millis(row.p99)]),
      "No calls in the last seconds."));
  }
}

function errorOf(error) {
  return error ? `${error.code}, ${duration(error.age_s)} ago${error.message ? `: ${error.message}` : ""}` : h("span", { class: "quiet" }, "none");
}
