"""How long a client waits for a worker. Pure: times are seconds of one monotonic clock.

A worker sends a progress frame several times a second from acceptance to end, so silence means
death. Being alive is not enough: before its first canvas a worker has to get on with its steps as
well, and neither its queue nor its pauses may last beyond a bound. After the first canvas there is
text to come back for.
"""

from __future__ import annotations

from piecework.client.limits import ACCEPT_PATIENCE_S, FIRST_CANVAS_SLACK, QUEUE_PATIENCE_S

_NOT_TAKEN = "the worker does not take the job"
_FALLEN_SILENT = "the worker has fallen silent"
_SILENCES = (_NOT_TAKEN, _FALLEN_SILENT)


class Watchdog:
    """The waiting for one stream."""

    def __init__(
        self, now: float, *, stall_s: float, start_s: float, first_canvas_s: float, canvases: int
    ) -> None:
        """Begin to wait.

        Args:
            now: When the submission was sent.
            stall_s: Without any frame for this long the stream is dead.
            start_s: Without getting on for this long, before the first canvas, so is the worker.
            first_canvas_s: What the worker claims for a first canvas.
            canvases: How many the job has already.
        """
        self._stall_s, self._start_s = stall_s, max(start_s, FIRST_CANVAS_SLACK * first_canvas_s)
        self._first_canvas_s = self._start_s + FIRST_CANVAS_SLACK * first_canvas_s
        self._sent = self._frame = self._advance = self._work = now
        self._accepted: float | None = None
        self._started = canvases > 0
        self._mark = (-1, -1, -1)

    def frame(self, now: float) -> None:
        """Any frame came: the worker lives."""
        self._frame = now

    def accepted(self, now: float) -> None:
        """The worker has taken the job."""
        self._accepted = self._advance = self._work = now

    def working(self, now: float, canvas: int, step: int, prefilled: int = 0) -> None:
        """The worker is at this step, or at this token of the prompt. Only what lies beyond all
        that it said before is an advance."""
        mark = (canvas, step, prefilled)
        if mark > self._mark:
            self._mark, self._advance = mark, now

    def queued(self, now: float) -> None:
        """The job waits in the worker's queue. The jobs ahead may be long."""
        self._work = self._advance = now

    def paused(self, now: float, seconds: float) -> None:
        """The worker says that it goes on in so many seconds."""
        self._work = self._advance = now + max(0.0, seconds)

    def canvas(self, now: float) -> None:
        """A canvas came."""
        self._started, self._advance = True, now

    def left(self, now: float) -> float:
        """Return the seconds until this wait is over. Zero or less: it is."""
        return self._end()[0] - now

    @property
    def why(self) -> str:
        """What the wait ends for."""
        return self._end()[1]

    @property
    def silent(self) -> bool:
        """Whether the wait ends because nothing comes. Then the way to the worker may be broken."""
        return self.why in _SILENCES

    def _end(self) -> tuple[float, str]:
        if self._accepted is None:
            patience = max(self._stall_s, ACCEPT_PATIENCE_S)
            return self._sent + patience, _NOT_TAKEN
        ends = [(self._frame + self._stall_s, _FALLEN_SILENT)]
        if not self._started:
            ends += [
                (self._advance + self._start_s, "the worker makes no progress"),
                (self._work + self._first_canvas_s, "the worker is too slow for a first canvas"),
                (
                    self._accepted + QUEUE_PATIENCE_S + self._first_canvas_s,
                    "the worker lets the job wait too long",
                ),
            ]
        return min(ends)
