// What happened: the feed rolling by, and the runs that crashed with what resumes them.

import { copyButton, element } from "./elements.js";
import { clock } from "./words.js";

const MOST_LINES = 100; // shown of each

const WORDS = { "session.created": "started", "session.updated": "updated" };

/** What an event was, in a word: started, updated, or the reason of an end. */
const word = (event) => event.reason ?? WORDS[event.type] ?? event.type;

export class Story {
  #fleet;
  #open;
  #events = new Lines(document.getElementById("events"), (event) => this.#event(event));
  #crashes = new Lines(document.getElementById("crashes"), (event) => this.#crash(event));

  /** `open` shows the session of an event. */
  constructor(fleet, open) {
    [this.#fleet, this.#open] = [fleet, open];
  }

  update() {
    this.#events.show(this.#fleet.events, "Nothing yet.");
    this.#crashes.show(this.#fleet.crashed, "No run crashed.");
  }

  #event(event) {
    return element("li", { "data-kind": word(event) },
      element("time", { datetime: event.at }, clock(Date.parse(event.at))),
      element("b", {}, word(event)),
      this.#name(event.session));
  }

  #crash(event) {
    const session = event.session;
    return element("li", {},
      element("time", { datetime: event.at }, clock(Date.parse(event.at))),
      this.#name(session),
      session.providerSessionId === null
        ? element("span", { class: "soft" }, "no provider session was told")
        : element("span", { class: "provider" }, element("code", {}, session.providerSessionId),
          copyButton(session.providerSessionId, "the provider session")));
  }

  #name(session) {
    return element("button", { type: "button", class: "name", on: { click: () => this.#open(session) } },
      element("strong", {}, session.taskId ?? "no task"), " ", element("span", {}, session.agentId));
  }
}

/** A list whose newest line is on top; only what is new is drawn. */
class Lines {
  #list;
  #draw;
  #top = null;

  constructor(list, draw) {
    [this.#list, this.#draw] = [list, draw];
  }

  show(items, otherwise) {
    this.#list.dataset.empty = items.length ? "" : otherwise;
    const known = this.#top ? items.indexOf(this.#top) : -1;
    if (known < 0) this.#list.replaceChildren();
    const fresh = (known < 0 ? items : items.slice(0, known)).slice(0, MOST_LINES);
    this.#list.prepend(...fresh.map(this.#draw));
    const wanted = Math.min(items.length, MOST_LINES);
    const at = this.#list.childElementCount;
    if (at < wanted) this.#list.append(...items.slice(at, wanted).map(this.#draw)); // what came before, told later
    while (this.#list.childElementCount > wanted) this.#list.lastElementChild.remove();
    this.#top = items[0] ?? null;
  }
}
