"""Why the index declines a request: a status, a code for programs and a line for a person."""

from __future__ import annotations

from typing import Any

from piecework.base.errors import PieceworkError


class MarketError(PieceworkError):
    """The root of the index's own errors."""


class Declined(MarketError):
    """A request that is not served."""

    def __init__(
        self, status: int, code: str, message: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after_s = (
            status,
            code,
            message,
            retry_after_s,
        )

    def body(self) -> dict[str, Any]:
        """The JSON answer."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.retry_after_s is not None:
            error["retry_after_s"] = round(self.retry_after_s, 3)
        return {"error": error}


class OfferStoreError(MarketError):
    """The index's database cannot be used."""
