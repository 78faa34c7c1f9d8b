// The table of what runs now. Only the rows in sight exist, so thousands of sessions scroll as smoothly as ten.

import { element } from "./elements.js";
import { count, duration } from "./words.js";

const SPARE_ROWS = 6; // drawn beyond each edge
const STALE = 1 / 3; // of the TTL left
const DYING = 1 / 10;

const left = (session, now) => session.due - now;
const byText = (of) => (a, b) => (of(a) < of(b) ? -1 : of(a) > of(b) ? 1 : b.started - a.started);
const ORDERS = {
  left: (a, b) => a.due - b.due,
  newest: (a, b) => b.started - a.started,
  oldest: (a, b) => a.started - b.started,
  agent: byText((session) => session.agentId),
  task: byText((session) => session.taskId ?? "\uffff"),
};

/** How far a run is from being taken for dead: "well", "stale", "dying" or "silent". */
export function mood(session, now) {
  const part = left(session, now) / session.life;
  return part <= 0 ? "silent" : part < DYING ? "dying" : part < STALE ? "stale" : "well";
}

export class Runs {
  #fleet;
  #server;
  #acts;
  #shown = [];
  #chosen = null; // id
  #pool = [];
  #table = document.getElementById("table");
  #view = document.getElementById("rows");
  #space = element("div", { class: "space", role: "presentation" });
  #filter = document.getElementById("filter");
  #sort = document.getElementById("sort");

  /** `acts`: what to do with a session: { open, stop, end }. */
  constructor(fleet, server, acts) {
    [this.#fleet, this.#server, this.#acts] = [fleet, server, acts];
    this.#view.append(this.#space);
    this.#view.addEventListener("scroll", () => this.#draw(), { passive: true });
    this.#view.addEventListener("keydown", (event) => this.#key(event));
    this.#filter.addEventListener("input", () => this.update());
    this.#sort.addEventListener("change", () => this.update());
    new ResizeObserver(() => this.#draw()).observe(this.#view);
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.target.matches("input, textarea, select") || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      this.#filter.focus();
    });
  }

  /** Draws what is known now. */
  update() {
    const words = this.#filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = [...this.#fleet.sessions.values()];
    const fitting = words.length ? all.filter((session) => words.every((word) => haystack(session).includes(word))) : all;
    this.#shown = fitting.sort(ORDERS[this.#sort.value]);
    const total = this.#fleet.live;
    const output = document.getElementById("shown");
    output.textContent = this.#shown.length === total ? count(total) : `${count(this.#shown.length)} of ${count(total)}`;
    this.#table.setAttribute("aria-rowcount", this.#shown.length + 1);
    this.#view.dataset.empty = this.#shown.length ? "" : words.length ? "Nothing that runs fits the filter." : "Nothing runs.";
    this.#draw();
  }

  #draw() {
    const height = parseFloat(getComputedStyle(this.#table).getPropertyValue("--row"));
    const first = Math.max(0, Math.floor(this.#view.scrollTop / height) - SPARE_ROWS);
    const most = Math.ceil(this.#view.clientHeight / height) + 2 * SPARE_ROWS;
    const last = Math.min(this.#shown.length, first + most);
    this.#space.style.height = `${this.#shown.length * height}px`;
    while (this.#pool.length < last - first) this.#pool.push(new Row(this.#space, this.#acts, (id) => this.#choose(id)));
    const now = this.#server.now();
    let active = null;
    // A session keeps its row while it is in sight, and with it the focus of the row's buttons.
    const wanted = this.#shown.slice(first, last);
    const free = new Set(this.#pool);
    const rows = new Map(this.#pool.filter((row) => row.id).map((row) => [row.id, row]));
    for (const session of wanted) if (rows.has(session.id)) free.delete(rows.get(session.id));
    const spare = free.values();
    wanted.forEach((session, position) => {
      const row = rows.get(session.id) ?? spare.next().value;
      free.delete(row);
      row.show(session, first + position, height, now, session.id === this.#chosen);
      if (session.id === this.#chosen) active = row.root.id;
    });
    for (const row of free) row.hide();
    if (active) this.#view.setAttribute("aria-activedescendant", active);
    else this.#view.removeAttribute("aria-activedescendant");
  }

  #choose(id) {
    this.#chosen = id;
    this.#draw();
  }

  #key(event) {
    if (event.target !== this.#view || !this.#shown.length) return;
    const at = this.#shown.findIndex((session) => session.id === this.#chosen);
    const page = Math.max(1, Math.floor(this.#view.clientHeight / 60));
    const places = {
      ArrowDown: at + 1, ArrowUp: at < 0 ? 0 : at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: this.#shown.length - 1,
    };
    if (event.key in places) {
      event.preventDefault();
      const place = Math.min(Math.max(places[event.key], 0), this.#shown.length - 1);
      this.#reveal(place);
      this.#choose(this.#shown[place].id);
    } else if (event.key === "Enter" && at >= 0) {
      event.preventDefault();
      this.#acts.open(this.#shown[at]);
    }
  }

  #reveal(place) {
    const height = parseFloat(getComputedStyle(this.#table).getPropertyValue("--row"));
    const [top, bottom] = [place * height, (place + 1) * height];
    if (top < this.#view.scrollTop) this.#view.scrollTop = top;
    else if (bottom > this.#view.scrollTop + this.#view.clientHeight) this.#view.scrollTop = bottom - this.#view.clientHeight;
  }
}

let rows = 0;

class Row {
  id = null;
  #session;

  constructor(space, acts, choose) {
    const act = (name) => (event) => { event.stopPropagation(); acts[name](this.#session); };
    this.agent = element("span", { role: "cell", class: "agent" });
    this.task = element("strong");
    this.about = element("span", { class: "about" });
    this.trigger = element("span", { role: "cell", class: "trigger" });
    this.age = element("span", { role: "cell", class: "age" });
    this.leftText = element("span");
    this.fill = element("i");
    this.stop = element("button", { type: "button", on: { click: act("stop") } }, "Stop");
    this.end = element("button", { type: "button", class: "danger", on: { click: act("end") } }, "End");
    this.root = element("div", { class: "row", role: "row", id: `run-${rows++}` },
      this.agent,
      element("span", { role: "cell", class: "task" }, this.task, this.about),
      this.trigger,
      this.age,
      element("span", { role: "cell", class: "left" }, this.leftText, element("span", { class: "life" }, this.fill)),
      element("span", { role: "cell", class: "acts write" }, this.stop, this.end));
    this.root.addEventListener("click", () => { choose(this.id); acts.open(this.#session); });
    space.append(this.root);
  }

  show(session, place, height, now, chosen) {
    this.id = session.id;
    this.root.hidden = false;
    this.root.style.transform = `translateY(${place * height}px)`;
    this.root.setAttribute("aria-rowindex", place + 2);
    this.root.dataset.mood = mood(session, now);
    this.root.classList.toggle("chosen", chosen);
    this.root.classList.toggle("odd", place % 2 === 1);
    put(this.age, duration(now - session.started));
    const remaining = left(session, now);
    put(this.leftText, remaining > 0 ? duration(remaining) : "silent");
    this.fill.style.width = `${Math.min(100, Math.max(0, (100 * remaining) / session.life))}%`;
    if (this.#session === session) return;
    this.#session = session;
    put(this.agent, session.agentId);
    this.agent.title = session.agentId;
    put(this.task, session.taskId ?? "no task");
    this.task.classList.toggle("none", session.taskId === null);
    put(this.about, session.progress ?? session.taskDescription ?? "");
    this.root.title = session.taskDescription ?? "";
    put(this.trigger, session.triggerType);
    const asked = session.stopRequestedAt !== null;
    this.root.classList.toggle("stopping", asked);
    put(this.stop, asked ? "Asked" : "Stop");
    this.stop.disabled = asked;
    const what = session.taskId ?? session.id;
    this.stop.setAttribute("aria-label", `Ask ${what} to stop`);
    this.end.setAttribute("aria-label", `End ${what}`);
  }

  hide() {
    this.id = null;
    this.root.hidden = true;
  }
}

function put(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

function haystack(session) {
  session.text ??= [
    session.agentId, session.taskId, session.triggerType, session.taskDescription, session.progress, session.id,
    session.runnerSessionId, session.providerSessionId, session.runtimeInstanceId,
    ...Object.entries(session.metadata).flat(),
  ].filter((part) => part !== null).join("\n").toLowerCase();
  return session.text;
}
