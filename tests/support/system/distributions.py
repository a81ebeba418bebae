"""Which modules an installation of Piecework with certain extras brings, read from the metadata."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = canonicalize_name(PROJECT["name"])
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

FOR_DEVELOPERS = {"dev", "docs", "mutants"}
"""Extras of the checkout. No program of a user imports what they bring."""


def declared(extras: Iterable[str]) -> list[Requirement]:
    """What pyproject.toml asks for, with the extras that the named extras contain."""
    waiting, seen = list(extras), set[str]()
    found = [Requirement(text) for text in PROJECT["dependencies"]]
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in map(Requirement, EXTRAS[extra]):
            if canonicalize_name(requirement.name) == OURS:
                waiting += requirement.extras
            else:
                found.append(requirement)
    return found


def installed_with(extras: Iterable[str]) -> set[NormalizedName]:
    """The names of all distributions that come along, those that others need included."""
    waiting, found = declared(extras), set[NormalizedName]()
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, wanted) in seen or not _applies(requirement):
            continue
        seen.add((name, wanted))
        found.add(name)
        waiting += _needs(name, wanted)
    return found


def modules_of(names: Iterable[str]) -> set[str]:
    """The top-level modules of these distributions."""
    wanted = {canonicalize_name(name) for name in names}
    return {module for module, owners in _owners().items() if owners & wanted}


def modules_left_out(extras: Iterable[str]) -> set[str]:
    """The modules on this machine that an installation with these extras does not have."""
    present = installed_with(extras) | {OURS}
    return {module for module, owners in _owners().items() if not owners & present}


@cache
def _owners() -> dict[str, set[NormalizedName]]:
    return {
        module: {canonicalize_name(name) for name in names}
        for module, names in packages_distributions().items()
    }


def _needs(name: NormalizedName, extras: frozenset[str]) -> Iterator[Requirement]:
    try:
        lines = requires(name) or []
    except PackageNotFoundError:  # needed on another platform only
        return
    for requirement in map(Requirement, lines):
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras}
        ):
            requirement.marker = None
            yield requirement


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})
