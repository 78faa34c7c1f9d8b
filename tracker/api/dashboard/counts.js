// The numbers on top.

import { element } from "./elements.js";
import { mood } from "./runs.js";
import { count, duration } from "./words.js";

const list = document.getElementById("counts");

export function showCounts(fleet, now) {
  const sessions = [...fleet.sessions.values()];
  const agents = new Set(sessions.map((session) => session.agentId)).size;
  const quiet = sessions.filter((session) => mood(session, now) !== "well").length;
  const stats = fleet.stats;
  const rows = [
    ["Live", count(fleet.live), "live"],
    ["Agents", count(fleet.more && stats ? stats.agents : agents)],
    ["Going stale", count(quiet), quiet ? "stale" : ""],
    ["Oldest run", sessions.length ? duration(now - sessions.reduce((oldest, s) => Math.min(oldest, s.started), now)) : "–"],
    ["Ever started", stats ? count(stats.created) : "–"],
    ["Ended well", stats ? count(stats.ended.deleted) : "–"],
    ["Replaced, cleaned", stats ? count(stats.ended.replaced + stats.ended.cleaned) : "–"],
    ["Crashed", stats ? count(stats.ended.expired) : "–", stats?.ended.expired ? "expired" : ""],
  ];
  if (list.childElementCount !== rows.length) {
    list.replaceChildren(...rows.map(([name]) => element("div", {}, element("dt", {}, name), element("dd"))));
  }
  rows.forEach(([, value, kind = ""], position) => {
    const cell = list.children[position];
    cell.dataset.kind = kind;
    if (cell.lastElementChild.textContent !== value) cell.lastElementChild.textContent = value;
  });
}
