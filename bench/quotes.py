"""How near a quote is to the bill: `python -m bench.quotes [--jobs 100] [--json]`.

A market of real processes on loopback with the bundled model, and a client that knows nothing. For
each job the client asks for a quote first, and then runs the same request. The error of a quote is
|quote - bill| / bill. Prompts and lengths vary. Seeds are fixed, but the client's salts are not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.report import environment, percentile
from piecework.client.jobs.completion import collect
from piecework.client.jobs.requests import TextRequest
from piecework.client.sdk import PieceworkClient
from piecework.demo.market import Stopwatch, open_market
from piecework.demo.run import PLACES, SUBJECTS, THINGS
from piecework.processes import ProcessGroup
from piecework_protocol.usual import price_with_steps

LENGTHS: Final = (None, 256, 64)
"""`max_tokens` of the requests, in turn. None: the client chooses."""
GOAL: Final = 0.3


@dataclass(frozen=True, slots=True)
class QuotedJob:
    """One job: amounts in base units, what was expected, and what was charged."""

    expected: int
    ceiling: int
    bill: int
    expected_tokens: int
    tokens: int
    expected_steps: int
    steps: int
    source: str
    """Where the worker's figure came from."""
    rate: int
    """A million output tokens with their steps, as the client expected it before the job."""

    @property
    def error(self) -> float:
        """How far the quote was off, as a share of the bill."""
        return abs(self.expected - self.bill) / self.bill


def requests(jobs: int) -> list[TextRequest]:
    """So many requests, the same every time."""
    return [
        TextRequest.of(
            f"Write a story about {SUBJECTS[i % len(SUBJECTS)]}, {THINGS[i % len(THINGS)]} "
            f"and {PLACES[i % len(PLACES)]}.",
            max_tokens=LENGTHS[i % len(LENGTHS)],
            seed=i,
        )
        for i in range(jobs)
    ]


async def quoted(client: PieceworkClient, request: TextRequest) -> QuotedJob:
    """Ask for a quote, and run the same request."""
    quote = await client.quote(request)
    done = await collect(client.run(request), client.payment_token)
    choice, ended = quote.choice, done.finished
    return QuotedJob(
        expected=choice.expected,
        ceiling=choice.ceiling,
        bill=ended.cost,
        expected_tokens=choice.usage.output_tokens,
        tokens=ended.output_tokens,
        expected_steps=choice.usage.denoising_steps,
        steps=ended.denoising_steps,
        source=choice.rate.claim.source.value,
        rate=choice.rate.expected,
    )


async def measure(jobs: int) -> dict[str, Any]:
    """Run the market and all jobs, one after the other."""
    with tempfile.TemporaryDirectory(prefix="piecework-quotes-") as folder:
        async with ProcessGroup(Path(folder) / "logs") as group:
            market = await open_market(group, Path(folder), slots=1, watch=Stopwatch())
            client = market.customer.client
            done = [await quoted(client, request) for request in requests(jobs)]
            found = await client.offers()
            (model,) = found.offers[0].offer.models
            return report(done, price_with_steps(model, 0))


def report(done: Sequence[QuotedJob], output_price: int) -> dict[str, Any]:
    """Summarize jobs. `output_price`: base units for a million output tokens without steps."""
    errors = [job.error for job in done]
    paid = [job.bill * 1_000_000 // job.tokens for job in done if job.tokens]
    return {
        "benchmark": "quotes",
        "jobs": len(done),
        "error_p50": round(statistics.median(errors), 4),
        "error_p90": round(percentile(errors, 0.9), 4),
        "first_error": round(errors[0], 4),
        "goal": GOAL,
        "over_ceiling": sum(job.bill > job.ceiling for job in done),
        "output_price_per_million": output_price,
        "paid_per_million_p50": int(statistics.median(paid)) if paid else None,
        "rate_of_the_last_quote": done[-1].rate,
        "sources": sorted({job.source for job in done}),
        "environment": environment("torch", "transformers"),
        "each": [asdict(job) | {"error": round(job.error, 4)} for job in done],
    }


def show(found: dict[str, Any]) -> None:
    """The report for a person."""
    print(
        f"{found['jobs']} jobs: quotes are off by {found['error_p50']:.1%} at the median, "
        f"{found['error_p90']:.1%} at nine of ten, {found['first_error']:.1%} for the first one"
    )
    print(
        f"a million output tokens: {found['output_price_per_million']} base units without steps, "
        f"{found['paid_per_million_p50']} paid at the median, "
        f"{found['rate_of_the_last_quote']} in the last quote"
    )
    print(f"figures of the worker: {', '.join(found['sources'])}")


def main(arguments: Sequence[str]) -> int:
    """The command line. Exit code 1 if the median is past the goal or a ceiling was broken."""
    parser = argparse.ArgumentParser(prog="python -m bench.quotes", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.jobs < 1:
        parser.error("at least one job is run")
    found = asyncio.run(measure(chosen.jobs))
    print(json.dumps(found)) if chosen.json else show(found)
    return int(found["error_p50"] > GOAL or found["over_ceiling"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
