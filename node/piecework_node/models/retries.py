"""Try again: which failures are worth it, how long to wait, and when to stop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from piecework.base.errors import PieceworkError
from piecework_node.errors import HubError

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]
OnWait = Callable[[str, float], None]
"""Called with the reason and the seconds to wait."""


class RetryableError(PieceworkError):
    """The same request may succeed later. `Retries` turns the last one into a `HubError`.

    `after_s`: what the server asks to wait. `from_start`: what arrived so far cannot be used.
    """

    def __init__(
        self, reason: str, *, after_s: float | None = None, from_start: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.after_s, self.from_start = reason, after_s, from_start


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait for a hub. The defaults give up on an unreachable one after a minute."""

    attempts: int = 7
    """In a row without progress."""
    first_pause_s: float = 1.0
    longest_pause_s: float = 30.0
    longest_asked_pause_s: float = 330.0
    """The hub counts requests in windows of 300 s and asks to wait for the next one."""
    connect_s: float = 15.0
    read_s: float = 60.0
    """Between two pieces of a body. Storage behind the hub may take long for the first."""
    answer_s: float = 60.0
    """For a whole answer of the API. It is small."""


class Retries:
    """Counts the failures of one thing and waits between them. Pauses double up to the longest."""

    def __init__(self, what: str, policy: RetryPolicy, sleep: Sleep, on_wait: OnWait) -> None:
        self._what, self._policy, self._sleep, self._on_wait = what, policy, sleep, on_wait
        self._failures = 0

    def progressed(self) -> None:
        """Start the count again, because the last attempt brought something."""
        self._failures = 0

    async def wait(self, error: RetryableError) -> None:
        """Wait as long as `error` asks or the count says.

        Raises:
            HubError: it failed too often, or the server asks to wait too long.
        """
        policy = self._policy
        self._failures += 1
        if self._failures >= policy.attempts:
            raise HubError(
                f"{self._what}: {error.reason}. Gave up after {self._failures} attempts. "
                "Run the same command again to go on from here."
            ) from error
        pause = min(policy.first_pause_s * 2 ** (self._failures - 1), policy.longest_pause_s)
        if error.after_s is not None:
            if error.after_s > policy.longest_asked_pause_s:
                raise HubError(
                    f"{self._what}: {error.reason} and asks to wait {error.after_s:.0f} s. "
                    "Run the same command again then to go on from here."
                ) from error
            pause = max(pause, error.after_s)
        self._on_wait(f"{self._what}: {error.reason}", pause)
        await self._sleep(pause)

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Attempt until it succeeds.

        Raises:
            HubError: it failed too often.
        """
        while True:
            try:
                return await attempt()
            except RetryableError as error:
                await self.wait(error)
