// All there is to know of one session.

import { copyButton, element } from "./elements.js";
import { duration, moment } from "./words.js";

const time = (text) => text && moment(Date.parse(text));
const ROWS = [
  ["Task", (session) => session.taskId],
  ["Agent", (session) => session.agentId],
  ["Description", (session) => session.taskDescription],
  ["Progress", (session) => session.progress],
  ["Set off by", (session) => session.triggerType],
  ["Provider session", (session) => session.providerSessionId],
  ["Runner session", (session) => session.runnerSessionId],
  ["Runtime", (session) => session.runtimeInstanceId],
  ["Inbox message", (session) => session.inboxMessageId],
  ["Session", (session) => session.id],
  ["Started", (session) => time(session.startedAt)],
  ["Last heartbeat", (session) => time(session.lastHeartbeatAt)],
  ["Expires", (session) => time(session.expiresAt)],
  ["May be silent for", (session) => duration(session.ttlSeconds * 1000)],
  ["Asked to stop", (session) => time(session.stopRequestedAt)],
];
const COPIED = new Set(["Task", "Agent", "Provider session", "Runner session", "Runtime", "Inbox message", "Session"]);

/** Shows a session; `acts` ({ stop, end }) are offered while it lives. */
export function showDetails(session, acts) {
  const dialog = document.getElementById("details");
  dialog.querySelector("h2").textContent = session.taskId ?? "A run without a task";
  dialog.querySelector("dl").replaceChildren(
    ...ROWS.flatMap(([name, read]) => pair(name, read(session))),
    ...Object.entries(session.metadata).flatMap(([name, value]) => pair(name, value)),
  );
  const offer = (label, act, kind) => element("button", {
    type: "button", class: `write ${kind}`, on: { click: () => { dialog.close(); act(session); } },
  }, label);
  dialog.querySelector(".buttons").replaceChildren(
    element("button", { type: "button", on: { click: () => dialog.close() } }, "Close"),
    ...(acts ? [offer("Stop", acts.stop, ""), offer("End", acts.end, "danger")] : []),
  );
  dialog.showModal();
}

function pair(name, value) {
  if (value === null || value === undefined) return [];
  return [element("dt", {}, name), element("dd", {}, value, COPIED.has(name) ? copyButton(value, name.toLowerCase()) : null)];
}
