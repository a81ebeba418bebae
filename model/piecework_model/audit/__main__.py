"""The auditor's own process: `python -P -m piecework_model.audit`.

An evidence file comes on stdin, one line, and behind it an openings file if the level is forced.
One JSON object goes to stdout. The process loads the worker's precision, audits one canvas and
ends. With --ask it loads no weights and reads no openings: it says why a forced audit would have no
verdict. Who starts it needs no torch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from piecework_model.errors import AuditError, ImpossibleStepError, ModelError, OpeningError
from piecework_protocol.errors import EvidenceRefused, MalformedInput
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.limits import MAX_EVIDENCE_BYTES
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.openings import MAX_OPENINGS_BYTES, StepOpening, read_openings

if TYPE_CHECKING:
    from piecework_model.audit.claims import ClaimedJob
    from piecework_model.audit.job import CanvasAudit
    from piecework_model.audit.judgement import Table
    from piecework_model.audit.opening import OpenedStep
    from piecework_model.machine.probe import ProfilePrecision
    from piecework_model.requests import GenerationRequest
    from piecework_protocol.evidence.check import ProvenJob
    from piecework_protocol.evidence.file import EvidenceFile

NICENESS: Final = 10
"""An audit may share a machine with a gateway or a worker, and nobody waits for it."""
LEVELS: Final = {"replay": AuditLevel.REPLAY, "forced": AuditLevel.FORCED}


def main(arguments: Sequence[str]) -> int:
    """Audit, and write the report. 0 whatever the outcome is, 2 if there was nothing to audit."""
    parser = argparse.ArgumentParser(prog="piecework_model.audit")
    parser.add_argument("--canvas", type=int, required=True)
    parser.add_argument("--level", choices=tuple(LEVELS), required=True)
    parser.add_argument("--model", default="", help="checkpoint folder, empty for the bundled one")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--no-control", action="store_true", help="an earlier audit made it")
    parser.add_argument("--ask", action="store_true", help="whether it could have a verdict")
    chosen = parser.parse_args(arguments)
    if chosen.ask and LEVELS[chosen.level] is not AuditLevel.FORCED:
        parser.error("--ask goes with --level forced")
    # Libraries print. stdout is ours alone.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        report = audit(chosen)
    except (ModelError, EvidenceRefused) as error:
        report = {"error": str(error)}
    out.write(json.dumps(report) + "\n")
    out.flush()
    return 2 if "error" in report else 0


def audit(chosen: argparse.Namespace) -> dict[str, Any]:
    """Read what stdin has and audit one canvas of it.

    Raises:
        EvidenceRefused: The evidence does not hold.
        ModelError: It cannot be audited here.
    """
    evidence = read_evidence(sys.stdin.buffer.readline(MAX_EVIDENCE_BYTES + 1))
    proven = check_evidence(evidence)
    from piecework_model.audit.claims import ClaimedJob
    from piecework_model.machine.probe import read_precision

    said = read_precision(proven.model.profile)
    if said is None:
        reason = f"the worker's profile names no precision: {proven.model.profile}"
        return _nothing(chosen, reason)
    claimed = ClaimedJob.of_evidence(evidence, proven)
    if LEVELS[chosen.level] is AuditLevel.REPLAY:
        return _replay(chosen, claimed, said, evidence, proven)
    if isinstance(proven.content, AuditContent):
        return _nothing(chosen, "the report of an audit is judged by a replay")
    return _forced(chosen, claimed, said)


def _forced(
    chosen: argparse.Namespace, claimed: ClaimedJob, said: ProfilePrecision
) -> dict[str, Any]:
    """Judge the openings that stdin has, or say why they would have no verdict."""
    from piecework_model.audit.forced import ForcedPass
    from piecework_model.audit.job import JobAudit
    from piecework_model.audit.judgement import load_table
    from piecework_model.audit.openings import opened_steps
    from piecework_model.checkpoint.loading import describe, load, resolve_device

    leaves = claimed.canvas(chosen.canvas).leaves
    if leaves is None:
        raise AuditError("the evidence has no leaves of this canvas")
    table, dtype = load_table(), said.dtype
    if resolve_device(chosen.device).type == "cpu":
        dtype = _measured_dtype(table, claimed, said)
    if chosen.ask:
        job = JobAudit(claimed, describe(**_model(chosen, dtype, said.quantization)))
        return _nothing(chosen, job.forced_lacks(table, chosen.canvas))
    loaded = load(**_model(chosen, dtype, said.quantization))
    job = JobAudit(claimed, loaded)
    openings = _openings(sys.stdin.buffer.readline(MAX_OPENINGS_BYTES))
    width = loaded.model.config.text_config.hidden_size
    started = time.perf_counter()
    try:
        opened = opened_steps(openings, leaves, loaded.limits, width)
    except ImpossibleStepError as error:
        return _report(job.impossible(chosen.canvas, str(error)), started, "")
    control = None if chosen.no_control else partial(_control, chosen, said)
    found = job.forced(ForcedPass(loaded), table, chosen.canvas, opened, control)
    return _report(found, started, "")


def _control(
    chosen: argparse.Namespace,
    said: ProfilePrecision,
    request: GenerationRequest,
    steps: int | None,
) -> list[OpenedStep]:
    """Make a canvas as an honest worker of this precision makes it here."""
    from piecework_model.audit.opening import OpenedStep
    from piecework_model.audit.replay import Replayer
    from piecework_model.checkpoint.loading import load

    loaded = load(**_model(chosen, said.dtype, said.quantization))
    made = Replayer(loaded).replay(request, steps=steps)
    return [OpenedStep.of_replay(step, loaded.limits) for step in made.steps]


def _openings(data: bytes) -> tuple[StepOpening, ...]:
    try:
        return read_openings(data).steps
    except MalformedInput as error:
        raise OpeningError(str(error)) from None


def _replay(
    chosen: argparse.Namespace,
    claimed: ClaimedJob,
    said: ProfilePrecision,
    evidence: EvidenceFile,
    proven: ProvenJob,
) -> dict[str, Any]:
    import torch

    from piecework_model.audit.auditors import judge_report
    from piecework_model.audit.job import JobAudit
    from piecework_model.audit.replay import Replayer
    from piecework_model.checkpoint.loading import load
    from piecework_model.machine.probe import engine_profile, probe, short_profile

    loaded = load(**_model(chosen, said.dtype, said.quantization))
    job = JobAudit(claimed, loaded)
    # A number that this machine lacks leads to another profile, and so to no verdict.
    if 0 < said.threads <= (os.cpu_count() or 1) and loaded.device == "cpu":
        torch.set_num_threads(said.threads)
    replayer = Replayer(loaded)
    here = short_profile(engine_profile(loaded, probe(), replayer.kernels))
    if here != job.profile:
        reason = (
            f"the worker computes as {job.profile}, and this machine as {here}. A replay says "
            "something on the worker's profile alone. A forced audit may work"
        )
        return _nothing(chosen, reason)
    started = time.perf_counter()
    if isinstance(proven.content, AuditContent):
        found = judge_report(job, replayer, proven.content, evidence, proven)
    else:
        found = job.replay(replayer, chosen.canvas)
    return _report(found, started, here)


def _measured_dtype(table: Table, claimed: ClaimedJob, said: ProfilePrecision) -> str:
    """Choose what a forced audit on a CPU computes in: float32, which is nearer to the model than
    any worker, unless only the other pair was measured.
    """
    from piecework_model.audit.job import pairing_of

    for dtype in ("float32", "bfloat16"):
        if pairing_of(claimed, said, dtype, said.quantization, "cpu") in table:
            return dtype
    return "float32"


def _model(chosen: argparse.Namespace, dtype: str, quantization: str) -> dict[str, Any]:
    """Name the model that is loaded, or described, in a precision."""
    path = Path(chosen.model) if chosen.model else None
    return {"path": path, "device": chosen.device, "dtype": dtype, "quantization": quantization}


def _nothing(chosen: argparse.Namespace, reason: str) -> dict[str, Any]:
    return {
        "level": chosen.level,
        "outcome": AuditOutcome.NO_VERDICT.name.lower(),
        "canvas": chosen.canvas,
        "steps": 0,
        "findings": [],
        "reason": reason,
        "seconds": 0.0,
        "profile": "",
        "leaves": [],
        "statistical": False,
    }


def _report(found: CanvasAudit, started: float, profile: str) -> dict[str, Any]:
    return {
        "level": found.level.name.lower(),
        "outcome": found.outcome.name.lower(),
        "canvas": found.canvas,
        "steps": found.steps,
        "findings": list(found.findings),
        "reason": found.reason,
        "seconds": round(time.perf_counter() - started, 3),
        "profile": profile,
        "leaves": [leaf.hex() for leaf in found.leaves],
        "statistical": found.statistical,
    }


if __name__ == "__main__":
    os.nice(NICENESS)
    sys.exit(main(sys.argv[1:]))
