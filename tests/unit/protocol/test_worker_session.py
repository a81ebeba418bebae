"""What the worker's session does when the engine under it was replaced."""

from __future__ import annotations

from piecework_protocol.frames import JobEnded
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.limits import MAX_CANVASES_AHEAD
from piecework_protocol.states import JobState
from piecework_protocol.types import Digest
from piecework_protocol.worker_session import (
    AcceptedJob,
    StartEngine,
    StopEngine,
    StoppedEngine,
    WorkerSession,
)
from tests.support.protocol.pair import DOMAIN, MODEL, NOW, channel, denoise, job


def test_a_running_job_goes_on_behind_its_last_canvas_when_the_engine_was_replaced() -> None:
    work = job(1, 40)
    session = WorkerSession(AcceptedJob(work.id(DOMAIN), work, channel(), MODEL, 7, NOW), DOMAIN)
    ledger = WorkerLedger(work.channel)
    session.open(0, ledger)
    _, ledger = session.canvas_finished(denoise(session.accepted, 0), ledger)
    outcome = session.engine_restarted(ledger)
    assert outcome.commands == (StartEngine(1, MAX_CANVASES_AHEAD),)
    assert not outcome.records
    assert not outcome.unsent
    session.cancel()
    assert not session.engine_restarted(ledger).commands


def test_what_a_session_has_charged_is_the_sum_of_its_receipts() -> None:
    work = job(1, 40)
    session = WorkerSession(AcceptedJob(work.id(DOMAIN), work, channel(), MODEL, 7, NOW), DOMAIN)
    ledger = WorkerLedger(work.channel)
    session.open(0, ledger)
    _, ledger = session.canvas_finished(denoise(session.accepted, 0), ledger)
    assert session.charged == sum(owed.amount for owed in ledger.unpaid.values()) > 0


def test_a_job_that_ends_in_a_pause_owes_nothing_for_the_canvas_in_progress() -> None:
    work = job(1, 40)
    session = WorkerSession(AcceptedJob(work.id(DOMAIN), work, channel(), MODEL, 7, NOW), DOMAIN)
    ledger = WorkerLedger(work.channel)
    session.open(0, ledger)
    _, ledger = session.canvas_finished(denoise(session.accepted, 0), ledger)
    outcome = session.cancel(paused=True)
    assert session.state is JobState.CANCELLED
    assert outcome.commands == (StopEngine(finish_canvas=False),)
    assert outcome.frames() == (JobEnded(work.id(DOMAIN), 1, None),)
    stopped = StoppedEngine(1, 7, 3, (Digest(bytes(32)),) * 4, Digest(bytes(32)), 0, b"")
    late, after = session.stopped(stopped, ledger)
    assert not late.records and after == ledger
