"""Hooks of mkdocs: pages that lie outside of docs/, and links that leave the site.

The documents are written to be read in the repository, where every link leads to a file. On the
site a link to a page becomes a link to that page, and a link to a source file becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE: Mapping[str, str] = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "contracts/README.md": "contracts/readme.md",
}
"""Files of the repository that are pages of the site, and their names there."""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages from outside of docs/."""
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Point the links of a page to pages of the site."""
    uris = {Path(file.abs_src_path).resolve(): file.src_uri for file in files if file.abs_src_path}
    origin = Path(page.file.abs_src_path).resolve()
    return LINK.sub(lambda match: _link(match, origin, page.file.src_uri, uris), markdown)


def _link(match: re.Match[str], origin: Path, here: str, uris: Mapping[Path, str]) -> str:
    text, target, anchor = match[1], match[2], match[3] or ""
    uri = uris.get((origin.parent / target).resolve())
    if uri is None:
        return text
    return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"
