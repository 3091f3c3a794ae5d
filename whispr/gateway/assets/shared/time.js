// Times and sizes, worded for people, in the browser's language.
//
//   clock(date) 14:05 · dayName(date) Today, Yesterday, Monday, 3 May · shortly(date) the one that fits a list
//   full(date) · ago(date) · duration(seconds) · bytes(count) · number(count)

const format = (options) => new Intl.DateTimeFormat(undefined, options);
const CLOCK = format({ hour: "2-digit", minute: "2-digit" });
const WEEKDAY = format({ weekday: "long" });
const DAY = format({ day: "numeric", month: "long" });
const YEAR = format({ day: "numeric", month: "long", year: "numeric" });
const SHORT = format({ day: "numeric", month: "short" });
const FULL = format({ dateStyle: "full", timeStyle: "medium" });
const NUMBER = new Intl.NumberFormat();

const midnight = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate());
const daysAgo = (date) => Math.round((midnight(new Date()) - midnight(date)) / 86_400_000);

export const clock = (date) => CLOCK.format(date);
export const full = (date) => FULL.format(date);
export const number = (count) => NUMBER.format(count);

export function dayName(date) {
  const days = daysAgo(date);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days > 1 && days < 7) return WEEKDAY.format(date);
  return (date.getFullYear() === new Date().getFullYear() ? DAY : YEAR).format(date);
}

export function shortly(date) {
  const days = daysAgo(date);
  if (days === 0) return CLOCK.format(date);
  if (days === 1) return "Yesterday";
  return SHORT.format(date);
}

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  for (const [unit, name] of [[86_400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * unit) return `${Math.floor(seconds / unit)} ${name}`;
  }
  return `${Math.round(seconds)} s`;
}

export const ago = (date) => `${duration(Math.max(0, (Date.now() - date) / 1000))} ago`;

export function bytes(count) {
  for (const [unit, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (count >= unit) return `${(count / unit).toFixed(count >= 10 * unit ? 0 : 1)} ${name}`;
  }
  return `${count} B`;
}
