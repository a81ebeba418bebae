"""What deploy/ gives to Prometheus and Grafana names metrics and labels that the programs have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client import Metric

from piecework.relay.metrics import RelayMetrics
from piecework_node.metrics import Metrics
from piecework_node.runtime.faults import Code
from piecework_protocol.errors import Reason
from piecework_protocol.states import JobState

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
NAME: Final = re.compile(r"\b(?:piecework_\w+|up)\b(\{[^}]*\})?")
LABEL: Final = re.compile(r"(\w+)=~?\"([^\"]*)\"")
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
    """What an expression names that the worker does not have."""
    found: list[str] = []
    for match in NAME.finditer(expression):
        name = match.group().partition("{")[0]
        if name not in known:
            found.append(f"no metric {name}")
            continue
        for label, _ in LABEL.findall(match.group(1) or ""):
            if label not in known[name] | OF_PROMETHEUS:
                found.append(f"{name} has no label {label}")
    return found if NAME.search(expression) else ["it names no metric"]


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_expression_names_what_the_worker_has(expression: str) -> None:
    assert not faults(expression, registry())


@pytest.mark.parametrize(
    "expression",
    ["piecework_redy == 0", 'piecework_fault{kode="x"} == 1', "piecework_jobs == 1", "1 > 0"],
)
def test_a_name_that_the_worker_does_not_have_is_noticed(expression: str) -> None:
    assert faults(expression, registry())


def test_the_state_of_a_failed_transaction_is_spelt_as_the_worker_spells_it() -> None:
    from piecework_node.journal.records import TxState

    states = {s for e in expressions() for s in re.findall(r'state="(\w+)"', e)}
    assert states and states <= {state.value for state in TxState}


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
