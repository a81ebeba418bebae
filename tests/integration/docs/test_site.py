"""The documents build as a site, strictly, and the site loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import piecework.client
from docs.tools.site import LINK, OUTSIDE
from piecework.client import content, errors, events, requests
from tests.support.documents import ROOT

pytestmark = [pytest.mark.process, pytest.mark.slow]
BUILD_TIMEOUT_S = 300
PUBLIC = (piecework.client, content, errors, events, requests)
LOADS = re.compile(r'<(?:script|img|iframe|link)[^>]*(?:src|href)="?(?:https?:)?//', re.IGNORECASE)
"""An element that makes the browser fetch something from another host."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site. A warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        (
            sys.executable,
            "-P",
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--site-dir",
            str(folder),
        ),
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not LOADS.search(text), page.name
        # Such an element would make the theme fetch a library.
        assert 'class="mermaid"' not in text, page.name


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_the_page_of_the_sdk_shows_every_public_name(site: Path, module: ModuleType) -> None:
    page = (site / "reference" / "sdk.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'<h\d id="([\w.]+)"', page))
    assert {f"{module.__name__}.{name}" for name in module.__all__} <= shown


def test_links_that_leave_the_documents_are_found() -> None:
    assert LINK.findall("[a](x.md#b), [c](../d.py), ![e](f.png), [g](https://h), [i](#j)") == [
        ("a", "x.md", "#b"),
        ("c", "../d.py", ""),
    ]
    assert all((ROOT / source).is_file() for source in OUTSIDE)
