"""Old jobs and old sealing keys go at their time, and stay while a challenge is open."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from piecework_node import logs
from piecework_node.evidence.expiry import EvidenceExpiry
from piecework_node.evidence.steps import StepStore
from piecework_node.keys.sealing import SealingKeyring, WrappingSecrets
from piecework_protocol.errors import MalformedInput
from piecework_protocol.sealing import seal
from tests.support.clock import FakeClock
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.support.node.journal_life import DAY_S, EVIDENCE_S, Life, opened


async def loaded(life: Life) -> SealingKeyring:
    """What a start of the worker does: it makes a new key if that is due."""
    return await SealingKeyring.load(
        life.journal,
        WrappingSecrets(OPERATOR.secret),
        clock=life.clock,
        entropy=secrets.token_bytes,
        rotation_s=DAY_S,
        evidence_s=EVIDENCE_S,
    )


async def test_a_worker_that_comes_back_keeps_what_an_open_challenge_may_ask_for(
    tmp_path: Path,
) -> None:
    """It was away for days. The challenge waits in line, so its answer is not due yet."""
    life = await opened(tmp_path, FakeClock())
    await life.begin()
    asked = await life.job()
    key = (await loaded(life)).current
    assert key is not None
    sealed = seal(b"text", key, b"context")
    life.clock.advance(DAY_S)
    await loaded(life)
    life.clock.advance(7 * DAY_S)
    keyring = await loaded(life)
    assert keyring.current != key
    steps = StepStore(
        tmp_path / "steps",
        keyring,
        DOMAIN,
        budget_bytes=0,
        window_s=EVIDENCE_S,
        clock=life.clock,
        log=logs.silent(),
    )
    quiet = False
    expiry = EvidenceExpiry(life.journal, steps, keyring, window_s=EVIDENCE_S, quiet=lambda: quiet)
    assert not await expiry.step()
    assert await life.journal.job(asked.job) is not None
    assert keyring.open(sealed, b"context") == b"text"
    quiet = True
    while await expiry.step():
        pass
    assert await life.journal.job(asked.job) is None
    with pytest.raises(MalformedInput):
        keyring.open(sealed, b"context")
    assert key not in [stored.public for stored in await life.journal.sealing_keys()]
    await life.journal.close()
