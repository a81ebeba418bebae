"""The root of our errors. It imports nothing but the standard library, so pure code may use it.

`piecework.base.explain` turns errors into lines for a person; `piecework.base.entry` exits.
"""

from __future__ import annotations

import re
from typing import ClassVar


class PieceworkError(Exception):
    """The root of every error that Piecework raises on purpose. Its text is fit for a person.

    `code` is for programs. It is the class's name in snake_case, such as "insufficient_funds",
    unless the error says more by a code of its own.
    """

    exit_code: ClassVar[int] = 1
    code: str = "piecework_error"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "code" not in cls.__dict__:
            cls.code = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__.lstrip("_")).lower()


class UsageError(PieceworkError):
    """The person who called gave something that cannot be used."""

    exit_code = 2


class SettingsError(UsageError):
    """Settings that cannot be used. `problems` has one line for each setting at fault."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
