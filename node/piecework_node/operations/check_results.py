"""What `piecework worker check` finds: a line each, with a stable code and what to do.

As JSON it has the shape of `linkerd check -o json`: `success`, and by category the checks with
`description`, `result`, `hint` and `error`. `code` is ours. Programs that know one know the other.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from piecework_node.runtime.faults import Fault


class Result(enum.Enum):
    """How a check ended, as linkerd spells it."""

    SUCCESS = "success"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class CheckItem:
    """One thing that is checked, and what is said of it where no condition of the worker fits."""

    category: str
    code: str
    remedy: str


ITEMS: Final[Mapping[str, CheckItem]] = {
    "settings": CheckItem(
        "home", "settings-bad", "Correct what the line names in config.toml or the environment"
    ),
    "deployment": CheckItem(
        "home", "deployment-bad", "Run piecework worker init with the market's deployment file"
    ),
    "operator key": CheckItem(
        "home", "key-unreadable", "Check PIECEWORK_PASSWORD, or restore operator.json"
    ),
    "signer": CheckItem(
        "home", "signer-unusable", "Start piecework signer with this operator's key"
    ),
    "certificate": CheckItem(
        "home", "certificate-bad", "Run piecework worker init again: it makes a missing one"
    ),
    "journal": CheckItem(
        "home", "journal-bad", "Do not start. Restore the disk, or make a new home"
    ),
    "chain": CheckItem("chain", "chain-unusable", "Check rpc_url, then run piecework chain status"),
    "clock": CheckItem("chain", "clock-unknown", "Correct what the line names, and check again"),
    "stake": CheckItem("chain", "stake-unknown", "Check rpc_url, then run this again"),
    "gas": CheckItem("chain", "gas-unknown", "Check rpc_url, then run this again"),
    "endpoint": CheckItem(
        "reach", "endpoint-undialable", "Set endpoint to the host:port that clients dial"
    ),
    "ports": CheckItem(
        "reach", "port-taken", "Stop the program that has the port, or change bind or admin_port"
    ),
    "relays": CheckItem("reach", "relays-unusable", "Correct relays, or remove what is away"),
    "indexes": CheckItem("reach", "indexes-unusable", "Correct indexes, or remove what is away"),
    "dialled": CheckItem(
        "reach", "dial-untried", "Correct what the line names, and check again after a minute"
    ),
    "owner": CheckItem(
        "machine", "owner-rules-unusable", "Remove that pause_… setting, or set gpu_number"
    ),
    "model": CheckItem("machine", "model-bad", "Run the command that the line names"),
    "device": CheckItem(
        "machine", "device-missing", "Check nvidia-smi, the driver, and PyTorch's CUDA build"
    ),
    "precision": CheckItem(
        "machine", "precision-unfit", 'Fewer slots, less planned_context, or precision = "auto"'
    ),
    "fast paths": CheckItem(
        "machine", "fast-paths-unknown", "Correct what the line names, and check again"
    ),
    "endpoints": CheckItem(
        "machine", "vllm-unusable", "Correct the server that the line numbers in vllm_endpoints"
    ),
    "audits": CheckItem(
        "machine", "audits-unknown", "Correct what the line names, and check again"
    ),
}
"""Every item, in the order of the lines."""
NOT_CHECKED: Final = "not-checked"
IN_USE: Final = "home-in-use"
CATEGORIES: Final = tuple(dict.fromkeys(item.category for item in ITEMS.values()))


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One finding. `code` and `remedy` are empty where all is well.

    card: of which card of several it is. Empty: of the worker, or of its only card.
    """

    item: str
    result: Result
    detail: str
    code: str = ""
    remedy: str = ""
    card: str = ""

    @property
    def good(self) -> bool:
        """Whether a start may go on in spite of it."""
        return self.result is not Result.ERROR

    @classmethod
    def of(cls, item: str, fault: Fault, result: Result) -> CheckResult:
        """Take a condition of the table that the running worker uses too."""
        return cls(item, result, fault.detail, fault.code.value, fault.condition.remedy)

    @classmethod
    def failed(cls, item: str, detail: str) -> CheckResult:
        """Take an error that is not a condition of the table."""
        known = ITEMS[item]
        return cls(item, Result.ERROR, detail, known.code, known.remedy)

    @classmethod
    def unchecked(cls, item: str) -> CheckResult:
        """An item that needs what an earlier one missed."""
        detail = "not checked, because an earlier check failed"
        return cls(item, Result.ERROR, detail, NOT_CHECKED, "Correct what failed above first")

    @classmethod
    def in_use(cls, item: str) -> CheckResult:
        """A home that another process holds, which tells nothing yet."""
        detail = "a worker that is still starting, or another command, has this home"
        return cls(item, Result.ERROR, detail, IN_USE, "Run this again in a minute")

    @property
    def name(self) -> str:
        """What a person calls it: the item, and the card if there are several."""
        return f"{self.item} of card {self.card}" if self.card else self.item

    @property
    def lines(self) -> tuple[str, ...]:
        """For a person: what was found, and below it what to do."""
        mark = {Result.SUCCESS: "ok", Result.WARNING: "warn", Result.ERROR: "FAIL"}[self.result]
        first = f"{mark:4}  {self.name:14} {self.detail}"
        if not self.code:
            return (first,)
        return first, f"{'':6}{self.code}: {self.remedy}"


def as_linkerd(findings: Sequence[CheckResult]) -> dict[str, Any]:
    """Return findings in the shape of `linkerd check -o json`."""
    return {
        "success": all(finding.good for finding in findings),
        "categories": [
            {"categoryName": category, "checks": list(map(_check, found))}
            for category, found in _by_category(findings)
        ],
    }


def _by_category(
    findings: Iterable[CheckResult],
) -> list[tuple[str, list[CheckResult]]]:
    sorted_in: dict[str, list[CheckResult]] = {category: [] for category in CATEGORIES}
    for finding in findings:
        sorted_in[ITEMS[finding.item].category].append(finding)
    return [(category, found) for category, found in sorted_in.items() if found]


def _check(finding: CheckResult) -> dict[str, str]:
    shown = {"description": finding.name, "result": finding.result.value}
    if finding.result is Result.SUCCESS:
        return {**shown, "detail": finding.detail}
    return {
        **shown,
        "error": finding.detail,
        "hint": finding.remedy,
        "code": finding.code,
    }
