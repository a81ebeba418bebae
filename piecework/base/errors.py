"""The root of our errors. It imports nothing, so that pure code may use it.

`piecework.base.explain` turns errors into lines for a person; `piecework.base.entry` exits.
"""

from __future__ import annotations

from typing import ClassVar


class PieceworkError(Exception):
    """The root of every error that Piecework raises on purpose. Its text is fit for a person."""

    exit_code: ClassVar[int] = 1


class UsageError(PieceworkError):
    """The person who called gave something that cannot be used."""

    exit_code = 2
