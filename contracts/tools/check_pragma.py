#!/usr/bin/env python3
"""Compile interfaces and libraries with the oldest compiler that their pragma allows.

They are what other contracts import, and those are not always compiled by our solc.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from release import ROOT, sources  # type: ignore[import-not-found]

OLDEST = "0.8.20"
PRAGMA = re.compile(r"^pragma solidity (.*);", re.MULTILINE)


def main() -> int:
    """1 when a file has another pragma or does not compile."""
    folders = [ROOT / "src" / "interfaces", ROOT / "src" / "libraries"]
    paths = sorted(path for folder in folders for path in folder.glob("*.sol"))
    problems = [
        f"{path.relative_to(ROOT)}: pragma is not >={OLDEST}"
        for path in paths
        if PRAGMA.findall(path.read_text()) != [f">={OLDEST}"]
    ]
    found: dict[str, str] = {}
    for path in paths:
        found |= sources(path.relative_to(ROOT).as_posix())
    request = {
        "language": "Solidity",
        "sources": {name: {"content": text} for name, text in found.items()},
        "settings": {"outputSelection": {"*": {"*": ["evm.bytecode.object"]}}},
    }
    command = [str(ROOT / "tools" / "solc"), "--standard-json", f"--package=solc-{OLDEST}"]
    ran = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, check=True
    )
    errors = json.loads(ran.stdout).get("errors", [])
    problems += [e["formattedMessage"] for e in errors if e["severity"] == "error"]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
