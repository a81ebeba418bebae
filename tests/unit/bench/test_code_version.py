"""The digest of the code behind a figure: what changes it, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.audit_figures import MEASURED, ROOTS
from bench.code_version import code_digest, imported

FILES = {
    "__init__.py": "",
    "first.py": "from ours.second import f\nimport torch\n",
    "second.py": '"""Old words."""\n\n\ndef f() -> int:\n    """Says 1."""\n    return 1\n',
    "apart.py": "x = 1\n",
    "inner/__init__.py": "",
    "inner/third.py": "y = 1\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / "ours" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "ours"


def digest(package: Path) -> str:
    return code_digest(["ours.first"], {"ours": package})


def test_words_and_form_do_not_count(package: Path) -> None:
    before = digest(package)
    (package / "second.py").write_text("# A comment.\ndef f() -> int:\n    return (1)\n")
    (package / "apart.py").write_text("x = 2\n")
    assert digest(package) == before


def test_what_an_imported_module_does_counts(package: Path) -> None:
    before = digest(package)
    (package / "second.py").write_text("def f() -> int:\n    return 2\n")
    assert digest(package) != before


def test_an_import_within_a_function_counts_and_so_does_its_package(package: Path) -> None:
    late = "def g() -> int:\n    from ours.inner import third\n    return third.y\n"
    (package / "second.py").write_text(late)
    found = set(imported(["ours.first"], {"ours": package}))
    assert found == {"ours", "ours.first", "ours.second", "ours.inner", "ours.inner.third"}


def test_what_only_counts_the_figures_of_audits_is_not_part_of_their_key() -> None:
    found = imported(MEASURED, ROOTS)
    assert {"piecework_model.audit.forced", "piecework_model.engine.batched"} <= set(found)
    assert "piecework_model.audit.judgement" not in found
    assert "bench.audit_table" not in found
