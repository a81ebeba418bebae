"""Tell the owner what began and what is over: on the console, and by a webhook."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from piecework.base.clock import Clock
from piecework.base.http import HttpError, HttpLimits
from piecework_node.console.model import Alert

MAX_ALERTS: Final = 50
MAX_WAITING: Final = 64
"""Alerts that wait for the webhook. Beyond that the oldest are dropped and counted."""
ATTEMPTS: Final = 6
FIRST_PAUSE_S: Final = 2.0
WEBHOOK_LIMITS: Final = HttpLimits(total_s=10.0, connect_s=5.0, max_bytes=64 * 1024)


class AlertBook:
    """The conditions that last, and the last alerts about them."""

    def __init__(self, clock: Clock, tell: Callable[[Alert], None] | None = None) -> None:
        """`tell` gets every alert as it comes."""
        self._clock, self._tell = clock, tell
        self._lasting: dict[str, str] = {}
        self.last: deque[Alert] = deque(maxlen=MAX_ALERTS)

    def observe(self, conditions: Mapping[str, str]) -> None:
        """Take the conditions of now: a public text by code. Raise an alert for each change."""
        for code, text in conditions.items():
            if code not in self._lasting:
                self._add(Alert(int(self._clock.wall()), code, text))
        for code, text in self._lasting.items():
            if code not in conditions:
                self._add(Alert(int(self._clock.wall()), code, text, over=True))
        self._lasting = dict(conditions)

    def event(self, code: str, text: str) -> None:
        """Raise an alert about something that does not last."""
        self._add(Alert(int(self._clock.wall()), code, text))

    def _add(self, alert: Alert) -> None:
        self.last.append(alert)
        if self._tell is not None:
            self._tell(alert)


class AlertPoster(Protocol):
    """A way to post bytes (`piecework.base.http.HttpReader`)."""

    async def post(self, url: str, body: bytes, *, headers: Mapping[str, str]) -> bytes:
        """Return the body of a successful answer. Raises `HttpError`."""
        ...


class Webhook:
    """Posts alerts, one after the other. The address is a secret and is in no log."""

    def __init__(
        self,
        url: str,
        worker: str,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        log: Any,
    ) -> None:
        """`worker` is the operator's address, which is public."""
        self._url, self._worker, self._sleep, self._log = url, worker, sleep, log
        self._waiting: deque[Alert] = deque(maxlen=MAX_WAITING)
        self._changed = asyncio.Event()
        self.dropped = 0

    def add(self, alert: Alert) -> None:
        """Queue an alert. A full queue loses its oldest."""
        if len(self._waiting) == MAX_WAITING:
            self.dropped += 1
        self._waiting.append(alert)
        self._changed.set()

    async def run(self, http: AlertPoster) -> None:
        """Post until cancelled."""
        while True:
            while self._waiting:
                await self._post(http, self._waiting.popleft())
            self._changed.clear()
            await self._changed.wait()

    async def _post(self, http: AlertPoster, alert: Alert) -> None:
        state = "over" if alert.over else "began"
        body = json.dumps(
            {
                "text": f"Piecework worker {self._worker[:10]}: {alert.code} {state}. {alert.text}",
                "worker": self._worker,
                "code": alert.code,
                "state": state,
                "at": alert.at,
            }
        ).encode()
        for attempt in range(ATTEMPTS):
            try:
                await http.post(self._url, body, headers={"Content-Type": "application/json"})
                return
            except HttpError as error:
                kind = type(error).__name__
            await self._sleep(FIRST_PAUSE_S * 2**attempt)
        self.dropped += 1
        self._log.warning("webhook takes no alert", code=alert.code, error_class=kind)
