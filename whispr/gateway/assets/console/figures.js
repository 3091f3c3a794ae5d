// Rates and quantiles, out of two answers of /v1/operations/figures, which are counts since each process began.
//
//   between(before, now)   {seconds, calls, routes, writes, loop, numbers, perSecond}
//     calls, routes        [{labels, rate, failed, p50, p99}], the busiest first; `total` is all of them together
//     p50, p99 in seconds, null when nothing was measured in between
//   quantile(q, bounds, counts)   of cumulative counts, as Prometheus' histogram_quantile interpolates them

export function quantile(q, bounds, counts) {
  const all = counts.at(-1) || 0;
  if (all <= 0) return null;
  const wanted = q * all;
  const index = counts.findIndex((count) => count >= wanted);
  if (index >= bounds.length) return bounds.at(-1);
  const [low, before] = index === 0 ? [0, 0] : [bounds[index - 1], counts[index - 1]];
  const inside = counts[index] - before;
  return inside <= 0 ? bounds[index] : low + (bounds[index] - low) * ((wanted - before) / inside);
}

const keyOf = (series) => JSON.stringify(series.labels);

function grown(before, now) {
  // A process that was started again counts from nothing: what it has now is what it did since.
  return now.map((count, index) => (count >= (before?.[index] ?? 0) ? count - (before?.[index] ?? 0) : count));
}

function series(before, now, seconds) {
  const known = new Map((before?.series || []).map((each) => [keyOf(each), each]));
  const found = now.series.map((each) => {
    const old = known.get(keyOf(each));
    const counts = grown(old?.counts, each.counts);
    return { labels: each.labels, counts, failed: grown([old?.failed ?? 0], [each.failed])[0] / seconds };
  });
  const total = now.bounds.concat(Infinity).map((_, index) => found.reduce((sum, each) => sum + each.counts[index], 0));
  const shown = (counts, failed, labels) => ({
    labels, failed, rate: (counts.at(-1) || 0) / seconds,
    p50: quantile(0.5, now.bounds, counts), p99: quantile(0.99, now.bounds, counts),
  });
  const rows = found.map((each) => shown(each.counts, each.failed, each.labels)).sort((a, b) => b.rate - a.rate);
  return { rows, total: shown(total, found.reduce((sum, each) => sum + each.failed, 0), {}) };
}

export function between(before, now) {
  const seconds = Math.max(0.001, now.at - before.at);
  const of = (name) => series(before.histograms[name], now.histograms[name], seconds);
  const perSecond = {};
  for (const [name, value] of Object.entries(now.numbers)) {
    perSecond[name] = grown([before.numbers[name] ?? 0], [value])[0] / seconds;
  }
  return {
    seconds, perSecond, numbers: now.numbers, workers: now.workers,
    calls: of("grpc_request_duration_seconds"),
    routes: of("http_request_duration_seconds"),
    writes: of("whispr_message_write_seconds"),
    loop: of("whispr_loop_lag_seconds"),
  };
}
