"""What deploy/ gives to Prometheus and Grafana is PromQL, about metrics and labels of the programs.

A parser of PromQL reads every query. Where promtool is installed, it reads the rules too
(`tests/integration/packaging/test_promtool.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import promql_parser
import pytest
import yaml
from prometheus_client import Metric

from piecework.relay.metrics import RelayMetrics
from piecework_node import logs
from piecework_node.metrics import Metrics
from piecework_node.runtime.faults import Code
from piecework_node.settlement.transactions import TransactionTracker
from piecework_protocol.errors import Reason
from piecework_protocol.states import JobState
from tests.support.clock import FakeClock
from tests.support.node.fake_port import FakePort
from tests.support.node.harness import DOMAIN
from tests.support.node.memory_journal import MemoryJournal

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
DURATION: Final = re.compile(r"(?:\d+(?:ms|[smhdwy]))+")
OF_COUNTERS: Final = frozenset({"rate", "irate", "increase"})
COUNTED: Final = ("_total", "_bucket", "_count", "_sum")
OF_PROMETHEUS: Final = frozenset({"job", "instance"})


def registry() -> dict[str, frozenset[str]]:
    """Every sample of a worker and of a relay with the labels that it has."""
    metrics = Metrics()
    metrics.refused(Reason.BUSY)
    metrics.moved(JobState.PAID)
    metrics.transaction("settle", "failed")
    metrics.fault(Code.GAS_LOW.value, present=True)
    relay = RelayMetrics()
    relay.refused("worker_rate_total", 1)
    found: dict[str, frozenset[str]] = {"up": frozenset()}
    families: list[Metric] = [*metrics.registry.collect(), *relay.registry.collect()]
    for family in families:
        names = [family.name] if family.type != "counter" else [f"{family.name}_total"]
        if family.type == "histogram":
            names = [f"{family.name}_{part}" for part in ("bucket", "count", "sum")]
        labels_of = {label for sample in family.samples for label in sample.labels}
        for name in names:
            found[name] = frozenset(labels_of)
    return found


def shown_at_first() -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Every sample with its labels that a worker shows before anything happens."""
    metrics = Metrics()
    metrics.begin_card("0")
    TransactionTracker(
        MemoryJournal(DOMAIN),
        FakePort(),
        clock=FakeClock(),
        stuck_s=60,
        metrics=metrics,
        log=logs.silent(),
    )
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def rules() -> list[dict[str, Any]]:
    body = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    return [rule for group in body["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    body: dict[str, Any] = json.loads((DEPLOY / "grafana" / "worker.json").read_text())
    return body


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def faults(expression: str, known: dict[str, frozenset[str]]) -> list[str]:
    """What is wrong with an expression for a worker that has these samples."""
    try:
        tree = promql_parser.parse(expression)
    except ValueError as error:
        return [f"no PromQL: {error}"]
    selectors, found = list[Any](), list[str]()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)
        if isinstance(node, promql_parser.Call) and node.func.name in OF_COUNTERS:
            (asked,) = node.args
            if not asked.vector_selector.name.endswith(COUNTED):
                found.append(f"{node.func.name} of {asked.vector_selector.name}, no counter")

    promql_parser.walk(tree, visit)
    for selector in selectors:
        if selector.name not in known:
            found.append(f"no metric {selector.name}")
            continue
        for label in {matcher.name for matcher in selector.matchers.matchers}:
            if label not in known[selector.name] | OF_PROMETHEUS:
                found.append(f"{selector.name} has no label {label}")
    return found if selectors else ["it names no metric"]


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_expression_names_what_the_worker_has(expression: str) -> None:
    assert not faults(expression, registry())


@pytest.mark.parametrize(
    "expression",
    [
        "piecework_redy == 0",
        'piecework_fault{kode="x"} == 1',
        "piecework_jobs == 1",
        "1 > 0",
        "rate(piecework_jobs_total[5m]",
        "rate(piecework_jobs_total)",
        "rate(piecework_ready[5m]) > 0",
        "piecework_ready = 0",
    ],
)
def test_what_the_worker_does_not_have_or_is_no_promql_is_noticed(expression: str) -> None:
    assert faults(expression, registry())


def increases() -> list[tuple[str, frozenset[tuple[str, str]]]]:
    """The counters of a worker whose events alerts count, with the labels that they ask for."""
    found = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.Call) and node.func.name == "increase":
            selector = node.args[0].vector_selector
            asked = frozenset((m.name, m.value) for m in selector.matchers.matchers)
            found.append((selector.name, asked))

    for rule in rules():
        promql_parser.walk(promql_parser.parse(rule["expr"]), visit)
    return found


@pytest.mark.parametrize(("name", "asked"), increases())
def test_an_alert_sees_the_first_event_that_it_counts(
    name: str, asked: frozenset[tuple[str, str]]
) -> None:
    """A counter that begins at 1 has increased by nothing."""
    assert [labels for known, labels in shown_at_first() if known == name and asked <= labels]


def test_every_kind_of_transaction_is_counted_from_its_first_failure_on() -> None:
    from piecework_node.journal.records import TxKind

    shown = [dict(labels) for name, labels in shown_at_first() if "transactions" in name]
    assert {labels["kind"] for labels in shown} == {kind.value for kind in TxKind}
    assert {labels["state"] for labels in shown} == {"failed"}


def test_the_state_of_a_failed_transaction_is_spelt_as_the_worker_spells_it() -> None:
    from piecework_node.journal.records import TxState

    states = {s for e in expressions() for s in re.findall(r'state="(\w+)"', e)}
    assert states and states <= {state.value for state in TxState}


def test_every_rule_has_the_form_that_prometheus_reads() -> None:
    body = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    assert body.keys() == {"groups"}
    for group in body["groups"]:
        assert group.keys() == {"name", "rules"}
    for rule in rules():
        assert {"alert", "expr", "labels", "annotations"} <= rule.keys()
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert DURATION.fullmatch(rule.get("for", "0s")), rule["alert"]
        for template in rule["annotations"].values():
            assert template.count("{{") == template.count("}}")


def test_the_variables_of_the_dashboard_ask_for_what_the_worker_has() -> None:
    known = registry()
    queries = [v["query"] for v in dashboard()["templating"]["list"] if v["type"] == "query"]
    asked = [re.fullmatch(r"label_values\((\w+), (\w+)\)", query) for query in queries]
    assert asked
    for found in asked:
        assert found is not None and found[2] in known[found[1]] | OF_PROMETHEUS


def test_every_alert_has_a_severity_a_summary_and_a_remedy() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "remedy"}
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert used <= OF_PROMETHEUS | {"card", "code"}


def test_prometheus_reads_the_rules() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]


def test_the_panels_of_the_dashboard_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(numbers)) == len(numbers)
