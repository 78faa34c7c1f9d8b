// The dashboard: who is running what now, live. Joins the parts; nothing else knows them all.

import { Chart } from "./chart.js";
import { showCounts } from "./counts.js";
import { showDetails } from "./details.js";
import { askKey, confirm } from "./dialogs.js";
import { Fleet, MOST_SESSIONS } from "./fleet.js";
import { Runs } from "./runs.js";
import { Refused, Server } from "./server.js";
import { Story } from "./story.js";
import { clock } from "./words.js";

const REFRESH_MS = 5000; // at least; heartbeats are not in the feed, so deadlines are read anew
const SESSIONS_PER_MS = 0.5; // and longer with many: 10,000 every 20 s
const LONGEST_PAUSE_MS = 8000;
const BACKFILL = 1000;

const server = new Server();
const fleet = new Fleet();
const acts = { stop: askToStop, end: endRun };
const open = (session) => showDetails(session, fleet.sessions.has(session.id) ? acts : null);
const runs = new Runs(fleet, server, { ...acts, open });
const story = new Story(fleet, open);
const chart = new Chart();
const state = document.getElementById("state");
const forget = document.getElementById("forget");

// --- what is seen ---

let drawing = false;
let streaming = false;
let trouble = null; // what to say while the server cannot be heard or cannot answer
let heard = null; // when it last answered (ms)

/** Draws soon, and once for all that came until then. */
function changed() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => requestAnimationFrame(() => { drawing = false; draw(); }), 100);
}

function draw() {
  const now = server.now();
  runs.update();
  story.update();
  showCounts(fleet, now);
  chart.update(fleet, now);
  tell();
}

function tell() {
  const since = heard === null ? "" : `, shown as of ${clock(heard)}`;
  const [name, words] = trouble ? ["away", trouble + since] : streaming ? ["live", "Live"] : ["connecting", "Connecting"];
  state.dataset.state = name;
  if (state.textContent !== words) state.textContent = words;
}

/** Notes how a call went; what to say of an error. */
function note(error = null) {
  if (error === null) [trouble, heard] = [null, Date.now()];
  else if (error instanceof Refused) trouble = error.status === 503 ? "The store is away" : error.message;
  else trouble = "The server is away";
  tell();
}

// --- the key ---

let unlocking = null;

/** Returns once the server takes our key (or wants none); asks for one if need be. One question at a time. */
function unlock() {
  unlocking ??= knock().finally(() => { unlocking = null; });
  return unlocking;
}

async function knock() {
  for (let pause = 500; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
    try {
      await tryKey();
      break;
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        server.key = null;
        await askKey(async (key) => {
          if (!/^[\x21-\x7e]+$/.test(key)) throw new Error("A key has no spaces or special characters.");
          server.key = key;
          try {
            await tryKey();
          } catch (refused) {
            if (!(refused instanceof Refused) || refused.status !== 401) return; // the key may be right
            server.key = null;
            throw new Error("The tracker does not know this key.");
          }
        });
        break;
      }
      note(error);
      await sleep(pause);
    }
  }
  forget.hidden = server.key === null;
}

async function tryKey() {
  document.body.dataset.scope = (await server.mayWrite()) ? "write" : "read";
}

forget.addEventListener("click", () => {
  server.key = null;
  location.reload();
});

// --- what happens ---

/** Follows the event stream for ever, from where it was left. */
async function follow() {
  let position;
  let pause = 0;
  for (;;) {
    try {
      for await (const event of server.events(position, new AbortController().signal)) {
        pause = 0;
        if (event.id) position = event.id;
        if (event.type === "open") opened();
        else if (event.type === "reset") lost();
        else if (event.type.startsWith("session.")) fleet.add(JSON.parse(event.data));
        changed();
      }
    } catch (error) {
      if (error instanceof Refused && error.status === 401) await unlock();
      else if (error instanceof Refused && error.status === 400) position = undefined;
      else note(error);
    }
    streaming = false;
    tell();
    pause = Math.min(Math.max(500, 2 * pause), LONGEST_PAUSE_MS);
    await sleep(pause * (0.5 + Math.random()));
  }
}

function opened() {
  streaming = true;
  refresh().then(backfill, () => {});
}

/** The feed no longer held where we were: list anew. */
function lost() {
  fleet.gap(server.now());
  refresh().catch(() => {});
}

let filled = false;

/** What happened before we came, once. */
async function backfill() {
  if (filled) return;
  filled = true;
  try {
    const { events } = await server.call("GET", "/events", { query: { last: BACKFILL } });
    // Not by their ids: with several shards these also tell where a reader is in the others.
    const change = (event) => `${event.session.id} ${event.type} ${event.at}`;
    const known = new Set(fleet.events.map(change));
    const from = events.length < BACKFILL ? -Infinity : Date.parse(events[0].at);
    fleet.backfill(events.filter((event) => !known.has(change(event))), from);
  } catch {
    filled = false; // with the next stream
  }
  changed();
}

let refreshing = null;

/** Reads sessions and counts anew; callers meanwhile share one reading. */
function refresh() {
  refreshing ??= read().finally(() => { refreshing = null; });
  return refreshing;
}

async function read() {
  const begun = server.now() - 2000; // for the clock's blur
  try {
    const [[sessions, more], stats] = await Promise.all([server.sessions(MOST_SESSIONS), server.call("GET", "/stats")]);
    fleet.stats = stats;
    fleet.replace(sessions, more, begun);
    note();
  } catch (error) {
    note(error);
    if (error instanceof Refused && error.status === 401) unlock();
    throw error;
  } finally {
    changed();
  }
}

async function keepFresh() {
  for (;;) {
    await sleep(Math.max(REFRESH_MS, fleet.sessions.size / SESSIONS_PER_MS));
    if (!document.hidden) await refresh().catch(() => {});
  }
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh().catch(() => {}); });

// --- what may be done ---

const named = (session) => session.taskId ?? session.id;

async function askToStop(session) {
  await confirm("Ask this run to stop?", `${named(session)} learns of it with its next heartbeat.`, "Ask it to stop", async () => {
    const { updated } = await server.call("PUT", `/${session.id}/stop`);
    if (!updated) throw new Error("It has ended meanwhile.");
  });
}

async function endRun(session) {
  await confirm("End this session?", `${named(session)} is no longer tracked from then on; the run itself is not stopped.`, "End it", async () => {
    const { deleted } = await server.call("DELETE", `/${session.id}`);
    if (!deleted) throw new Error("It has ended meanwhile.");
  });
}

function sleep(ms) {
  return new Promise((resolve) => { setTimeout(resolve, ms); });
}

draw();
await unlock();
refresh().catch(() => {});
follow();
keepFresh();
setInterval(() => { if (!document.hidden) draw(); }, 1000);
