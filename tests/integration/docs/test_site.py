"""The documents build as a site, strictly, and the site loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.tools.site import LINK, OUTSIDE
from tests.support.documents import ROOT

pytestmark = pytest.mark.slow
BUILD_TIMEOUT_S = 300
LOADS = re.compile(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="?(?:https?:)?//', re.IGNORECASE)
"""An element that makes the browser fetch something from another host."""


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        (
            sys.executable,
            "-P",
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--site-dir",
            str(tmp_path / "site"),
        ),
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not LOADS.search(text), page.name
        # Such an element would make the theme fetch a library.
        assert 'class="mermaid"' not in text, page.name


def test_links_that_leave_the_documents_are_found() -> None:
    assert LINK.findall("[a](x.md#b), [c](../d.py), ![e](f.png), [g](https://h), [i](#j)") == [
        ("a", "x.md", "#b"),
        ("c", "../d.py", ""),
    ]
    assert all((ROOT / source).is_file() for source in OUTSIDE)
