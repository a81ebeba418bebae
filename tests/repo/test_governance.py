"""The page about governance names every constant of the contracts and of the protocol."""

from __future__ import annotations

import re

import pytest

from piecework.chain.addresses import DisputeTerms
from piecework_protocol import disputes, limits
from tests.support.documents import ROOT

PAGE = (ROOT / "docs" / "governance.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]
SOURCES = ROOT / "contracts" / "src"
CONTRACTS = ("Disputes.sol", "Escrow.sol", "WorkerRegistry.sol")
"""Those that are deployed and decide. `EvidenceVerifier` has no constant of its own."""
CONSTANT = re.compile(
    r"^    u?int\d+ (?:public|private|internal) constant (\w+) = ([^;]+);$", re.MULTILINE
)
SECONDS = {"minutes": 60, "hours": 3600, "days": 86_400}


def value_of(text: str) -> int:
    """The number of a Solidity literal, or of a product of two."""
    if text == "type(uint96).max":
        return 2**96 - 1
    product = 1
    for factor in text.split(" * "):
        number, _, unit = factor.partition(" ")
        product *= int(number.replace("_", "")) * (SECONDS[unit] if unit else 1)
    return product


def constants(file: str) -> dict[str, int]:
    found = CONSTANT.findall((SOURCES / file).read_text())
    return {name: value_of(text) for name, text in found}


def row_of(name: str) -> list[str]:
    """The cells of the one row that names something."""
    found = [row for row in ROWS if f"`{name}`" in row]
    assert len(found) == 1, f"{name} stands in {len(found)} rows"
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def numbers_in(cell: str) -> set[int]:
    """The numbers of a cell: plain, as a duration, or 2^96 - 1."""
    found = {2**96 - 1} if "2^96 - 1" in cell else set()
    for digits, unit in re.findall(r"([\d,]+)(?: (minute|hour|day)s?\b)?", cell):
        number = int(digits.replace(",", "") or 0)
        found.add(number * (SECONDS[f"{unit}s"] if unit else 1))
    return found


@pytest.mark.parametrize("file", CONTRACTS)
def test_every_constant_of_a_contract_stands_on_the_page_with_its_value(file: str) -> None:
    known = constants(file)
    assert len(known) >= 4
    for name, value in known.items():
        cells = row_of(name)
        assert value in numbers_in(cells[1]), (name, value, cells)
        assert all(cells), f"{name}: who changes it, and how?"


def test_no_contract_that_decides_is_left_out() -> None:
    deployed = {file.name for file in SOURCES.glob("*.sol")} - {"TestToken.sol"}
    assert {name for name in deployed if constants(name)} == {*CONTRACTS}


def test_every_term_of_a_deployment_stands_on_the_page() -> None:
    interface = (SOURCES / "interfaces" / "IDisputes.sol").read_text()
    (body,) = re.findall(r"struct DisputeTerms \{(.*?)\}", interface, re.DOTALL)
    members = re.findall(r"(\w+);", body)
    assert len(members) == 9
    named = (*DisputeTerms.__dataclass_fields__, "min_stake", "unbonding_seconds")
    for name in (*members, *named):
        assert f"`{name}`" in PAGE, name


def test_every_limit_of_the_protocol_stands_on_the_page_with_its_value() -> None:
    known = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert len(known) > 50
    for name, value in known.items():
        assert value in numbers_in(row_of(name)[1]), (name, value)


def test_the_programs_numbers_of_disputes_are_those_of_the_contract() -> None:
    contract = constants("Disputes.sol")
    shared = {name: value for name, value in vars(disputes).items() if name in contract}
    assert len(shared) >= 4
    assert shared == {name: contract[name] for name in shared}
