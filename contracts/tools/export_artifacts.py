#!/usr/bin/env python3
"""Write contracts/artifacts/*.json from forge's output, or check (`--check`) that they are current.

Plain Python, no dependencies. Run `forge build` first. Users and the Python packages read only the
artifacts; `sourceHash` lets a test without a compiler see that a source changed and the artifacts
did not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ("Escrow", "WorkerRegistry", "EvidenceVerifier", "Disputes", "TestToken")
# What decides the bytecode besides the sources: compiler settings, and the versions of solc and
# OpenZeppelin.
SETTINGS = ("foundry.toml", "package.json")


def source_hash(root: Path = ROOT) -> str:
    """sha256 over `path NUL sha256(content)` of every source and settings file, sorted by path;
    hex."""
    paths = sorted(
        [*(p.relative_to(root) for p in root.glob("src/**/*.sol")), *(Path(s) for s in SETTINGS)]
    )
    digest = hashlib.sha256()
    for path in paths:
        digest.update(
            path.as_posix().encode() + b"\0" + hashlib.sha256((root / path).read_bytes()).digest()
        )
    return digest.hexdigest()


def artifact(name: str, root: Path = ROOT) -> dict[str, Any]:
    """The artifact of one contract out of forge's `out/`; `SystemExit` when it was not built."""
    built = root / "out" / f"{name}.sol" / f"{name}.json"
    if not built.is_file():
        raise SystemExit(f"{built.relative_to(root)} is missing: run forge build first")
    out = json.loads(built.read_text())
    metadata = out["metadata"]
    return {
        "contract": name,
        "sourceHash": source_hash(root),
        "compiler": {
            "version": metadata["compiler"]["version"],
            "evmVersion": metadata["settings"]["evmVersion"],
            "optimizerRuns": metadata["settings"]["optimizer"]["runs"],
            "viaIR": metadata["settings"].get("viaIR", False),
        },
        "abi": out["abi"],
        "bytecode": out["bytecode"]["object"],
        "deployedBytecode": out["deployedBytecode"]["object"],
        "immutableReferences": _spans(out["deployedBytecode"].get("immutableReferences", {})),
    }


def _spans(references: dict[str, list[dict[str, int]]]) -> list[dict[str, int]]:
    """Where the deployed code holds immutables, by position. The node ids are left out: they change
    with the build, and who compares code needs only the places."""
    return sorted(
        (
            {"start": r["start"], "length": r["length"]}
            for spans in references.values()
            for r in spans
        ),
        key=lambda span: span["start"],
    )


def render(value: dict[str, Any]) -> str:
    """Stable text: the ABI one entry a line, so that a diff shows what changed."""
    abi = ",\n  ".join(json.dumps(entry, sort_keys=True) for entry in value["abi"])
    lines = [
        f" {json.dumps(key)}: " + (f"[\n  {abi}\n ]" if key == "abi" else json.dumps(item))
        for key, item in value.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail when an artifact is stale"
    )
    check = parser.parse_args().check
    stale = []
    for name in CONTRACTS:
        path = ROOT / "artifacts" / f"{name}.json"
        text = render(artifact(name))
        if path.is_file() and path.read_text() == text:
            continue
        if check:
            stale.append(path.name)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    if stale:
        print(
            f"stale artifacts: {', '.join(stale)}; run contracts/tools/export_artifacts.py",
            file=sys.stderr,
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
