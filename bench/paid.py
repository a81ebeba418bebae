"""The whole paid path: `python -m bench.paid [--reads 128] [--documents 60] [--json]`.

A market of real processes on loopback with the bundled model. Two things are measured:

- Reads per second at several numbers of reads in flight. A client signs and seals each read, a
  worker process runs it on its engine, and the client checks the receipt and pays. The numbers take
  turns in each of `--repeat` rounds.
- The share of structured answers that need repair. Each is asked of the gateway, by one of a few
  schemas. A repair is a further job that fills again what was not valid. The bundled model learns
  story cards in its training, and none of the other schemas. The cards here have seeds that no
  training draws.

`python -m bench.reads` measures the engine alone, without a client and without money.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import openai

from bench.report import environment, percentile
from piecework.client.errors import NoWorkerFits
from piecework.client.sdk import PieceworkClient
from piecework.demo.market import DemoMarket, Stopwatch, open_market
from piecework.demo.run import PLACES, SUBJECTS, THINGS
from piecework.processes import ProcessGroup
from piecework_model.training import phrases, skills
from piecework_protocol.kinds.read import Label, Question

IN_FLIGHT: Final = (1, 8, 64)
SLOTS: Final = 8
ANSWER_S: Final = 300.0
QUESTIONS: Final = (
    Question("Is the story about an animal?", (Label("yes"), Label("no"))),
    Question("Where does it happen?", (Label("river"), Label("forest"), Label("town"))),
)
STORY_CARD: Final = "story card"
SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    STORY_CARD: {key: {"type": "string"} for key in phrases.CARD_FIELDS},
    "choices": {"animal": {"enum": ["fox", "owl", "cat"]}, "brave": {"type": "boolean"}},
    "number": {"age": {"type": "integer"}, "kind": {"enum": ["a", "b"]}},
    "short string": {"hero": {"type": "string", "maxLength": 24}},
    "free string": {"story": {"type": "string"}},
    "list": {"friends": {"type": "array", "items": {"type": "string"}, "maxItems": 3}},
}


@dataclass(slots=True)
class PaidReads:
    """What was measured at one number in flight: reads a second, and delays in seconds."""

    rates: list[float] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)
    refused: int = 0
    """Reads that no worker had room for. They are not in the rates."""

    def report(self) -> dict[str, float]:
        """Summarize the rounds."""
        return {
            "reads_per_second_min": round(min(self.rates), 1),
            "reads_per_second": round(statistics.median(self.rates), 1),
            "reads_per_second_max": round(max(self.rates), 1),
            "p50_ms": round(1000 * percentile(self.delays_s, 0.5), 1),
            "p99_ms": round(1000 * percentile(self.delays_s, 0.99), 1),
            "refused": self.refused,
        }


@dataclass(frozen=True, slots=True)
class Document:
    """One structured answer: its schema, and how it went.

    repairs: further jobs of text. jobs: all of them, reads that decided values included. cost: in
    base units.
    """

    schema: str
    valid: bool
    repairs: int = 0
    jobs: int = 0
    cost: int = 0


def stories(count: int) -> list[str]:
    """So many prompts, the same every time."""
    return [
        f"Write a story about {SUBJECTS[i % len(SUBJECTS)]}, {THINGS[i % len(THINGS)]} and "
        f"{PLACES[i % len(PLACES)]}."
        for i in range(count)
    ]


def asked(name: str, number: int) -> str:
    """Return what the user says in structured answer `number`, the same every time."""
    if name != STORY_CARD:
        return stories(number + 1)[-1]
    rng = random.Random(f"paid {number}")  # noqa: S311  a workload, no secret
    return skills.ask_card(rng).conversation.messages[-1].text


async def serve(client: PieceworkClient, prompts: Sequence[str], in_flight: int) -> PaidReads:
    """Pay for all reads, `in_flight` at a time, in one round."""
    done, places = PaidReads(), asyncio.Semaphore(in_flight)

    async def one(number: int, prompt: str) -> None:
        async with places:
            start = time.perf_counter()
            try:
                await client.read(prompt, QUESTIONS, seed=number)
            except NoWorkerFits as error:
                if error.retry_after_s is None:
                    raise
                done.refused += 1
            else:
                done.delays_s.append(time.perf_counter() - start)

    began = time.perf_counter()
    await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
    done.rates.append(len(done.delays_s) / (time.perf_counter() - began))
    return done


async def reads(
    client: PieceworkClient, in_flight: Sequence[int], repeat: int, count: int
) -> dict[int, PaidReads]:
    """Measure the reads of all rounds. The first read opens the channel and is not counted."""
    await client.read("Once there was a fox.", QUESTIONS, seed=0)
    found = {number: PaidReads() for number in in_flight}
    for _ in range(repeat):
        for number, rounds in found.items():
            done = await serve(client, stories(count), number)
            rounds.rates += done.rates
            rounds.delays_s += done.delays_s
            rounds.refused += done.refused
    return found


async def documents(url: str, count: int) -> list[Document]:
    """Ask the gateway for structured answers, one after the other."""
    names = list(SCHEMAS)
    async with openai.AsyncOpenAI(
        base_url=url, api_key="not-needed", max_retries=0, timeout=ANSWER_S
    ) as sdk:
        return [
            await document(sdk, names[i % len(names)], asked(names[i % len(names)], i), i)
            for i in range(count)
        ]


async def document(sdk: openai.AsyncOpenAI, name: str, prompt: str, seed: int) -> Document:
    """Ask for one structured answer."""
    properties = SCHEMAS[name]
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    messages: Any = [{"role": "user", "content": prompt}]
    try:
        answer = await sdk.chat.completions.create(
            model="any", messages=messages, response_format=form, seed=seed, max_tokens=512
        )
    except openai.APIStatusError as error:
        if error.code != "structured_output_failed":
            raise
        return Document(name, valid=False)
    ours: Any = (answer.model_extra or {})["piecework"]
    jobs = 1 + len(ours.get("more_jobs", []))
    valid = answer.choices[0].finish_reason == "stop"
    return Document(name, valid, ours.get("repairs", 0), jobs, ours["cost"])


def repairs_of(done: Sequence[Document]) -> dict[str, Any]:
    """Summarize structured answers, all of them and by schema."""

    def summary(of: Sequence[Document]) -> dict[str, Any]:
        return {
            "answers": len(of),
            "valid": sum(one.valid for one in of),
            "repaired": sum(one.repairs > 0 for one in of),
            "share_repaired": round(sum(one.repairs > 0 for one in of) / len(of), 3),
            "jobs_mean": round(statistics.mean(one.jobs for one in of), 2),
        }

    names = dict.fromkeys(one.schema for one in done)
    return {
        **summary(done),
        "by_schema": {name: summary([d for d in done if d.schema == name]) for name in names},
    }


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[DemoMarket]:
    """Run a market of real processes."""
    async with ProcessGroup(folder / "logs") as group:
        yield await open_market(group, folder, slots=SLOTS, watch=Stopwatch())


async def measure(
    in_flight: Sequence[int], repeat: int, count: int, answers: int
) -> dict[str, Any]:
    """Measure everything in one market."""
    with tempfile.TemporaryDirectory(prefix="piecework-paid-") as folder:
        async with opened(Path(folder)) as market:
            client = market.customer.client
            rounds = await reads(client, in_flight, repeat, count) if count else {}
            done = await documents(market.gateway.ready["url"], answers) if answers else []
    return {
        "benchmark": "paid",
        "slots": SLOTS,
        "repeat": repeat,
        "reads": count,
        "environment": environment("torch", "transformers"),
        "in_flight": {str(number): one.report() for number, one in rounds.items()},
        "structured": repairs_of(done) if done else {},
    }


def show(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    for number, done in report["in_flight"].items():
        rates = [done[f"reads_per_second{end}"] for end in ("_min", "", "_max")]
        print(
            f"{number:>3} in flight: {rates[0]} / {rates[1]} / {rates[2]} reads/s, "
            f"p50 {done['p50_ms']} ms, {done['refused']} refused"
        )
    structured = report["structured"]
    for name, one in {"all": structured, **structured.get("by_schema", {})}.items():
        if one:
            print(
                f"{name:>12}: {one['valid']} of {one['answers']} valid, "
                f"{one['share_repaired']:.0%} repaired, {one['jobs_mean']} jobs each"
            )


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.paid", description=__doc__)
    parser.add_argument("--in-flight", default=",".join(map(str, IN_FLIGHT)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--reads", type=int, default=128, help="of each round; 0: none")
    parser.add_argument("--documents", type=int, default=60, help="structured answers; 0: none")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    in_flight = [int(number) for number in chosen.in_flight.split(",")]
    if min(in_flight) < 1 or chosen.repeat < 1:
        parser.error("at least one read is in flight, in at least one round")
    report = asyncio.run(measure(in_flight, chosen.repeat, chosen.reads, chosen.documents))
    print(json.dumps(report)) if chosen.json else show(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
