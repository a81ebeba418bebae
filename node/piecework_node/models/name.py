"""Names of a hub's models, `owner/name` or `owner/name@revision`, and their files. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from piecework_node.errors import ConfigError

DEFAULT_REVISION: Final = "main"
MAX_REVISION_CHARS: Final = 80
"""It becomes a file name, percent-encoded: at most 240 bytes of the 255 that file systems take."""
MAX_PART_CHARS: Final = 96
"""The hub's own limit for a repository's name, owner included."""
# The hub's rule: letters, digits, single dashes and dots inside. So a part is never "..", hidden or
# empty.
_PART: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_]|[-.](?![-.])(?=.))*")
# The part of git's rule for refs (git-check-ref-format) that branches, tags and commits need.
_REVISION: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_+-]|[./](?![./])(?=.))*")
GIT_ID: Final = re.compile(r"[0-9a-f]{40}")
SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A repository of a hub, and a revision: a commit, a tag, a branch, or "" if none is named."""

    owner: str
    name: str
    revision: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a name.

        Raises:
            ConfigError: the text is not such a name.
        """
        repository, at, revision = text.partition("@")
        owner, slash, name = repository.partition("/")
        good = bool(slash) and all(
            len(part) <= MAX_PART_CHARS and _PART.fullmatch(part) for part in (owner, name)
        )
        if not good:
            raise ConfigError(
                f"{text!r} is not the name of a model: owner/name or owner/name@revision"
            )
        if at and not is_revision(revision):
            raise ConfigError(f"{revision!r} is not a commit, tag or branch")
        return cls(owner, name, revision)

    @property
    def repository(self) -> str:
        """Without the revision."""
        return f"{self.owner}/{self.name}"

    def at(self, revision: str) -> ModelName:
        """Return the same repository at another revision.

        Raises:
            ConfigError: that is not a revision.
        """
        if not is_revision(revision):
            raise ConfigError(f"{revision!r} is not a commit, tag or branch")
        return ModelName(self.owner, self.name, revision)

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file at the top of a repository, as the hub lists it. `digest` is its SHA-256 (64
    hexadecimal digits) or its Git blob id (40): the SHA-1 of `blob <size>\\0` and the content.
    """

    name: str
    size_bytes: int
    digest: str

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the content, if the hub lists it."""
        return self.digest if len(self.digest) == 64 else None


def is_revision(text: str) -> bool:
    """Whether it can be a commit, a tag or a branch."""
    return len(text) <= MAX_REVISION_CHARS and _REVISION.fullmatch(text) is not None


def is_commit(text: str) -> bool:
    """Whether it is a whole commit id: 40 lower-case hexadecimal digits."""
    return GIT_ID.fullmatch(text) is not None
