"""What is installed, from where, and how it is started."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from piecework.base.explain import CONTAINING, EXTRAS
from tests.repo.test_documents import ROOT, sources
from tests.support.documents import pages
from tests.support.interpreter_starts import unsafe_starts
from tests.support.source_facts import facts_of
from tests.support.system import distributions
from tests.support.system.distributions import PROJECT, declared, installed_with, modules_of

UNSAFE_TEXT = re.compile(r"(?:python[\d.]*|\$\(PYTHON\))\"?,? \"?-[mc]\b")
SHIPPED = ("piecework", "piecework_model", "piecework_node", "piecework_protocol")
# Not declared: `make check` alone generates code; builds of torch for CUDA bring their own triton.
UNDECLARED = {"grpc_tools", "triton"}
# Each lock file with the extras that it serves together with the files that it goes with.
LOCKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "client": (("cli", "gateway", "market"), ()),
    "worker": (("worker", "console", "gateway", "market"), ("torch",)),
    "torch": (("worker",), ("worker",)),
    "chain": (("chain",), ("worker",)),
    "provenance": (("provenance",), ("client",)),
    "postgres": (("postgres",), ("client",)),
    "build": ((), ()),
}
OF_ITS_OWN = {"halmos", "agents-newer", "agents-older", "agents-aider"}
"""Locks of tools that run in an environment of their own, so their versions are not ours."""
NOT_IN_THE_IMAGE = {"provenance"}
"""Extras of no role: C2PA credentials are written by the owner of a client."""


# What starts something on purpose without `-P`, and how often.
ON_PURPOSE = {
    # It shows what would happen.
    "tests/integration/packaging/test_hostile_folder.py": 1,
    # A user's own program, beside the user's own modules.
    "tests/wheel/wheel_checks.py": 2,
}
# `-m` of programs that are no interpreters.
OTHER_PROGRAMS = {"tests/agents/clients/llm_tool.py": 1, "tests/support/market/databases.py": 1}
NOT_OURS = frozenset({"node_modules", "build", "dist"})


def python_files() -> list[Path]:
    """Every Python file of the checkout: what is shipped, the tests with their support, tools."""
    tops = [top for top in ROOT.iterdir() if not top.name.startswith(".")]
    files = [top for top in tops if top.suffix == ".py"]
    files += [path for top in tops if top.is_dir() for path in top.rglob("*.py")]
    return [p for p in files if not NOT_OURS & set(p.relative_to(ROOT).parts)]


def test_the_rule_about_child_processes_sees_every_start() -> None:
    module = "-m"  # written beside an interpreter, this test would break the rule
    unsafe = (
        f'run([base, "{module}", "venv"])',
        f'exec(sys.executable, "{module}", module, *arguments)',
        "exec(sys.executable, *words)",
        f'(sys.executable, "{module}", "tests.support.model.kernels")',
        '[sys.executable, "-c", program]',
        "(sys.executable, str(script))",
        "[sys.executable]",
        f'["{module}", "pip"]',
        f'[PYTHON, "{module}", "venv"]',
        f'[str(venv / "bin" / "python"), "{module}", "pip"]',
        'run("python3.11", "app.py")',
        'f"exec {sys.executable} {script}"',
    )
    safe = (
        'run([base, "-P", "-m", "venv"])',
        'exec(*limits, sys.executable, "-P", *words)',
        '[PYTHON, "-I", "-m", "venv"]',
        'program = Path(sys.executable).parent / "piecework"',
        "arguments(sys.executable, model=model)",
        'f"exec {sys.executable} -P {script}"',
        'f"PYTHON={sys.executable}"',
    )
    names = (
        'base = str(getattr(sys, "_base_executable", sys.executable))',
        'PYTHON = os.environ.get("PYTHON_OF_THE_WHEEL", sys.executable)',
    )
    for line in unsafe:
        assert unsafe_starts("\n".join([*names, line])), line
    for line in safe:
        assert not unsafe_starts("\n".join([*names, line])), line


def test_every_child_process_ignores_the_modules_of_the_current_folder() -> None:
    found = {p.relative_to(ROOT).as_posix(): unsafe_starts(p.read_text()) for p in python_files()}
    # Each exception is there: otherwise the rule would not see what it is about.
    allowed = ON_PURPOSE | OTHER_PROGRAMS
    assert {name: len(found[name]) for name in allowed} == allowed
    lines = [
        f"{name}:{line} {words}"
        for name, starts in found.items()
        for line, words in starts
        if name not in allowed
    ]
    assert not lines, "start these with -P:\n" + "\n".join(lines)


def texts_that_start() -> list[str]:
    """Scripts, containers and units."""
    found = [p for kind in ("*.yml", "*.yaml", "*.sh", "*.service") for p in ROOT.glob(kind)]
    for top in ("deploy", "contracts/tools"):
        found += [
            path
            for path in (ROOT / top).rglob("*")
            if path.suffix in {".yml", ".yaml", ".sh", ".service"}
        ]
    names = sorted(path.relative_to(ROOT).as_posix() for path in found)
    return ["Dockerfile", "Makefile", ".ci/run", *names]


@pytest.mark.parametrize("name", texts_that_start())
def test_every_program_of_a_script_or_a_container_ignores_the_current_folder(name: str) -> None:
    assert not UNSAFE_TEXT.findall((ROOT / name).read_text())


def test_the_rule_about_scripts_sees_every_start() -> None:
    unsafe = (
        "python -m piecework.health",
        '["CMD", "python", "-m", "venv"]',
        "$(PYTHON) -m venv x",
        "python3.11 -c 'import x'",
    )
    safe = ('["CMD", "python", "-P", "-m", "venv"]', "$(PYTHON) -I -c 'import x'")
    assert all(UNSAFE_TEXT.search(line) for line in unsafe)
    assert not any(UNSAFE_TEXT.search(line) for line in safe)


# --- how it is installed

FROM_AN_INDEX = re.compile(
    r"""\binstall\b(?:\s+-\S+)*\s+['"]?piecework(?![\w./-])|(?<!\w)['"]piecework\["""
)
"""An instruction to install by name. Piecework is not on a package index."""


def test_no_page_and_no_message_installs_piecework_from_an_index() -> None:
    assert FROM_AN_INDEX.search("pip install --quiet piecework")
    assert FROM_AN_INDEX.search("pip install 'piecework[worker]'")
    found = [
        str(page.relative_to(ROOT)) for page in pages() if FROM_AN_INDEX.search(page.read_text())
    ]
    found += [
        f"{path.relative_to(ROOT)}: {text[:60]}"
        for path in sources()
        for text in facts_of(path).strings
        if FROM_AN_INDEX.search(text)
    ]
    assert not found, "\n".join(found)


def test_only_one_place_says_how_an_extra_is_installed() -> None:
    said = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        for text in facts_of(path).strings
        if re.search(r"pip install '", text)
    }
    assert said == {"piecework/base/explain.py"}


# --- what is declared


def test_every_library_that_is_imported_is_declared_and_not_borrowed_from_another() -> None:
    graph = grimp.build_graph(*SHIPPED, include_external_packages=True)
    imported = {
        found.partition(".")[0]
        for module in graph.modules
        if module.partition(".")[0] in SHIPPED
        for found in graph.find_modules_directly_imported_by(module)
    }
    libraries = imported - set(SHIPPED) - set(sys.stdlib_module_names)
    names = [
        requirement.name
        for requirement in declared(distributions.EXTRAS.keys() - distributions.FOR_DEVELOPERS)
    ]
    assert libraries - modules_of(names) == UNDECLARED


def test_the_line_about_a_missing_package_names_the_extras_that_pyproject_has() -> None:
    base, imported = {requirement.name for requirement in declared([])}, _imported_names()
    assert EXTRAS.keys() == distributions.EXTRAS.keys() - distributions.FOR_DEVELOPERS - {"demo"}
    for extra, modules in EXTRAS.items():
        own = [Requirement(text) for text in distributions.EXTRAS[extra]]
        brought = modules_of(r.name for r in own if r.name not in base | {"piecework"})
        assert modules - UNDECLARED <= brought, f"{extra} does not bring {modules - brought}"
        top_level = {module for module in brought if not module.startswith("_")}
        assert top_level & imported <= modules, extra
    for inner, outer in CONTAINING.items():
        assert f"piecework[{inner}]" in distributions.EXTRAS[outer]


def _imported_names() -> set[str]:
    """The top-level names in the import statements of what is shipped."""
    return {module.partition(".")[0] for path in sources() for _, module in facts_of(path).imports}


def test_the_classifiers_name_only_pythons_that_the_bounds_allow() -> None:
    bounds = SpecifierSet(PROJECT["requires-python"])
    prefix = "Programming Language :: Python :: 3."
    tried = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if c.startswith(prefix)]
    assert tried and all(bounds.contains(version) for version in tried)


@pytest.mark.parametrize("package", SHIPPED)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    roots = (ROOT, *(ROOT / name for name in ("protocol", "model", "node")))
    assert any((root / package / "py.typed").is_file() for root in roots)


# --- the exact versions


def pins(name: str) -> dict[str, str]:
    """Each distribution with its version, from the constraints or a lock file."""
    lines = (ROOT / name).read_text().splitlines()
    found = [line.split(" ")[0].split("==") for line in lines if line[:1].isalnum()]
    return {canonicalize_name(name): version for name, version in found}


def locked(name: str) -> dict[str, str]:
    """The versions of a lock file and of the files that it goes with."""
    files = (name, *LOCKS[name][1])
    return {k: v for file in files for k, v in pins(f"requirements/{file}.lock").items()}


def test_every_pinned_version_satisfies_pyproject_and_none_is_missing() -> None:
    constraints = pins("constraints.txt")
    for requirement in declared(distributions.EXTRAS):
        version = constraints[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_there_is_a_rule_for_every_lock_file() -> None:
    assert {
        path.stem for path in (ROOT / "requirements").glob("*.lock")
    } == LOCKS.keys() | OF_ITS_OWN


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_the_versions_of_the_constraints_each_with_a_hash(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    constraints, found = pins("constraints.txt"), pins(f"requirements/{name}.lock")
    assert found and all(constraints.get(key, found[key]) == found[key] for key in found)
    for entry in re.split(r"\n(?=[a-z0-9])", text)[1:]:
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize("name", [name for name, (extras, _) in LOCKS.items() if extras])
def test_a_lock_holds_all_that_its_extras_need_here(name: str) -> None:
    missing = installed_with(LOCKS[name][0]) - locked(name).keys()
    assert not missing, f"run make lock: {sorted(missing)}"


@pytest.mark.parametrize("name", [name for name, (_, others) in LOCKS.items() if others])
def test_locks_that_go_together_do_not_name_a_distribution_twice(name: str) -> None:
    for other in LOCKS[name][1]:
        own, others = pins(f"requirements/{name}.lock"), pins(f"requirements/{other}.lock")
        assert not own.keys() & others.keys()


@pytest.mark.parametrize("name", ["Dockerfile", "Makefile"])
def test_every_lock_that_a_script_installs_is_there(name: str) -> None:
    for file in re.findall(r"requirements/\w+\.\w+", (ROOT / name).read_text()):
        assert (ROOT / file).is_file(), file


def test_the_image_has_what_every_command_of_its_roles_imports() -> None:
    """`piecework worker top`, for one: an owner runs it inside the running container."""
    last = (ROOT / "Dockerfile").read_text().rsplit("\nFROM ", 1)[1]
    files = re.findall(r"requirements/\w+\.lock", last)
    held = {name for file in files for name in pins(file)}
    roles = EXTRAS.keys() - NOT_IN_THE_IMAGE
    assert "console" in roles
    missing = installed_with(roles) - held
    assert not missing, f"no lock that the Dockerfile installs has {sorted(missing)}"
