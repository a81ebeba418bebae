"""What automatic prices keep in the home: the price that is asked, and what a token took.

So a restart neither jumps back to the owner's own prices nor moves twice in an hour.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from piecework.base.files import read, write_private
from piecework.base.jsons import loads
from piecework_node.pricing.costs import MAX_UNITS
from piecework_node.pricing.rule import AskedPrice

MAX_FILE_BYTES: Final = 4096
MAX_TIME: Final = 2**40
MAX_JOULES: Final = 1e15
_DEPTH: Final = 4


@dataclass(frozen=True, slots=True)
class PriceState:
    """What is kept.

    Attributes:
        asked: The price, and when the market last moved it. None: the owner's own.
        joules: That the cards drew while jobs ran, in an earlier life. None: not measured.
        tokens: Charged in that time.
    """

    asked: AskedPrice | None = None
    joules: float | None = None
    tokens: int = 0

    def write(self, file: Path) -> None:
        """Put it in the place of the file.

        Raises:
            FileError: it cannot be written.
        """
        asked = None
        if self.asked is not None:
            asked = {"blended": str(self.asked.blended), "moved_at": self.asked.moved_at}
        body = {"asked": asked, "joules": self.joules, "tokens": self.tokens}
        write_private(file, json.dumps(body).encode(), replace=True)

    @classmethod
    def load(cls, file: Path) -> PriceState:
        """Read what `write` wrote. Nothing is kept if there is no file.

        Raises:
            FileError: it cannot be read.
            ValueError: it says something else.
        """
        if not file.is_file():
            return cls()
        try:
            body = loads(read(file, MAX_FILE_BYTES), max_depth=_DEPTH)
            asked, joules = body["asked"], body["joules"]
            return cls(
                None if asked is None else _asked(asked),
                None if joules is None else float(_bounded(joules, MAX_JOULES)),
                int(_bounded(body["tokens"], MAX_UNITS)),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"a member is missing or malformed: {error}") from None


def _asked(body: Any) -> AskedPrice:
    return AskedPrice(
        int(_bounded(int(body["blended"]), MAX_UNITS)),
        int(_bounded(body["moved_at"], MAX_TIME)),
    )


def _bounded(value: float, most: float) -> float:
    if isinstance(value, bool) or not 0 <= value <= most:  # neither is true of what is not a number
        raise ValueError("a number is out of range")
    return value
