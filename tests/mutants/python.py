"""Mutation testing of the modules that decide about money, with mutmut.

mutmut maps a file to its module by its path and knows `src/` as the only prefix, so the packages
are copied side by side into `build/mutants/src`. Nothing in the checkout is changed. Every run
begins anew, as mutmut would keep the verdict on a mutant whose tests have changed since.

    python -m tests.mutants.python [MAX_CHILDREN]
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGE = ROOT / "build" / "mutants"
PACKAGES = (
    "protocol/piecework_protocol",
    "model/piecework_model",
    "node/piecework_node",
    "piecework",
)
MUTATED = (
    "src/piecework_protocol/ledger.py",
    "src/piecework_protocol/merkle.py",
    "src/piecework_node/jobs/admission.py",
    "src/piecework_node/settlement/policy.py",
)
TESTS = (
    "tests/unit/protocol/test_ledger.py",
    "tests/unit/protocol/test_merkle.py",
    "tests/unit/node/test_admission.py",
    "tests/unit/node/test_admission_edges.py",
    "tests/property/node/test_admission.py",
    "tests/property/protocol/test_ledgers.py",
    "tests/unit/node/test_settlement_policy.py",
    "tests/conformance",
)
MUTMUT = (sys.executable, "-P", "-m", "mutmut")
CONFIG = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = {mutated}
pytest_add_cli_args = ["-q"]
pytest_add_cli_args_test_selection = {tests}
# A message's words are no behaviour.
do_not_mutate_patterns = [
    "raise Refusal", "return Refusal", "message =",
    "raise ProtocolViolation", "raise MalformedInput",
]
timeout_multiplier = 3.0
"""


def environment() -> dict[str, str]:
    """What mutmut runs with. It finds the tests in the stage, whatever folder it is started in."""
    return {**os.environ, "PYTHONPATH": str(STAGE)}


def stage() -> None:
    """Copy packages and tests, without the results of an earlier run."""
    shutil.rmtree(STAGE, ignore_errors=True)
    for package in PACKAGES:
        _copy(ROOT / package, STAGE / "src" / Path(package).name)
    _copy(ROOT / "tests", STAGE / "tests")
    pytest_table = re.search(
        r"^\[tool\.pytest\.ini_options\]\n.*?(?=^\[)",
        (ROOT / "pyproject.toml").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    if pytest_table is None:
        raise SystemExit("pyproject.toml has no [tool.pytest.ini_options]")
    config = CONFIG.format(mutated=json.dumps(MUTATED), tests=json.dumps(TESTS))
    (STAGE / "pyproject.toml").write_text(pytest_table.group() + config)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.db"))


def report() -> None:
    """Print the survivors and the score. A mutant that no chosen test reaches has survived."""
    listed = subprocess.run(
        [*MUTMUT, "results", "--all", "true"],
        cwd=STAGE,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    verdicts = dict(re.findall(r"^\s*(\S+): (.+)$", listed.stdout, re.MULTILINE))
    alive = sorted(name for name, said in verdicts.items() if said in {"survived", "no tests"})
    for name in alive:
        print(f"survived  {name}")
    print(f"See one: cd {STAGE.relative_to(ROOT)} && python -m mutmut show NAME")
    print(f"python: {len(verdicts) - len(alive)} of {len(verdicts)} mutants killed")


def main() -> int:
    """Stage, run, report."""
    children = sys.argv[1] if len(sys.argv) > 1 else "2"
    stage()
    ran = subprocess.run(
        [*MUTMUT, "run", "--max-children", children], cwd=STAGE, env=environment(), check=False
    )
    report()
    return ran.returncode


if __name__ == "__main__":
    raise SystemExit(main())
