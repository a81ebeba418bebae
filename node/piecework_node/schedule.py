"""Hours of the week, in the machine's local time: `mon-fri 18:00-23:30`, `22:00-06:00`, `sun`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES: Final = 24 * 60
_FORM: Final = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?)?"
    r"(?:(?:^|\s)(?P<start>\d\d:\d\d)-(?P<end>\d\d:\d\d))?"
)


@dataclass(frozen=True, slots=True)
class Window:
    """The same hours of some days.

    days: on which it begins, 0 is Monday. start, end: minutes of the day. An end that is not after
    the start is on the next day.
    """

    days: frozenset[int]
    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read days, hours, or both.

        Raises:
            ValueError: it is none of these forms. The text says what is expected.
        """
        match = _FORM.fullmatch(text.strip().lower())
        if not match or not any(match.groups()):
            raise ValueError(f"{text!r} is not of the form `mon-fri 18:00-23:30`")
        first, last, start, end = match.group("first", "last", "start", "end")
        begin, stop = _minutes(start or "00:00"), _minutes(end or "24:00")
        return cls(_days(first, last or first), begin, stop + (stop <= begin) * DAY_MINUTES)

    def ends(self, local: datetime) -> datetime | None:
        """Say when the window that is open at a local time closes, or None if it is shut.

        A change of the clocks inside the window moves its end by as much.
        """
        for back in (0, 1):
            midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
            midnight -= timedelta(days=back)
            start, end = (midnight + timedelta(minutes=m) for m in (self.start, self.end))
            if midnight.weekday() in self.days and start <= local < end:
                return end
        return None


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None or last is None:
        return frozenset(range(7))
    for name in (first, last):
        if name not in DAYS:
            raise ValueError(f"{name!r} is not a day of the week: {', '.join(DAYS)}")
    begin, end = DAYS.index(first), DAYS.index(last)
    return frozenset((begin + i) % 7 for i in range((end - begin) % 7 + 1))


def _minutes(text: str) -> int:
    hours, minutes = map(int, text.split(":"))
    total = 60 * hours + minutes
    if minutes > 59 or total > DAY_MINUTES:
        raise ValueError(f"{text!r} is not a time of the day")
    return total
