"""What the worker's session does when the engine under it was replaced."""

from __future__ import annotations

from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.limits import MAX_CANVASES_AHEAD
from piecework_protocol.worker_session import AcceptedJob, StartEngine, WorkerSession
from tests.support.pair import DOMAIN, MODEL, NOW, channel, denoise, job


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
