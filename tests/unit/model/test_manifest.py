"""The manifest: which files count, and what is said of a manifest that is not written as one is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from piecework_model.checkpoint import manifest
from piecework_model.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(manifest.bundled_checkpoint_path(), tmp_path / "copy"))


def test_a_manifest_of_known_digests_is_that_of_the_folder(folder: Path) -> None:
    text = manifest.manifest_text(folder)
    digests = {line[66:]: line[:64] for line in reversed(text.splitlines())}
    assert manifest.compose(digests) == text


def test_exactly_the_files_of_a_folder_that_are_covered_by_name_are_in_it(folder: Path) -> None:
    (folder / "modeling.py").write_text("")
    (folder / "pytorch_model.bin").write_bytes(b"")
    named = {path.name for path in folder.iterdir() if manifest.covers(path.name)}
    assert named == {path.name for path in manifest.covered_files(folder)}
    assert not {"modeling.py", "pytorch_model.bin", "README.md", manifest.MANIFEST_FILE} & named


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda lines: list(reversed(lines)),
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:-1], lines[-1].rstrip("\n")],
    ],
    ids=["another order", "a line twice", "no end of line"],
)
def test_a_manifest_with_the_right_lines_in_another_form_is_refused_by_its_name(
    folder: Path, rewrite: object
) -> None:
    file = folder / manifest.MANIFEST_FILE
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(rewrite(lines)))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="is not written as") as caught:
        manifest.verify(folder)
    assert caught.value.path == str(file)


def test_the_first_of_several_files_that_differ_is_named(folder: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match") as caught:
        manifest.verify(folder)
    assert caught.value.path == str(folder / "config.json")


def test_a_file_that_is_missing_is_named(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        manifest.verify(folder)
