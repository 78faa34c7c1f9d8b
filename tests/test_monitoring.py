"""What operators load and read about metrics, dashboard, alerts and the table, is held to a real scrape."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.api.conftest import running
from tests.scrape import Scrape
from tracker.api.routes import OPERATIONS
from tracker.settings import Settings

ROOT = Path(__file__).parent.parent
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS: list[tuple[str, str]] = [
    (target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]
]

FUNCTIONS = {"avg", "count", "histogram_quantile", "increase", "max", "min", "rate", "sum", "topk"}
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
CLAUSE = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
OF_PROMETHEUS = {"job", "instance"}
"""Labels that every sample gets when it is scraped."""


@pytest.fixture(scope="module")
def labels_by_name() -> dict[str, set[str]]:
    """The labels of each sample name in a scrape in which everything has happened once, and those of Prometheus."""
    seen = asyncio.run(busy_scrape())
    found: dict[str, set[str]] = {"up": {*OF_PROMETHEUS}}
    for name, labels, _ in seen.samples():
        found.setdefault(name, {*OF_PROMETHEUS}).update(labels)
    return found


async def busy_scrape() -> Scrape:
    async with running(Settings(sweep_interval_seconds=60)) as api:
        await api.create(taskId="t1")
        await api.put("/heartbeat/t1")
        await api.store.sweeper.sweep()
        return Scrape((await api.client.get("/metrics")).text)


class Query:
    """As much of a PromQL expression as names things: metrics, their labels in braces and in clauses, functions."""

    def __init__(self, expression: str) -> None:
        plain = re.sub(r'"[^"]*"', '""', expression)
        assert plain.count("(") == plain.count(")"), expression
        assert plain.count("{") == plain.count("}"), expression
        self.grouped = {label.strip() for found in CLAUSE.findall(plain) for label in found.split(",") if label.strip()}
        plain = re.sub(r"\[[^\]]*\]", "", CLAUSE.sub(" ", plain))
        self.selectors = [
            (name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)))
            for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}", plain)
        ]
        rest = re.sub(r"\{[^}]*\}", "", plain)
        words = [(match[1], bool(match[2])) for match in re.finditer(r"(?<![\w.$])([a-zA-Z_:][\w:]*)(\s*\()?", rest)]
        self.functions = {word for word, called in words if called}
        self.metrics = {word for word, called in words if not called and word not in WORDS}


def test_the_parser_finds_what_an_expression_names() -> None:
    query = Query(
        'topk(10, sum by (le, a) (rate(m_bucket{x="{y}", z!~"(.*"}[$__rate_interval]))) / on () n_total > 1e3 and p'
    )
    assert query.metrics == {"m_bucket", "n_total", "p"}
    assert query.selectors == [("m_bucket", {"x", "z"})]
    assert query.grouped == {"le", "a"}
    assert query.functions == {"topk", "sum", "rate"}


def hold(expression: str, told: str, known: dict[str, set[str]]) -> None:
    """Every name in an expression exists, and so does every label that the text about it shows."""
    query = Query(expression)
    assert query.metrics, expression
    assert query.metrics <= known.keys(), f"no such metric: {query.metrics - known.keys()}"
    for name, labels in query.selectors:
        assert labels <= known[name], f"{name} has no {labels - known[name]}"
    has = set.union(*(known[name] for name in query.metrics))
    assert query.grouped <= has, expression
    assert query.functions <= FUNCTIONS, expression
    shown = set(re.findall(r"\{\{\s*(?:\$labels\.)?([a-z]\w*)\s*\}\}", told))
    if query.grouped or re.search(r"\b(?:sum|max|min|avg|count)\b", expression):
        assert shown <= query.grouped, f"{shown - query.grouped} is not kept by {expression}"
    assert shown <= has


@pytest.mark.parametrize(("expression", "legend"), TARGETS)
def test_the_dashboard_shows_what_there_is(expression: str, legend: str, labels_by_name: dict[str, set[str]]) -> None:
    hold(expression, legend, labels_by_name)
    assert set(re.findall(r"\$(\w+)", expression)) <= {"job", "__rate_interval"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_watches_what_there_is(rule: dict[str, Any], labels_by_name: dict[str, set[str]]) -> None:
    hold(rule["expr"], " ".join(rule["annotations"].values()), labels_by_name)


def test_the_alerts_are_rules_as_prometheus_takes_them() -> None:
    assert list(ALERTS) == ["groups"]
    assert all(group.keys() == {"name", "rules"} for group in ALERTS["groups"])
    assert len({rule["alert"] for rule in RULES}) == len(RULES) > 5
    for rule in RULES:
        assert rule.keys() | {"for"} == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"[A-Z]\w+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"].keys() <= {"summary", "description"}
        assert rule["annotations"]["summary"]


def test_an_alert_that_names_a_route_names_one_that_there_is() -> None:
    texts = [rule["expr"] for rule in RULES] + [expression for expression, _ in TARGETS]
    routes = {route for text in texts for route in re.findall(r'route="([^"]*)"', text)}
    assert routes
    assert routes <= {operation.path for operation in OPERATIONS}


def squares(panel: dict[str, Any]) -> Iterator[tuple[int, int]]:
    place = panel["gridPos"]
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= DASHBOARD.keys()
    assert "id" not in DASHBOARD, "it is the importing Grafana's"
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert "tracker_build_info" in variables["job"]["definition"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = [square for panel in DASHBOARD["panels"] for square in squares(panel)]
    assert len(set(taken)) == len(taken), "panels overlap"
    assert max(x for x, _ in taken) < 24
    for panel in PANELS:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


async def test_the_table_of_metrics_is_what_a_scrape_has() -> None:
    seen = await busy_scrape()
    rows = set()
    for name, family in seen.families.items():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        full = name + "_total" if family.type == "counter" else name
        rows.add((full, family.type, frozenset(labels), family.documentation))
    table = re.findall(r"(?m)^\| `(\w+)` \| (\w+) \| (.*?) \| (.+) \|$", (ROOT / "docs/metrics.md").read_text())
    told = {(name, kind, frozenset(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in table}
    assert told - rows == set()
    assert rows - told == set()
    assert len(table) == len(told)
