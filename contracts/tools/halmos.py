#!/usr/bin/env python3
"""Prove symbolic/: every `check_` must hold, and for every `fails_` halmos must find a
counterexample.

Needs halmos beside this Python (`make halmos` makes that environment) and the node_modules of
tools/check.sh. `halmos.py CONTRACT` proves one contract, and `--short` leaves out those of LONG.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ("EscrowSymbolic", "DisputesSymbolic")
# They take half a minute to three minutes of two cores each, the others a few seconds.
LONG = ("close", "settle")
HALMOS = Path(sys.executable).parent / "halmos"
SOLVER = Path(__file__).parent / "solve.py"
# The longest query takes seconds. The limit is for a machine that others use.
QUERY_LIMIT_MS = 600_000
PASSED, COUNTEREXAMPLE = 0, 1


def outcomes(contract: str, prefix: str, left_out: tuple[str, ...]) -> dict[str, int]:
    """halmos' exit code of each function that starts with `prefix`, but for those left out."""
    environment = {
        **os.environ,
        "FOUNDRY_PROFILE": "halmos",
        "PATH": f"{ROOT / 'node_modules' / '.bin'}:{os.environ['PATH']}",
    }
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [str(HALMOS), "--root", str(ROOT), "--forge-build-out", "out-halmos"]
        command += ["--contract", contract, "--match-test"]
        command += [f"^{prefix}(?!({'|'.join(left_out)})\\()" if left_out else f"^{prefix}"]
        command += ["--solver-command", f"{sys.executable} -P {SOLVER}"]
        command += ["--solver-timeout-assertion", str(QUERY_LIMIT_MS)]
        command += ["--json-output", str(report)]
        # Of a twin one counterexample is enough, and a proof has none.
        command += ["--early-exit"]
        # The path of solc in foundry.toml counts from here.
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if not report.is_file():
            raise SystemExit("halmos wrote no report")
        results = json.loads(report.read_text())["test_results"]
    return {test["name"]: test["exitcode"] for tests in results.values() for test in tests}


def main() -> int:
    """1 when a proof fails, or when a negated one holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contracts", nargs="*", metavar="CONTRACT", help="of symbolic/")
    parser.add_argument("--short", action="store_true", help="what ends within seconds")
    wanted = parser.parse_args()
    left_out = LONG if wanted.short else ()
    return max([prove(contract, left_out) for contract in wanted.contracts or CONTRACTS])


def prove(contract: str, left_out: tuple[str, ...]) -> int:
    """1 when a proof of a contract fails, or when a negated one holds."""
    proofs, twins = (outcomes(contract, prefix, left_out) for prefix in ("check_", "fails_"))
    wrong = [f"{name} does not hold" for name, code in proofs.items() if code != PASSED]
    wrong += [
        f"{name} has no counterexample: the proof beside it is empty"
        for name, code in twins.items()
        if code != COUNTEREXAMPLE
    ]
    if {name.removeprefix("check_") for name in proofs} != {
        name.removeprefix("fails_") for name in twins
    }:
        wrong.append("proofs and negated twins are not the same functions")
    for problem in wrong:
        print(problem, file=sys.stderr)
    print(f"{contract}: {len(proofs)} proofs, {len(twins)} negated twins")
    return 1 if wrong or not proofs else 0


if __name__ == "__main__":
    sys.exit(main())
