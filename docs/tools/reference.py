"""Write the reference pages from the code: settings, commands, metrics, errors, contracts.

    python -m docs.tools.reference            # write what differs
    python -m docs.tools.reference --check    # write nothing; exit code 1 if anything differs

The pages are committed, so that they can be read without a build. `make docs` writes them first,
and a test holds them to the code.
"""

from __future__ import annotations

import json
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "reference"
NOTES = tomllib.loads((Path(__file__).parent / "notes.toml").read_text(encoding="utf-8"))
"""What the code does not say: a sentence for each setting, refusal and error code."""
HEAD = "<!-- Generated from the code by `make reference`. Do not edit. -->\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def one_line(text: str | None) -> str:
    """A text without line breaks."""
    return " ".join((text or "").split())


def paragraph(text: str | None) -> str:
    """A text as a paragraph of our width."""
    return textwrap.fill(one_line(text), 100, break_long_words=False, break_on_hyphens=False)


def first_paragraph(text: str | None) -> str:
    """The first paragraph of a docstring, in one line."""
    return one_line((text or "").strip().split("\n\n")[0])


def _joined(parts: Iterable[str]) -> str:
    """The parts of a page, one empty line between them."""
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


# --- settings

SETTINGS_INTRODUCTION = """\
A setting comes from a flag, else from the environment, else from `config.toml` in the home
(`signer.toml` of a signer), else from its default. An unknown name is refused together with the
nearest name. In the environment this holds for every command and for every name that begins with
`PIECEWORK_`. A shared environment file may hold the names of all roles.

Amounts are numbers of tokens in quotes, with the unit as in `"0.2 USDC"` or with a decimal point as
in `"0.2"`. A whole number without a unit is refused, unless it is 0: it could be tokens or
[base units](../glossary.md#base-unit). Gas is a number of native coins, as in `"0.02"`.

Lists are written `a = ["x", "y"]` in the file and `x,y` in the environment.
"""


def settings_page() -> str:
    """Every setting of the worker, the client and the signer."""
    from piecework.base.environment import SHARED
    from piecework.client.config import ClientConfig
    from piecework.signer.config import SignerConfig
    from piecework_node.config import WorkerConfig

    parts = [
        HEAD,
        "# Settings\n",
        SETTINGS_INTRODUCTION,
    ]
    models: tuple[tuple[str, type[BaseModel]], ...] = (
        ("worker", WorkerConfig),
        ("client", ClientConfig),
        ("signer", SignerConfig),
    )
    for title, model in models:
        parts.append(f"\n## The {title}\n")
        parts.append(f"Environment: `PIECEWORK_{title.upper()}_` and the name in capitals.\n")
        rows = [
            (f"`{name}`", kind_of(schema), f"`{default_of(schema)}`", note(title, name, schema))
            for name, schema in model.model_json_schema()["properties"].items()
        ]
        parts.append(table(("name", "value", "default", "what it does"), rows))
    parts.append("\n## Other variables\n")
    parts.append("These are read from the environment and are not settings of one role.\n")
    others = [(f"`{name}`", about) for name, about in SHARED.items()]
    parts.append(table(("variable", "what it is"), others))
    return _joined(parts)


def note(role: str, name: str, schema: Mapping[str, Any]) -> str:
    """The sentence about a setting: ours, else the one in the code."""
    return one_line(NOTES["settings"].get(role, {}).get(name) or schema.get("description"))


def kind_of(schema: Mapping[str, Any]) -> str:
    """Type and bounds of a JSON schema, for a person."""
    options = schema.get("anyOf")
    if options:
        return " or ".join(kind_of(option) for option in options)
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "")
    if kind == "array":
        most = schema.get("maxItems")
        what = "tables" if "$ref" in schema.get("items", {}) else "text"
        return f"list of {what}" + (f", at most {most}" if most else "")
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "yes/no"}
    text = "not set" if kind == "null" else words.get(kind, kind)
    return text + bounds_of(schema)


def bounds_of(schema: Mapping[str, Any]) -> str:
    """The bounds of a number or a text."""
    words = (
        ("minimum", "from"),
        ("exclusiveMinimum", "above"),
        ("maximum", "to"),
        ("exclusiveMaximum", "below"),
    )
    bounds = [f"{word} {number(schema[key])}" for key, word in words if key in schema]
    if "maxLength" in schema:
        bounds.append(f"at most {schema['maxLength']} characters")
    return f", {' '.join(bounds)}" if bounds else ""


def number(value: float) -> str:
    """A bound; powers of two beyond a million are written as such."""
    for less in (0, 1):
        whole = int(value) + less
        if whole > 1 << 20 and whole & (whole - 1) == 0:
            return f"2^{whole.bit_length() - 1}" + (" - 1" if less else "")
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}"


def default_of(schema: Mapping[str, Any]) -> str:
    """The default as it stands in TOML."""
    if "default" not in schema:
        return "required"
    value = schema["default"]
    return "not set" if value is None else json.dumps(value)


# --- commands


def commands_page() -> str:
    """Every command with its arguments and options."""
    from piecework.cli import COMMANDS, parsed

    parts = [HEAD, "# Command line\n"]
    parts.append(
        "`piecework COMMAND --help` prints the same. Exit code 0: done. 1: it failed, with one\n"
        "line on stderr that begins with `error:`. 2: the command line is wrong.\n"
    )
    parts.append(
        "The password of a key comes from `PIECEWORK_PASSWORD`, from `--password-file`, or from\n"
        "the terminal. A home is `--home`, else the role's folder in `PIECEWORK_HOME`, else a\n"
        "folder for user data.\n"
    )
    for name, summary in COMMANDS.items():
        command = parsed(name)
        parts.append(f"\n## piecework {name}\n\n{paragraph(summary)}\n")
        children: Mapping[str, Any] = getattr(command, "commands", {})
        if not children or getattr(command, "invoke_without_command", False):
            parts.append(_command(f"piecework {name}", command))
        parts += _children(f"piecework {name}", children)
    return _joined(parts)


def _children(path: str, commands: Mapping[str, Any]) -> list[str]:
    parts = []
    for verb, child in commands.items():
        below: Mapping[str, Any] = getattr(child, "commands", {})
        if below:
            parts += _children(f"{path} {verb}", below)
            continue
        parts.append(f"\n### {path} {verb}\n")
        parts.append(_command(f"{path} {verb}", child))
    return parts


def _command(path: str, command: Any) -> str:
    usage = [path]
    rows = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            text = parameter.metavar or parameter.name.upper()
            shown = text if parameter.required else f"[{text}]"
            usage.append(shown if parameter.nargs == 1 else f"{shown}...")
            rows.append((f"`{text}`", "", one_line(parameter.help)))
        elif parameter.name not in ("help", "install_completion", "show_completion"):
            rows.append(_option(parameter))
    text = f"```text\n{' '.join(usage)} [OPTIONS]\n```\n\n{paragraph(command.help)}\n"
    return text + ("\n" + table(("option", "default", "what it does"), rows) if rows else "")


_VALUES = {"str": "text", "int": "number", "float": "number", "Path": "file"}


def _option(parameter: Any) -> tuple[str, str, str]:
    names = "`, `".join((*parameter.opts, *parameter.secondary_opts))
    annotation = parameter.type_descriptor.annotation
    value = "" if parameter.is_flag else _VALUES.get(annotation.__name__, annotation.__name__)
    default = parameter.default
    shown = "" if default in (None, False, "", ()) or callable(default) else f"`{default}`"
    words = one_line(parameter.help)
    if parameter.required:
        shown = "required"
    if parameter.envvar:
        words += f" Environment: `{parameter.envvar}`."
    if parameter.multiple:
        words += " Repeatable." if "epeatable" not in words else ""
    return f"`{names}` {value}".rstrip(), shown, words


# --- metrics


def metrics_page() -> str:
    """Every series that the servers show."""
    from piecework.client.gateway.metrics import GatewayMetrics
    from piecework.market.metrics import MarketMetrics
    from piecework.relay.metrics import RelayMetrics
    from piecework_node.metrics import Metrics

    parts = [HEAD, "# Metrics\n", "Prometheus series. Amounts are base units of the token.\n"]
    for title, where, holder in (
        ("worker", "`/metrics` on the admin port", Metrics()),
        ("gateway", "`/metrics` on its own port", GatewayMetrics()),
        ("index", "`/metrics` on its own port", MarketMetrics()),
        ("relay", "`/metrics` on `--metrics-port`", RelayMetrics()),
    ):
        parts.append(f"\n## The {title}\n\nServed at {where}.\n")
        parts.append(table(("series", "kind", "labels", "what it says"), series_of(holder)))
    return _joined(parts)


def series_of(holder: Any) -> list[tuple[str, str, str, str]]:
    """Name, kind, labels and help of each series in the holder's registry."""
    registry = getattr(holder, "registry", None) or holder._registry
    rows = []
    # prometheus_client has no public way from a registry to the label names of its collectors.
    for collector in registry._collector_to_names:
        (family,) = collector.describe()
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)
        rows.append((f"`{name}`", family.type, labels, one_line(family.documentation)))
    return rows


# --- errors


def errors_page() -> str:
    """Refusals, gateway errors and the exceptions of the SDK."""
    parts = [HEAD, "# Errors\n"]
    parts += [
        "## Refusals of a worker\n",
        (
            "A worker declines or ends a job with one of these. The name is\n"
            "`google.rpc.ErrorInfo.reason` on the wire, `error.reason.label` in the SDK and the "
            "label\n"
            "of `piecework_refusals_total`. A refusal moves no money.\n"
        ),
        reasons_table(),
        "## Faults of a worker\n",
        (
            "What is wrong with the surroundings of a worker. `worker check` finds them before a\n"
            "start, and the running worker finds them while it runs. The code is the label of\n"
            "`piecework_fault`. It stands in `/status`, in the log and in the refusal of a job. A\n"
            "fault ends only when the check that found it succeeds.\n"
        ),
        faults_table(),
        "## Errors of the gateway\n",
        (
            "The gateway answers in the shape of OpenAI: "
            '`{"error": {"message", "type", "param", "code"}}`.\n'
        ),
        table(
            ("status", "type", "code", "when", "what to do"),
            [tuple(str(cell) for cell in row) for row in NOTES["gateway"]["rows"]],
        ),
        "## Exceptions\n",
        (
            "Every error that Piecework raises on purpose derives from `PieceworkError`. The SDK\n"
            "raises these. `piecework.client.errors` has those that a program catches by name.\n"
        ),
        exceptions_table(),
    ]
    return _joined(parts)


def reasons_table() -> str:
    """Every `Reason`: its gRPC status, whether a retry may help, and what the client does."""
    from piecework.client.jobs.selection import AFTER_REFUSAL
    from piecework_protocol.errors import Reason

    rows = [
        (
            f"`{reason.name}`",
            reason.status.value,
            "yes" if reason.retryable else "no",
            NOTES["reasons"][reason.name],
            AFTER_REFUSAL[reason].value,
        )
        for reason in Reason
    ]
    head = ("reason", "gRPC status", "retry may help", "meaning", "what the client does")
    return table(head, rows)


def faults_table() -> str:
    """Every condition of the worker's surroundings, with what it stops and what to do."""
    from piecework_node.runtime.faults import CONDITIONS

    rows = [
        (
            f"`{code.value}`",
            condition.meaning,
            condition.stops.value,
            "after `chain_outage_s`" if condition.patient else "at once",
            condition.remedy,
        )
        for code, condition in CONDITIONS.items()
    ]
    return table(("code", "meaning", "what it stops", "counts", "what to do"), rows)


def exceptions_table() -> str:
    """The exceptions that a caller of the SDK can meet, in order of depth."""
    import piecework.chain.errors
    import piecework.client.errors
    import piecework_protocol.errors
    from piecework.base.errors import PieceworkError

    rows = []
    root = sys.modules[PieceworkError.__module__]
    others = (piecework_protocol.errors, piecework.client.errors, piecework.chain.errors)
    for module in (root, *(other for other in others if other is not root)):
        for value in vars(module).values():
            if not (isinstance(value, type) and issubclass(value, PieceworkError)):
                continue
            if value.__module__ == module.__name__:
                parent = value.__mro__[1].__name__
                name = f"`{module.__name__}.{value.__name__}`"
                rows.append((name, f"`{parent}`", first_paragraph(value.__doc__)))
    return table(("class", "derives from", "meaning"), rows)


# --- contracts


def contracts_page() -> str:
    """Functions, events and errors of the contracts, from the committed artifacts."""
    parts = [HEAD, "# Contracts: functions, events, errors\n"]
    parts.append(
        "The ABIs are in `contracts/artifacts/NAME.json`, as `{abi, bytecode}` like Hardhat's.\n"
        "The NatSpec comments in `contracts/src/interfaces` say what each function promises.\n"
    )
    for name in ("Escrow", "WorkerRegistry", "EvidenceVerifier", "Disputes"):
        artifact = json.loads((ROOT / "contracts" / "artifacts" / f"{name}.json").read_text())
        parts.append(f"\n## {name}\n")
        for kind, title, key in (
            ("function", "Functions", "selector"),
            ("event", "Events", "topic 0"),
            ("error", "Errors", "selector"),
        ):
            entries = [entry for entry in artifact["abi"] if entry["type"] == kind]
            rows = sorted((_signature(e), _identifier(e, kind)) for e in entries)
            parts.append(f"### {title} of {name}\n")
            parts.append(table((kind, key), rows))
    return _joined(parts)


def _canonical(parameter: Mapping[str, Any]) -> str:
    if parameter["type"].startswith("tuple"):
        members = ",".join(_canonical(c) for c in parameter["components"])
        return f"({members}){parameter['type'].removeprefix('tuple')}"
    return str(parameter["type"])


def _signature(entry: Mapping[str, Any]) -> str:
    words = []
    for parameter in entry["inputs"]:
        kind = parameter["type"]
        if kind.startswith("tuple"):
            struct = str(parameter.get("internalType", "")).removeprefix("struct ")
            kind = struct or kind
        indexed = " indexed" if parameter.get("indexed") else ""
        words.append(f"{kind}{indexed} {parameter['name']}".rstrip())
    return f"`{entry['name']}({', '.join(words)})`"


def _identifier(entry: Mapping[str, Any], kind: str) -> str:
    from piecework_protocol.types import keccak256

    text = f"{entry['name']}({','.join(_canonical(p) for p in entry['inputs'])})"
    digest = keccak256(text.encode())
    return f"`0x{(digest if kind == 'event' else digest[:4]).hex()}`"


# --- writing

_PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "commands.md": commands_page,
    "metrics.md": metrics_page,
    "errors.md": errors_page,
    "contracts.md": contracts_page,
}


def stale() -> list[str]:
    """The names of the pages that are not what the code says."""
    return [
        name
        for name, page in _PAGES.items()
        if not (PAGES / name).is_file() or (PAGES / name).read_text(encoding="utf-8") != page()
    ]


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or only compare them."""
    old = stale()
    for name in old:
        print(f"docs/reference/{name} {'differs' if '--check' in arguments else 'written'}")
        if "--check" not in arguments:
            PAGES.mkdir(parents=True, exist_ok=True)
            (PAGES / name).write_text(_PAGES[name](), encoding="utf-8")
    return 1 if old and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
