"""Formats of strings in JSON schemas: those that the jsonschema library knows, and more. Pure.

The library judges `duration`, `uri` and `hostname` with other libraries alone, which are not here,
and knows `time` as of draft 3. A format that nobody knows says nothing, as JSON Schema has it.
"""

from __future__ import annotations

import re
from datetime import datetime, time
from typing import Final

from jsonschema import FormatChecker

FORMATS: Final = FormatChecker()
"""What judges them."""

_OFFSET = r"(?:[Zz]|[+-]\d{2}:\d{2})"
_CLOCK = r"\d{2}:\d{2}:\d{2}(?:\.\d+)?"
_DATE_TIME = re.compile(rf"\d{{4}}-\d{{2}}-\d{{2}}[Tt]{_CLOCK}{_OFFSET}", re.ASCII)
_TIME = re.compile(rf"{_CLOCK}{_OFFSET}?", re.ASCII)
_NUMBER = r"\d+(?:[.,]\d+)?"
_DURATION = re.compile(
    rf"[+-]?P(?=[\dT])(?:{_NUMBER}Y)?(?:{_NUMBER}M)?(?:{_NUMBER}W)?(?:{_NUMBER}D)?"
    rf"(?:T(?=\d)(?:{_NUMBER}H)?(?:{_NUMBER}M)?(?:{_NUMBER}S)?)?",
    re.ASCII,
)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+")
_HOST_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_MAX_HOST = 253


@FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(value: object) -> bool:
    """Whether a string is a moment by RFC 3339."""
    if not isinstance(value, str):
        return True
    if _DATE_TIME.fullmatch(value) is None:
        return False
    datetime.fromisoformat(value.upper())
    return True


@FORMATS.checks("time", raises=ValueError)
def _is_time(value: object) -> bool:
    """Whether a string is a time by RFC 3339. It may lack the offset, as pydantic writes it."""
    if not isinstance(value, str):
        return True
    if _TIME.fullmatch(value) is None:
        return False
    time.fromisoformat(value.upper())
    return True


@FORMATS.checks("duration")
def _is_duration(value: object) -> bool:
    """Whether a string is a duration by ISO 8601."""
    return not isinstance(value, str) or _DURATION.fullmatch(value) is not None


@FORMATS.checks("uri")
def _is_uri(value: object) -> bool:
    """Whether a string is an address with its scheme. Letters of all languages may be in it."""
    return not isinstance(value, str) or _URI.fullmatch(value) is not None


@FORMATS.checks("hostname")
def _is_hostname(value: object) -> bool:
    """Whether a string is a name of a host by RFC 1123."""
    if not isinstance(value, str):
        return True
    return len(value) <= _MAX_HOST and all(map(_HOST_LABEL.fullmatch, value.split(".")))
