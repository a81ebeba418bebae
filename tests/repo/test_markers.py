"""Which tests have which mark. `make quick` leaves out the marked ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.repo.test_documents import ROOT
from tests.support.starting_tests import unmarked

HELPER = """
import sys
from tests.support.system import commands
PROGRAM = (sys.executable, "-P", "-m", "piecework")
async def run(): await start(*PROGRAM)
class Running:
    def __init__(self): self.run = run
TIMEOUT_S = 10
"""
CONFTEST = """
import pytest
from tests.helper import Running
@pytest.fixture
def running(): return Running()
"""
TESTS = """
import pytest
from tests import helper
from tests.helper import TIMEOUT_S, run
from piecework.processes import Role
async def test_by_what_it_imports(): await run()
async def test_by_a_module(): await helper.run()
async def test_by_itself(): await start(sys.executable, "-P", script)
def test_by_a_fixture(running): assert running
async def test_by_what_is_shipped(): await Role.start("chain", [])
def test_of_a_number(): assert TIMEOUT_S
@pytest.mark.process
async def test_with_the_mark(): await run()
"""


def test_every_test_that_starts_a_program_is_marked() -> None:
    found = unmarked((ROOT / "tests").rglob("*.py"), ROOT)
    assert not found, "mark these `process`:\n" + "\n".join(found)


@pytest.mark.parametrize("is_marked", [False, True])
def test_the_rule_sees_what_starts_a_program(tmp_path: Path, *, is_marked: bool) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    mark = "pytestmark = [pytest.mark.process]\n" if is_marked else ""
    for name, text in (("helper", HELPER), ("conftest", CONFTEST), ("test_it", TESTS + mark)):
        (folder / f"{name}.py").write_text(text)
    ways = ("a_fixture", "a_module", "itself", "what_is_shipped", "what_it_imports")
    expected = [] if is_marked else [f"tests/test_it.py: test_by_{way}" for way in ways]
    assert unmarked(folder.rglob("*.py"), tmp_path) == expected
