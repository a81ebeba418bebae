"""What the structured logs of servers leave out. This needs structlog, which their extras bring."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from piecework.base.repeats import Repeats

_KINDS: Final = ("clause", "code", "error_class", "kind", "reason", "state", "status")
"""Fields that tell two warnings apart. Others, such as a job or a text, vary with each repetition.
"""


class DropRepeats:
    """A structlog processor. Place it after the level was added.

    Lines of level info and below count as alike if they are equal. Warnings and errors count as
    alike if they are of one kind.
    """

    def __init__(self, repeats: Repeats | None = None) -> None:
        self._repeats = repeats or Repeats()

    def __call__(
        self, _: Any, __: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        severe = event.get("level") in ("warning", "error", "critical", "exception")
        fields = [k for k in _KINDS if k in event] if severe else sorted(event)
        key = (event.get("level"), event.get("event"), *((k, str(event[k])) for k in fields))
        left_out = self._repeats.passes(key)
        if left_out is None:
            raise structlog.DropEvent
        if left_out:
            event["repeated"] = left_out
        return event
