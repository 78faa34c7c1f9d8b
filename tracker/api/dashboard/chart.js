// Live runs, and what began and ended, over the last ten minutes.

import { element, shape } from "./elements.js";
import { BUCKETS, BUCKET_MS, REASONS } from "./fleet.js";
import { clock, count } from "./words.js";

const HEIGHT = 150;
const LIVE = 88; // height of the upper part, for what lives; below it what began (up) and ended (down)
const GAP = 14;
const NAMES = { live: "live", created: "started", deleted: "ended", replaced: "replaced", cleaned: "cleaned", expired: "crashed" };

export class Chart {
  #figure = document.getElementById("chart");
  #svg = shape("svg", { role: "img", height: HEIGHT, preserveAspectRatio: "none" });
  #caption = element("figcaption");
  #rows = [];
  #pointed = null;

  constructor() {
    const legend = Object.entries(NAMES).map(([kind, name]) => element("li", { "data-kind": kind }, name));
    this.#figure.append(this.#svg, element("ul", { class: "legend" }, ...legend), this.#caption);
    this.#svg.addEventListener("pointermove", (event) => { this.#pointed = event.offsetX; this.#tell(); });
    this.#svg.addEventListener("pointerleave", () => { this.#pointed = null; this.#tell(); });
    new ResizeObserver(() => this.#draw()).observe(this.#figure);
  }

  update(fleet, now) {
    this.#rows = fleet.history(now);
    this.#draw();
  }

  #draw() {
    const width = this.#figure.clientWidth;
    if (!width || !this.#rows.length) return;
    const rows = this.#rows;
    const step = width / BUCKETS;
    const x = (position) => (BUCKETS - rows.length + position) * step;
    const most = Math.max(4, ...rows.map((row) => row.live));
    const y = (live) => 6 + (LIVE - 6) * (1 - live / most);
    const line = rows.map((row, position) => `${x(position).toFixed(1)},${y(row.live).toFixed(1)} ${x(position + 1).toFixed(1)},${y(row.live).toFixed(1)}`).join(" ");
    const busiest = Math.max(1, ...rows.flatMap((row) => [row.created, ended(row)]));
    const middle = LIVE + GAP + (HEIGHT - LIVE - GAP) / 2;
    const tall = (n) => ((HEIGHT - LIVE - GAP) / 2 - 1) * (n / busiest);
    const bars = rows.flatMap((row, position) => {
      let below = middle + 1;
      const bar = (kind, top, height) => shape("rect", {
        "data-kind": kind, x: (x(position) + step * 0.15).toFixed(1), y: top.toFixed(1), width: (step * 0.7).toFixed(1), height: Math.max(1, height).toFixed(1),
      });
      const made = row.created ? [bar("created", middle - Math.max(1, tall(row.created)), tall(row.created))] : [];
      for (const reason of REASONS) {
        if (!row[reason]) continue;
        made.push(bar(reason, below, tall(row[reason])));
        below += Math.max(1, tall(row[reason]));
      }
      return made;
    });
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#svg.setAttribute("width", width);
    this.#svg.replaceChildren(
      shape("polygon", { class: "area", points: `${x(0)},${LIVE} ${line} ${width},${LIVE}` }),
      shape("polyline", { class: "line", points: line }),
      shape("line", { class: "axis", x1: 0, x2: width, y1: LIVE, y2: LIVE }),
      shape("line", { class: "axis", x1: 0, x2: width, y1: middle, y2: middle }),
      ...bars,
      text(4, 16, `${count(most)} live`),
      ...[8, 6, 4, 2].map((minutes) => text(width - (minutes * 60_000 * step) / BUCKET_MS, LIVE + 11, `−${minutes} min`, "middle")),
      shape("line", { class: "pointer", y1: 0, y2: HEIGHT, visibility: "hidden" }),
    );
    this.#tell();
  }

  #tell() {
    const width = this.#figure.clientWidth;
    const step = width / BUCKETS;
    const position = this.#pointed === null ? -1 : Math.floor(this.#pointed / step) - (BUCKETS - this.#rows.length);
    const row = this.#rows[position];
    const pointer = this.#svg.querySelector(".pointer");
    if (pointer) {
      pointer.setAttribute("visibility", row ? "visible" : "hidden");
      const at = (Math.floor((this.#pointed ?? 0) / step) + 0.5) * step;
      pointer.setAttribute("x1", at);
      pointer.setAttribute("x2", at);
    }
    const total = sum(this.#rows);
    this.#caption.textContent = row ? `From ${clock(row.from)}: ${describe(row)}` : `In all: ${describe(total)}`;
    this.#svg.setAttribute("aria-label", `The last ten minutes: ${describe(total)}`);
  }
}

const ended = (row) => REASONS.reduce((all, reason) => all + row[reason], 0);

function sum(rows) {
  const total = { live: rows.at(-1)?.live ?? 0, created: 0 };
  for (const kind of ["created", ...REASONS]) total[kind] = rows.reduce((all, row) => all + row[kind], 0);
  return total;
}

function describe(row) {
  const parts = Object.entries(NAMES).filter(([kind]) => kind === "live" || kind === "created" || row[kind]);
  return parts.map(([kind, name]) => `${count(row[kind])} ${name}`).join(", ");
}

function text(x, y, words, anchor = "start") {
  return shape("text", { x, y, "text-anchor": anchor }, words);
}
