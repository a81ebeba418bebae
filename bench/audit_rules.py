"""What the rules find: `python -m bench.audit_rules [--canvases 30] [--older FOLDER]`.

Workers and requests are those of `bench.audit`. Each canvas is held to the rules of its steps
(clause 7.5, rules 8 to 17 and 19), with all steps opened. No model computes anything for that.
Receipts and output are not judged: a worker signs any of them as the protocol wants it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch

from bench.audit import OLDER
from bench.audit_measure import BFLOAT16, CONDITIONS, Measuring, Models
from bench.audit_workers import ServedCanvas
from bench.report import environment
from piecework_model.checkpoint.loading import LoadedModel
from piecework_protocol.objects import Finish, Kind, Receipt
from piecework_protocol.rules import Case
from piecework_protocol.rules.steps import check_steps
from piecework_protocol.trace import CanvasRecord, StepField, pinned_root, trace_root
from piecework_protocol.types import Amount, Digest, JobId, Micros, Uint32, Uint64
from tests.support.model.traced_jobs import pins_of
from tests.support.protocol import pair

MICRO: Final = 1_000_000
NO_AMOUNT: Final = Amount(0)


def case_of(canvas: ServedCanvas, loaded: LoadedModel) -> Case:
    """Put a canvas as its worker shows it before the rules of its steps."""
    request, index = canvas.request, len(canvas.request.committed)
    size = loaded.limits.canvas_size
    pins = pins_of(request, request.committed, size, loaded.eos_ids)
    blank = pair.job(0, request.max_tokens)
    parameters = blank.parameters.replace(
        seed=Uint64(request.seed),
        max_steps=Uint32(request.max_steps),
        temperature_start=_micros(request.temperature_start),
        temperature_end=_micros(request.temperature_end),
        entropy_bound=_micros(request.entropy_bound),
        confidence_threshold=_micros(request.confidence_threshold),
        stability_steps=Uint32(request.stability_steps),
    )
    kind = Kind.READ if request.reads else Kind.TEXT
    job = blank.replace(parameters=parameters, kind=kind)
    record = CanvasRecord(
        canvas=index,
        size=size,
        vocab_size=loaded.limits.vocab_size,
        kind=kind,
        seed=parameters.seed,
        parameters=parameters.struct_hash(),
        content=job.content,
        pinned=pinned_root(pins.items()),
        prompt_tokens=len(request.prompt_ids),
    )
    leaves = (record.leaf(), *map(Digest, canvas.leaves))
    steps = {step.step: dict(zip(StepField, step.fields(), strict=True)) for step in canvas.records}
    receipt = _receipt(job.id(pair.DOMAIN), index, leaves)
    return Case(
        pair.DOMAIN,
        job,
        pair.MODEL,
        (receipt,),
        leaves=leaves,
        record=record,
        steps=steps,
        pins=pins,
    )


def _micros(value: float) -> Micros:
    return Micros(round(value * MICRO))


def _receipt(job: JobId, index: int, leaves: tuple[Digest, ...]) -> Receipt:
    """What a worker signs for a canvas that goes on. No rule of its steps reads the amounts."""
    none, steps = Uint32(0), Uint32(len(leaves) - 1)
    return Receipt(
        job=job,
        canvas=Uint32(index),
        output_digest=Digest(bytes(32)),
        trace_root=trace_root(leaves),
        steps=steps,
        units=none,
        amount=NO_AMOUNT,
        finish=Finish.MORE,
        total_prompt_tokens=none,
        total_units=none,
        total_steps=steps,
        total_amount=NO_AMOUNT,
        previous=Digest(bytes(32)),
    )


def found(models: Models, measuring: Measuring, worker: str, canvases: int) -> dict[str, Any]:
    """Hold so many canvases of a worker to the rules, and count those that break one."""
    broken, seen, rules = 0, 0, Counter[str]()
    for block in count():
        for canvas in measuring.answers(worker, block):
            if seen == canvases:
                return {
                    "worker": worker,
                    "canvases": seen,
                    "break_a_rule": broken,
                    "rules": dict(sorted(rules.items())),
                }
            findings = {
                finding.rule.name for finding in check_steps(case_of(canvas, models.of(BFLOAT16)))
            }
            rules.update(findings)
            broken += bool(findings)
            seen += 1
    raise AssertionError("blocks never end")


def main() -> None:
    """Print a JSON object with a row for each worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--canvases", type=int, default=30, help="of each worker")
    parser.add_argument("--older", type=Path, help="folder of an earlier checkpoint")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    models = Models("cpu", None, wanted.older)
    measuring = Measuring(models)
    rows = [
        found(models, measuring, condition.name, wanted.canvases)
        for condition in CONDITIONS
        if wanted.older is not None or condition.name != OLDER
    ]
    print(json.dumps({"environment": environment("torch"), "workers": rows}, indent=1))


if __name__ == "__main__":
    main()
