"""What the jobs ask of settlement before they take an authorization."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from piecework_node.runtime.live import LiveChannel
from piecework_protocol.frames import FundingAuthorization


class OpeningCheck(Protocol):
    """Settlement's word on an authorization."""

    def __call__(
        self, live: LiveChannel, funding: FundingAuthorization, *, taken: bool
    ) -> Awaitable[None]:
        """Check that the worker would submit it.

        taken: it was checked and journaled before, and may be under way.

        Raises:
            Refusal: the worker would not submit it.
        """
        ...
