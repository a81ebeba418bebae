"""Every failure in OpenAI's shape, with the right blame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from aiohttp import hdrs, web

from piecework.base.errors import PieceworkError
from piecework.base.http_server import BodyRefused
from piecework.chain.errors import ChainError
from piecework.client.errors import (
    BudgetExceeded,
    InsufficientFunds,
    JobFailed,
    JobInterrupted,
    NoWorkerFits,
    RequestRefused,
    WorkerUnreachable,
)
from piecework.client.gateway.formats.common import PARAMETERS, ApiError, as_malformed
from piecework.client.gateway.formats.decisions import systemone_error
from piecework.client.gateway.formats.schema import DocumentTooDear
from piecework.client.gateway.turns import WAIT_WHEN_FULL_S
from piecework.client.jobs.selection import BUSY_REASONS
from piecework_protocol.errors import MalformedInput, ProtocolViolation, Reason, Refusal

SYSTEMONE = "/v1/systemone"
"""The one path whose failures have another shape: TypeSafe's."""


def failure(error: ApiError, path: str) -> web.Response:
    """Render a failure for the format of a path."""
    headers = {} if error.may_retry else {"x-should-retry": "false"}
    if error.retry_after_s is not None:
        headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(error.retry_after_s)))
    status, body = error.status, error.body()
    if path == SYSTEMONE:
        status, body = systemone_error(error)
    return web.json_response(body, status=status, headers=headers)


def translated(error: Exception, log: Any) -> ApiError:
    """Return what the caller is told of an error, and log what the operator should see."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BodyRefused):
        kind = "invalid_request_error" if error.status < 500 else "service_unavailable"
        return ApiError(error.status, kind, error.message, code=error.code)
    if isinstance(error, PieceworkError):
        told = as_api_error(error)
        log.warning("request failed", status=told.status, code=told.code)
        return told
    if isinstance(error, web.HTTPException):
        code = error.reason.lower().replace(" ", "_")
        return ApiError(error.status, "invalid_request_error", error.reason, code=code)
    log.error("fault", exc_info=error)
    return ApiError(500, "server_error", "the gateway has a fault", code="internal_error")


def as_api_error(error: PieceworkError) -> ApiError:
    """Return our error in OpenAI's shape. The status says who can do something about it.

    402: no money. 429: a budget is used up. 400 and 404: the request. 502: a job that began and
    went wrong. 503: nobody can take it now. 500: the client itself.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, MalformedInput):
        return as_malformed(error)
    if isinstance(error, DocumentTooDear):  # the pattern is the caller's
        kind, code = "invalid_request_error", "unsupported_schema"
        return ApiError(400, kind, str(error), code=code)
    if isinstance(error, NoWorkerFits):
        return _no_worker(error)
    if isinstance(error, Refusal):
        return _refused(error)
    shape = next((shape for kinds, shape in _SHAPES if isinstance(error, kinds)), _SERVER)
    return ApiError(
        shape.status, shape.kind, str(error), code=error.code, may_retry=shape.may_retry
    )


def _no_worker(error: NoWorkerFits) -> ApiError:
    if isinstance(error, RequestRefused):
        kind = "invalid_request_error"
        return ApiError(400, kind, str(error), code=error.code, param=error.param)
    wait = error.retry_after_s
    if wait is not None:
        kind = "service_unavailable"
        return ApiError(503, kind, str(error), code=error.code, retry_after_s=wait)
    if error.unknown_model:
        return ApiError(404, "invalid_request_error", str(error), code=error.code, param="model")
    return ApiError(503, "service_unavailable", str(error), code=error.code)


def _refused(refusal: Refusal) -> ApiError:
    text, kind = str(refusal), "invalid_request_error"
    if refusal.reason is Reason.PROMPT_TOO_LONG:
        return ApiError(400, kind, text, code="context_length_exceeded", param="messages")
    if refusal.reason in (Reason.PROMPT_REFUSED, Reason.NO_IMAGES):
        return ApiError(400, kind, text, code=refusal.code, param="messages")
    if refusal.reason in (Reason.BAD_PARAMETERS, Reason.OVERSIZED):
        # A worker names the parameter first: "temperature_end is 0, outside …".
        param = PARAMETERS.get(refusal.message.partition(" ")[0])
        return ApiError(400, kind, text, code=refusal.code, param=param)
    if refusal.reason in BUSY_REASONS:
        wait = refusal.retry_after_s or WAIT_WHEN_FULL_S
        kind = "service_unavailable"
        return ApiError(503, kind, text, code=refusal.code, retry_after_s=wait)
    return ApiError(503, "service_unavailable", text, code=refusal.code)


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a kind of error looks in HTTP."""

    status: int
    kind: str
    may_retry: bool = True


_SERVER = _Shape(500, "server_error")
_UNAVAILABLE = _Shape(503, "service_unavailable")
# Something may have been paid, so the SDK must not repeat the request by itself.
_UPSTREAM = _Shape(502, "upstream_error", may_retry=False)
_SHAPES: tuple[tuple[tuple[type[PieceworkError], ...], _Shape], ...] = (
    ((InsufficientFunds,), _Shape(402, "insufficient_quota")),
    ((BudgetExceeded,), _Shape(429, "insufficient_quota", may_retry=False)),
    ((ProtocolViolation, JobFailed, JobInterrupted), _UPSTREAM),
    ((WorkerUnreachable, ChainError), _UNAVAILABLE),
)
