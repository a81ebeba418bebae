"""What the jobs of one answer did and cost. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from piecework.base.amounts import Token
from piecework.client.gateway.formats.common import Totals, named, token_object
from piecework.client.jobs.events import CanvasText, JobFinished, JobStarted, ReadAnswers
from piecework_protocol.kinds.text import SegmentKind
from piecework_protocol.types import to_hex
from piecework_protocol.views import members

_SHOWN = ("canvas", "receipt", "leaf_index", "steps", "amount")


class Bill:
    """Adds up the jobs of one answer: its choices, and the repairs of a structured one.

    Attributes:
        ignored: Parameters of the request that could not be honoured.
        repairs: Jobs that filled again what was not valid.
        decided: Places in structured answers whose values a read job decided.
    """

    def __init__(self, token: Token, usd_price: Decimal | None, ignored: tuple[str, ...]) -> None:
        self._token, self._usd_price, self.ignored = token, usd_price, ignored
        self._started: list[JobStarted] = []
        self._finished: list[JobFinished] = []
        self._canvases: list[CanvasText | ReadAnswers] = []
        self._characters = dict.fromkeys(SegmentKind, 0)
        self.repairs = 0
        self.decided: list[str] = []

    @property
    def first(self) -> JobStarted | None:
        """The first job that a worker took."""
        return self._started[0] if self._started else None

    @property
    def cost(self) -> int:
        """What canvases have cost so far, in base units."""
        return sum(canvas.amount for canvas in self._canvases)

    def started(self, job: JobStarted) -> None:
        """A worker took a job."""
        self._started.append(job)

    def canvas(self, canvas: CanvasText | ReadAnswers) -> None:
        """A canvas was paid."""
        self._canvases.append(canvas)
        if isinstance(canvas, CanvasText):
            for segment in canvas.segments:
                self._characters[segment.kind] += len(segment.text)

    def finished(self, job: JobFinished) -> None:
        """A job ended."""
        self._finished.append(job)

    def totals(self) -> Totals:
        """Add up what was used."""
        output = sum(job.output_tokens for job in self._finished)
        written = sum(self._characters.values())
        thought = self._characters[SegmentKind.THOUGHT]
        return Totals(
            self._token,
            prompt_tokens=sum(job.prompt_tokens for job in self._finished),
            output_tokens=output,
            reasoning_tokens=round(output * thought / written) if written else 0,
            cost=sum(job.cost for job in self._finished),
            usd_price=self._usd_price,
        )

    def ours(self) -> dict[str, Any]:
        """The `piecework` object: what was paid to whom for what, in base units.

        The members of the first job stand in front. Further jobs are under `more_jobs`.
        """
        jobs = [
            {
                **members(started, "model_digest", "service", "ceiling"),
                **members(finished, "job", "channel", "cost", "denoising_steps", "acknowledged"),
                "worker": to_hex(finished.operator),
            }
            for finished in self._finished
            for started in self._started
            if started.job == finished.job
        ]
        first = jobs[0] if jobs else {}
        return {
            **first,
            "cost": sum(job.cost for job in self._finished),
            "denoising_steps": sum(job.denoising_steps for job in self._finished),
            "acknowledged": all(job.acknowledged for job in self._finished),
            "token": token_object(self._token),
            "receipts": [_receipt(canvas) for canvas in self._canvases],
            **({"more_jobs": jobs[1:]} if len(jobs) > 1 else {}),
            **({"repairs": self.repairs} if self.repairs else {}),
            # Choices end side by side in any order. An answer that is made again says the same.
            **({"decided": named(sorted(set(self.decided)))} if self.decided else {}),
            **({"ignored": named(self.ignored)} if self.ignored else {}),
        }


def _receipt(canvas: CanvasText | ReadAnswers) -> dict[str, Any]:
    tokens = canvas.tokens if isinstance(canvas, CanvasText) else 0
    return {**members(canvas, *_SHOWN), "tokens": tokens}
