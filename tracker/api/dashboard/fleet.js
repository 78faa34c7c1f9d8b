// What is known of the fleet: the sessions that live, what happened, and the numbers of the last ten minutes.

export const MOST_SESSIONS = 10_000; // listed and kept at most
const MOST_EVENTS = 300;
const MOST_ENDED = 50_000; // ids remembered, so that a listing that was under way does not bring them back
export const BUCKET_MS = 10_000;
export const BUCKETS = 60;
export const REASONS = ["deleted", "replaced", "cleaned", "expired"];

export class Fleet {
  sessions = new Map(); // id -> session, with `started`, `due` and `life` in ms
  more = false; // whether there are sessions beyond those
  events = []; // newest first
  crashed = []; // end events of runs that fell silent, newest first
  stats = null;
  #ended = new Set();
  #buckets = new Map(); // number of the bucket -> { created, deleted, ... }
  #since = Infinity; // from when on all events are known (ms)

  /** Takes in an event, newer than all before. */
  add(event) {
    this.#remember(event);
    const session = event.session;
    if (event.type === "session.ended") {
      this.sessions.delete(session.id);
      this.#ended.add(session.id);
      if (this.#ended.size > MOST_ENDED) this.#ended.delete(this.#ended.values().next().value);
    } else if (!this.#ended.has(session.id)) {
      this.#keep(session);
    }
    if (this.sessions.size > MOST_SESSIONS) {
      this.sessions.delete(this.sessions.keys().next().value);
      this.more = true;
    }
  }

  /** Takes in what happened before the first event that was added: oldest first. `from` (ms) is where it is whole. */
  backfill(events, from) {
    const [later, crashes] = [this.events, this.crashed];
    [this.events, this.crashed] = [[], []];
    for (const event of events) this.#remember(event);
    this.events = [...later, ...this.events].slice(0, MOST_EVENTS);
    this.crashed = [...crashes, ...this.crashed].slice(0, MOST_EVENTS);
    this.#since = from;
  }

  /** Events may be missing: the counts over time begin anew at that time (ms). */
  gap(at) {
    this.#buckets.clear();
    this.#since = at;
  }

  /** Takes in a whole listing that was begun at a time (ms); `more` sessions than it has may live. */
  replace(sessions, more, begun) {
    const listed = new Set(sessions.map((session) => session.id));
    for (const [id, session] of this.sessions) {
      if (!listed.has(id) && session.started < begun) this.sessions.delete(id);
    }
    for (const session of sessions) {
      if (!this.#ended.has(session.id)) this.#keep(session);
    }
    this.more = more;
  }

  /** How many live: the store's count where not all are listed. */
  get live() { return this.more && this.stats ? Math.max(this.stats.sessions, this.sessions.size) : this.sessions.size; }

  /** The last ten minutes up to a time (ms), oldest first: { from, live, created, deleted, ... }; from when on they are known. */
  history(now) {
    const last = Math.floor(now / BUCKET_MS);
    for (const number of this.#buckets.keys()) if (number <= last - BUCKETS) this.#buckets.delete(number);
    const rows = [];
    let live = this.live;
    for (let number = last; number > last - BUCKETS && (number + 1) * BUCKET_MS > this.#since; number--) {
      const counted = this.#buckets.get(number) ?? empty();
      rows.unshift({ from: number * BUCKET_MS, live: Math.max(0, live), ...counted });
      live += REASONS.reduce((sum, reason) => sum + counted[reason], 0) - counted.created;
    }
    return rows;
  }

  #remember(event) {
    this.events.unshift(event);
    this.events.length = Math.min(this.events.length, MOST_EVENTS);
    if (event.reason === "expired") {
      this.crashed.unshift(event);
      this.crashed.length = Math.min(this.crashed.length, MOST_EVENTS);
    }
    const kind = event.type === "session.created" ? "created" : event.reason;
    if (!kind) return;
    const number = Math.floor(Date.parse(event.at) / BUCKET_MS);
    if (!this.#buckets.has(number)) this.#buckets.set(number, empty());
    this.#buckets.get(number)[kind] += 1;
  }

  #keep(session) {
    session.started = Date.parse(session.startedAt);
    session.due = Date.parse(session.expiresAt);
    session.life = session.ttlSeconds * 1000;
    const known = this.sessions.get(session.id);
    if (known && known.due > session.due) return; // a listing and the stream may overtake each other
    this.sessions.set(session.id, session);
  }
}

const empty = () => ({ created: 0, deleted: 0, replaced: 0, cleaned: 0, expired: 0 });
