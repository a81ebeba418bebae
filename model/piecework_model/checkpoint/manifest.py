"""The model digest: one hash over everything in a checkpoint folder that decides the model's
output.

The manifest has one line per file, `<sha256 hex>  <path>\\n`, sorted by path, as `sha256sum` prints
them. It covers config.json, generation_config.json, *.safetensors and their index, tokenizer*.json,
chat_template.jinja, and processor_config.json or preprocessor_config.json, which say how images are
resized. Nothing else in the folder counts. The model digest is the SHA-256 of that
text. This module imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from piecework_model import limits
from piecework_model.checkpoint.digests import DigestStore
from piecework_model.errors import CheckpointError

MANIFEST_FILE = "manifest.sha256"
BUNDLED_NAME = "tiny-stories"
WEIGHTS_SUFFIX = ".safetensors"
_PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
)


def bundled_checkpoint_path() -> Path:
    """Return the folder of the checkpoint that ships with this package."""
    return Path(__file__).parents[1] / "checkpoints" / BUNDLED_NAME


def covers(name: str) -> bool:
    """Say whether a file of that name, without a folder, counts in the manifest."""
    return any(fnmatchcase(name, pattern) for pattern in _PATTERNS)


def covered_files(folder: Path) -> list[Path]:
    """List the files that the manifest covers, sorted by name.

    Raises CheckpointError if the folder is unusable.
    """
    if not folder.is_dir():
        raise CheckpointError(folder, "this folder does not exist")
    found = sorted(
        {path for path in _matches(folder) if path.is_file()}, key=lambda path: path.name
    )
    if len(found) > limits.MAX_CHECKPOINT_FILES:
        raise CheckpointError(
            folder, f"{len(found)} files, at most {limits.MAX_CHECKPOINT_FILES} are accepted"
        )
    if not any(path.suffix == WEIGHTS_SUFFIX for path in found):
        raise CheckpointError(folder, "no .safetensors file")
    return found


def _matches(folder: Path) -> Iterator[Path]:
    for pattern in _PATTERNS:
        yield from folder.glob(pattern)


def manifest_text(folder: Path, digests: DigestStore | None = None) -> str:
    """Compose the manifest of a checkpoint folder.

    Every covered file is read once, except those whose digests are known.
    """
    known = digests or DigestStore()
    return compose({path.name: known.of(path) for path in covered_files(folder)})


def compose(sha256_by_name: Mapping[str, str]) -> str:
    """Compose the manifest of files whose SHA-256 (lower-case hex) is already known."""
    return "".join(f"{sha256_by_name[name]}  {name}\n" for name in sorted(sha256_by_name))


def manifest_digest(text: str) -> bytes:
    """Compute the model digest of a manifest text, 32 bytes."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def verify(folder: Path, digests: DigestStore | None = None) -> bytes:
    """Check a folder against its own manifest file. Returns the model digest.

    Files whose digests are known are not read. Raises CheckpointError, which names the first file
    that differs.
    """
    expected = written(folder)
    actual = manifest_text(folder, digests)
    if actual != expected:
        differing = sorted(
            set(actual.splitlines()) ^ set(expected.splitlines()), key=lambda line: line[66:]
        )
        if (
            not differing
        ):  # the same lines in another order, repeated, or without the last line's end
            raise CheckpointError(folder / MANIFEST_FILE, "is not written as a manifest is")
        raise CheckpointError(folder / differing[0][66:], f"does not match {MANIFEST_FILE}")
    return manifest_digest(actual)


def verify_without_weights(folder: Path, digests: DigestStore) -> bytes:
    """Check all but the weights. Returns the model digest that the manifest file states.

    The weights are hashed while they are loaded, and `verify` follows. Raises as that does.
    """
    expected = written(folder)
    lines = frozenset(expected.splitlines())
    for path in covered_files(folder):
        if path.suffix != WEIGHTS_SUFFIX and f"{digests.of(path)}  {path.name}" not in lines:
            raise CheckpointError(path, f"does not match {MANIFEST_FILE}")
    return manifest_digest(expected)


def written(folder: Path) -> str:
    """Read a folder's own manifest file. Raises CheckpointError."""
    try:
        return (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(folder / MANIFEST_FILE, f"cannot be read: {error}") from error
