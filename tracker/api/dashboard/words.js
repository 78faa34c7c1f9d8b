// How numbers and times are put into words.

const COUNT = new Intl.NumberFormat("en");
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hour12: false });

export const count = (number) => COUNT.format(number);

/** 14:03:09 */
export const clock = (ms) => CLOCK.format(ms);

export const moment = (ms) => MOMENT.format(ms);

/** A duration in its two largest units: 42 s, 3 m 07 s, 2 h 15 m, 4 d 1 h. */
export function duration(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const [minutes, hours, days] = [seconds / 60, seconds / 3600, seconds / 86400].map(Math.floor);
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${two(minutes % 60)} m`;
  if (minutes) return `${minutes} m ${two(seconds % 60)} s`;
  return `${seconds} s`;
}

const two = (number) => String(number).padStart(2, "0");
