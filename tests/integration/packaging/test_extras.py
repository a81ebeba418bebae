"""What an installation promises, with only the libraries that its extras bring.

The other libraries are on this machine. An import hook says that they are not.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.system.distributions import EXTRAS, FOR_DEVELOPERS, ROOT, modules_left_out

pytestmark = pytest.mark.process

# Each extra, the packages that all work with it, and the parts of them that need more.
PROMISES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "": (
        ("piecework.base", "piecework.chain", "piecework.client", "piecework_protocol"),
        (
            "piecework.base.logs",
            "piecework.base.settings_file",
            "piecework.chain.dev",
            "piecework.client.gateway",
            "piecework.client.provenance",
            "piecework_protocol.generate",
        ),
    ),
    "cli": (
        (
            "piecework.base",
            "piecework.cli",
            "piecework.commands._common",
            "piecework.commands.client",
        ),
        ("piecework.base.settings_file",),
    ),
    "gateway": (
        ("piecework.client", "piecework.commands.gateway"),
        ("piecework.client.provenance",),
    ),
    "provenance": (("piecework.client", "piecework.commands.provenance"), ()),
    "console": (("piecework.commands._worker.console",), ()),
    "market": (
        ("piecework.market", "piecework.commands.market"),
        ("piecework.market.storage.postgres",),
    ),
    "postgres": (("piecework.market", "piecework.commands.market"), ()),
    "vllm": (
        ("piecework_node", "piecework.commands.worker", "piecework.commands.models"),
        ("piecework_node.engine.process",),
    ),
    "worker": (("piecework_node", "piecework_model", "piecework.commands.bench"), ()),
    "chain": (("piecework.chain", "piecework.commands.chain"), ()),
    "demo": (("piecework.demo", "piecework.commands.demo"), ()),
}
# The kernels for a GPU are written in it. The builds of torch for CUDA bring their version of it.
OPTIONAL = {"triton"}
WRITTEN_IN_TRITON = re.compile("^import triton", re.MULTILINE)
HIDE = """
import importlib, sys
from importlib.machinery import PathFinder
HIDDEN = {hidden!r}
class OnlyWhatIsInstalled(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in HIDDEN:
            return super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyWhatIsInstalled
"""
IMPORT_ALL = """
for name in {modules!r}:
    importlib.import_module(name)
print("all imported")
"""
RUN = """
sys.argv = ["piecework", *{arguments!r}]
from piecework.__main__ import main
main()
"""


def modules_in(package: str) -> list[str]:
    """Every module below a package, or the module itself, except the kernels for a GPU."""
    roots = [ROOT, *(ROOT / name for name in ("protocol", "model", "node"))]
    relative = Path(*package.split("."))
    found: list[str] = []
    for root in roots:
        files = [(root / relative).with_suffix(".py"), *(root / relative).rglob("*.py")]
        found += [_dotted(f.relative_to(root)) for f in files if _is_wanted(f)]
    assert found, package
    return [name for name in found if not name.endswith("__main__")]


def _is_wanted(file: Path) -> bool:
    return file.is_file() and not WRITTEN_IN_TRITON.search(file.read_text())


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def without(extra: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run a program that has only what the extra brings."""
    hidden = modules_left_out([extra] if extra else []) | OPTIONAL
    text = HIDE.format(hidden=hidden) + program
    return subprocess.run(
        [sys.executable, "-P", "-c", text],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def test_every_extra_promises_something() -> None:
    assert PROMISES.keys() == (EXTRAS.keys() - FOR_DEVELOPERS) | {""}


@pytest.mark.parametrize("extra", PROMISES)
def test_all_of_what_an_extra_promises_can_be_imported_with_it(extra: str) -> None:
    packages, more = PROMISES[extra]
    modules = sorted(
        name for package in packages for name in modules_in(package) if not name.startswith(more)
    )
    result = without(extra, IMPORT_ALL.format(modules=modules))
    assert result.stdout.strip() == "all imported", result.stderr


@pytest.mark.parametrize(
    ("extra", "arguments", "needs"),
    [
        ("", ["--help"], '"cli"'),
        ("cli", ["market", "start", "--deployment", "none", "--home", "{home}"], '"market"'),
        ("cli", ["chain", "dev", "--bare", "--port", "0"], '"chain"'),
        ("vllm", ["bench"], '"worker"'),
    ],
)
def test_a_command_without_its_extra_names_it_in_one_line(
    extra: str, arguments: Sequence[str], needs: str, tmp_path: Path
) -> None:
    typed = [argument.format(home=tmp_path) for argument in arguments]
    result = without(extra, RUN.format(arguments=typed))
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stderr.startswith("error: this needs the package "), result.stderr
    assert result.stderr.count("\n") == 1 and needs in result.stderr
