"""Write the lock files beside this module: every distribution with its version and its hashes.

`make lock` runs it. uv resolves for every platform and for every Python that pyproject.toml allows,
held to the versions of constraints.txt. The files do not overlap, so that pip takes several.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / "requirements"
OLDEST_PYTHON: Final = "3.11"
TORCH: Final = re.compile(r"torch\b")
HALMOS: Final = ("halmos==0.3.3", "cvc5==1.4.2")
AGENTS: Final = {
    "newer": (
        "openai==3.57.0",
        "typesafe-sdk==0.7.5",
        "langchain-openai==1.7.4",
        "pydantic-ai-slim[openai]==2.68.0",
        "llm==0.36",
    ),
    # They need an OpenAI SDK of their own.
    "older": ("instructor==1.17.0", "litellm==1.110.2"),
    "aider": ("aider-chat==0.86.2",),
}
"""Clients that make agents runs, by environment."""
ADDITIONS: Final = (
    ("chain", "worker", (), "What the embedded chain needs beside a worker."),
    ("provenance", "client", ("gateway", "market"), "What C2PA credentials need beside a client."),
    (
        "postgres",
        "client",
        ("gateway", "market"),
        "What an index on PostgreSQL needs.",
    ),
)
"""Name, the file that it is installed with, further extras, and what it is for."""
HEADER: Final = """\
# {what}
# Written by make lock. Install with: {how}
"""
INSTALL: Final = "pip install --require-hashes"
ORDER: Final = ("client", "worker", "torch")
"""Which file is named first where two are installed together."""


def main() -> None:
    """Resolve, and write one file for each way to install."""
    client = _resolve(_requirements(["cli", "gateway", "market"]))
    wanted = _requirements(["worker", "console", "gateway", "market"])
    with_torch = _resolve(wanted)
    worker = _resolve(line for line in wanted if not TORCH.match(line))
    _write("client", "A client, a gateway, an index.", client)
    _write(
        "worker",
        "Every role but the embedded chain, without torch: its build differs by accelerator.",
        worker,
        beside="torch",
    )
    _write(
        "torch",
        "torch as the package index has it, with CUDA on Linux. Another build has other hashes.",
        _without(with_torch, worker),
        beside="worker",
    )
    _write_additions({"client": client, "worker": worker})
    _write("build", "What builds the wheel.", _resolve(_read_project()["build-system"]["requires"]))
    _write(
        "halmos",
        "The prover of the contracts, in an environment of its own: make halmos.",
        _resolve(HALMOS, constraints=None),
    )
    for name, clients in AGENTS.items():
        _write(
            f"agents-{name}",
            "Other people's clients, in an environment of their own: make agents.",
            _resolve(clients, constraints=None),
        )


def _write_additions(bases: dict[str, dict[str, str]]) -> None:
    """Write what an extra needs beside a client or a worker."""
    for name, base, extras, what in ADDITIONS:
        entries = _resolve(_requirements([name, *extras]))
        _write(name, what, _without(entries, bases[base]), beside=base)


def _requirements(extras: Iterable[str]) -> list[str]:
    """The lines of pyproject.toml for these extras, with the extras that they contain."""
    project = _read_project()["project"]
    lines: list[str] = list(project["dependencies"])
    waiting, seen = list(extras), set[str]()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for line in project["optional-dependencies"][extra]:
            inner = re.fullmatch(r"piecework\[(.*)\]", line)
            if inner is None:
                lines.append(line)
            else:
                waiting += inner[1].split(",")
    return sorted(set(lines))


def _read_project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _resolve(
    lines: Iterable[str], constraints: Path | None = ROOT / "constraints.txt"
) -> dict[str, str]:
    """Each distribution with its lines of a lock file."""
    held = () if constraints is None else ("--constraint", str(constraints))
    arguments = (
        *("--universal", "--generate-hashes", "--no-annotate", "--no-header", "--quiet"),
        *("--python-version", OLDEST_PYTHON, *held),
    )
    result = subprocess.run(
        [str(Path(sys.executable).parent / "uv"), "pip", "compile", *arguments, "-"],
        input="\n".join(lines),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=FOLDER,
    )
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", result.stdout.strip()):
        name = entry.partition("==")[0]
        # One distribution may have a version for each of several Pythons.
        found[name] = f"{found[name]}\n{entry}" if name in found else entry
    return found


def _without(entries: dict[str, str], others: dict[str, str]) -> dict[str, str]:
    return {name: entry for name, entry in entries.items() if name not in others}


def _write(name: str, what: str, entries: dict[str, str], beside: str | None = None) -> None:
    """Write a file. beside: the one that it is installed with."""
    files = [name] if beside is None else [name, beside]
    files.sort(key=lambda file: ORDER.index(file) if file in ORDER else len(ORDER))
    how = " ".join([INSTALL, *(f"-r requirements/{file}.lock" for file in files)])
    text = HEADER.format(what=what, how=how) + "\n".join(entries[key] for key in sorted(entries))
    (FOLDER / f"{name}.lock").write_text(text + "\n")


if __name__ == "__main__":
    main()
