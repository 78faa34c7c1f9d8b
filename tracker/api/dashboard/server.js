// The tracker's API as this page uses it: calls, and the event stream, each with the key.

const BASE = "/api/active-sessions";
const KEY = "tracker.key";
const SILENCE_MS = 40_000; // the stream says something at least every 15 s

/** The server answered, but not with what was asked for. */
export class Refused extends Error {
  constructor(status, answer) {
    super(answer?.error ?? `The server answered ${status}`);
    this.status = status;
  }
}

export class Server {
  #offset = 0;

  /** The key is kept in the tab's session storage: gone with the tab, and never part of an address. */
  get key() { return sessionStorage.getItem(KEY); }
  set key(text) {
    if (text === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, text);
  }

  /** The server's clock (ms), as far as its answers tell: to the second. */
  now() { return Date.now() + this.#offset; }

  /** The answer to a call, as an object. Raises Refused; TypeError when there is no server. */
  async call(method, path, { query = {}, body, signal } = {}) {
    const parameters = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined));
    const url = BASE + path + (parameters.size ? `?${parameters}` : "");
    const answer = await this.#fetch(url, { method, signal, body: body && JSON.stringify(body) });
    return answer.json();
  }

  /** All live sessions, newest first, up to a number; the second value tells whether there are more. */
  async sessions(most, signal) {
    const found = [];
    let cursor;
    do {
      const page = await this.call("GET", "", { query: { limit: 1000, cursor }, signal });
      found.push(...page.sessions);
      cursor = page.nextCursor ?? undefined;
    } while (cursor && found.length < most);
    return [found, Boolean(cursor)];
  }

  /** Whether the key may change things: a heartbeat for nobody tells, and changes nothing. */
  async mayWrite() {
    try {
      await this.call("PUT", "/heartbeat", { body: {} });
      return true;
    } catch (error) {
      if (error instanceof Refused && error.status === 403) return false;
      throw error;
    }
  }

  /**
   * The event stream behind a position (or from now on): yields { type, id, data }, first one
   * of type "open". Ends when the server ends it;
   * raises as `call` does, and when the stream falls silent.
   */
  async *events(after, signal) {
    const silence = new AbortController();
    const both = AbortSignal.any([signal, silence.signal]);
    let timer = setTimeout(() => silence.abort(), SILENCE_MS);
    try {
      const headers = { Accept: "text/event-stream", ...(after ? { "Last-Event-ID": after } : {}) };
      const answer = await this.#fetch(`${BASE}/events`, { headers, signal: both });
      yield { type: "open" };
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      let event = { type: "message", id: undefined, data: [] };
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE_MS);
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          if (line !== "") take(event, line);
          else {
            if (event.data.length || event.id !== undefined) yield { ...event, data: event.data.join("\n") };
            event = { type: "message", id: undefined, data: [] };
          }
        }
      }
    } finally {
      clearTimeout(timer);
    }
  }

  async #fetch(url, { headers = {}, ...options }) {
    const key = this.key;
    const answer = await fetch(url, {
      cache: "no-store",
      ...options,
      headers: { Accept: "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}), ...headers },
    });
    const date = Date.parse(answer.headers.get("Date"));
    if (date) this.#offset = date + 500 - Date.now();
    if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => null));
    return answer;
  }
}

/** Adds a line of the stream to the event that it is part of. */
function take(event, line) {
  const text = line.endsWith("\r") ? line.slice(0, -1) : line;
  const colon = text.indexOf(":");
  const field = colon < 0 ? text : text.slice(0, colon);
  const value = colon < 0 ? "" : text.slice(colon + 1).replace(/^ /, "");
  if (field === "data") event.data.push(value);
  else if (field === "event") event.type = value;
  else if (field === "id") event.id = value;
}
