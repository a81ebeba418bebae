"""What is installed, from where, and how it is started."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.repo.test_documents import ROOT, sources

# What can only be found from the root of the checkout: it is not part of an installation.
FROM_THE_CHECKOUT = ("tests.", "bench.")
UNSAFE_START = re.compile(r"python[\d.]*\"?,? \"?-m\"?,? \"?(?P<module>[\w.]+)")
STARTED_BY_TEXT = ("docker-compose.yml", "Makefile", "Dockerfile", ".ci/run")


def unsafe_starts(path: Path) -> list[str]:
    """Where a Python file starts an installed module as a child without `-P`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if not isinstance(node, ast.Tuple | ast.List | ast.Call):
            continue
        items = node.args if isinstance(node, ast.Call) else node.elts
        words = [i.value if isinstance(i, ast.Constant) else "" for i in items]
        for before, option, module in zip(words, words[1:], words[2:], strict=False):
            installed = isinstance(module, str) and not module.startswith(FROM_THE_CHECKOUT)
            if option == "-m" and before != "-P" and installed:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {module}")
    return found


def test_every_child_process_ignores_the_modules_of_the_current_folder() -> None:
    hostile = ROOT / "tests" / "integration" / "packaging" / "test_hostile_folder.py"
    files = [*sources(), *(ROOT / "tests").rglob("*.py")]
    found = [line for path in files if path != hostile for line in unsafe_starts(path)]
    assert not found, "start these with -P: " + ", ".join(found)
    # The rule sees what it is about: a file that does it on purpose, to show what would happen.
    assert len(unsafe_starts(hostile)) == 1


@pytest.mark.parametrize("name", STARTED_BY_TEXT)
def test_every_program_of_a_script_or_a_container_ignores_the_current_folder(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not [found["module"] for found in UNSAFE_START.finditer(text)]
