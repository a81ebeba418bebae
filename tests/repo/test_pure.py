"""The pure tests stay pure: `make quick` collects them without loading a tensor library."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from tests.repo.test_documents import ROOT
from tests.support.source_facts import facts_of

HEAVY = {"torch", "transformers", "safetensors", "triton"}
SOURCE_ROOTS = {
    "piecework": ROOT,
    "piecework_protocol": ROOT / "protocol",
    "piecework_model": ROOT / "model",
    "piecework_node": ROOT / "node",
    "tests": ROOT,
    "bench": ROOT,
}


def pure_folders() -> list[Path]:
    found = re.search(
        r"^PURE := \$\(wildcard ((?:.|\\\n)*?)\)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert found is not None
    return [ROOT / name for name in found[1].replace("\\\n", " ").split()]


@cache
def files_of(module: str) -> list[Path]:
    """The files that run when a module of ours is imported: its packages first."""
    names = module.split(".")
    root = SOURCE_ROOTS.get(names[0])
    if root is None:
        return []
    paths = [root.joinpath(*names[:count]) for count in range(1, len(names) + 1)]
    files = [path / "__init__.py" for path in paths] + [paths[-1].with_suffix(".py")]
    return [file for file in files if file.exists()]


@cache
def imported(file: Path) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """The tensor libraries and the files of ours that run when a file does."""
    modules = [module for _, module in facts_of(file).loaded]
    heavy = tuple(module for module in modules if module.partition(".")[0] in HEAVY)
    return heavy, tuple(dict.fromkeys(path for name in modules for path in files_of(name)))


def way_to_a_tensor_library(start: Path) -> list[str]:
    """The files from a test to the import, or nothing."""
    came_from: dict[Path, Path | None] = {start: None}
    waiting = [start]
    while waiting:
        file = waiting.pop()
        heavy, files = imported(file)
        if heavy:
            way = [heavy[0]]
            at: Path | None = file
            while at is not None:
                way.append(at.relative_to(ROOT).as_posix())
                at = came_from[at]
            return way[::-1]
        for found in files:
            if found not in came_from:
                came_from[found] = file
                waiting.append(found)
    return []


def test_what_is_imported_only_later_is_told_from_what_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport os\nfrom a.b import c\n"
        "if TYPE_CHECKING:\n    import torch\nelse:\n    import sys\n"
        "def f():\n    import triton\n"
    )
    assert facts_of(path).loaded == [
        (1, "typing"),
        (1, "typing.TYPE_CHECKING"),
        (2, "os"),
        (3, "a.b"),
        (3, "a.b.c"),
        (7, "sys"),
    ]


def test_no_pure_test_loads_a_tensor_library() -> None:
    """It would take each worker of `make quick` several seconds before the first test."""
    tests = [ROOT / "tests" / "conftest.py"]
    for folder in pure_folders():
        assert folder.is_dir(), folder
        tests += [*folder.rglob("test_*.py"), *folder.rglob("conftest.py")]
    assert len(tests) > 100
    found = [" → ".join(way) for test in tests if (way := way_to_a_tensor_library(test))]
    assert not found, "\n".join(found)
