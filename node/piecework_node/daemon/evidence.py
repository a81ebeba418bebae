"""`piecework worker evidence`: what the worker holds of a job, from the daemon or without it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from piecework.base.clock import SystemClock
from piecework.base.http import HttpLimits
from piecework.base.jsons import loads
from piecework.chain.deployment import Deployment
from piecework_node import config, logs
from piecework_node.config import WorkerConfig
from piecework_node.daemon.admin import ask_daemon
from piecework_node.errors import JournalLocked
from piecework_node.evidence.export import Exporter
from piecework_node.evidence.steps import StepStore
from piecework_node.home import Home
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import close_operator, keystore_address, open_operator, secret_of
from piecework_node.keys.sealing import SealingKeys, WrappingSecrets, open_wrapping_secret
from piecework_protocol.evidence.file import evidence_json
from piecework_protocol.limits import MAX_EVIDENCE_BYTES
from piecework_protocol.types import parse_address, to_hex

if TYPE_CHECKING:
    from piecework_node.daemon.assembly import Components

ANSWER_LIMITS: Final = HttpLimits(total_s=120.0, connect_s=5.0, max_bytes=2 * MAX_EVIDENCE_BYTES)


@dataclass(frozen=True, slots=True)
class EvidenceWish:
    """What is asked for.

    job: the first hex digits of its id, or empty: only how much is kept.
    canvas: whose steps are wanted, as an openings file. None: the evidence file.
    """

    job: str = ""
    canvas: int | None = None
    with_text: bool = True

    @classmethod
    def parse(cls, body: bytes) -> EvidenceWish:
        """Read what the command sends to the daemon.

        Raises:
            ValueError: it is not such.
        """
        asked = loads(body) if body else {}
        if not isinstance(asked, dict):
            raise ValueError("not an object")
        wish = cls(asked.get("job", ""), asked.get("canvas"), asked.get("with_text", True))
        number = wish.canvas is None or (isinstance(wish.canvas, int) and wish.canvas >= 0)
        if not isinstance(wish.job, str) or not isinstance(wish.with_text, bool) or not number:
            raise ValueError("members of other types")
        return wish


async def answer_of(running: Components, asked: bytes) -> dict[str, Any]:
    """Give what is asked of a running worker as JSON. Errors are those of `answer`, and
    `ValueError` if it is not asked as `EvidenceWish` says.
    """
    base, steps = running.base, running.steps
    exporter = Exporter(base.journal, running.keyring, base.deployment.domain, base.operator, steps)
    return await answer(exporter, steps, EvidenceWish.parse(asked))


async def answer(exporter: Exporter, steps: StepStore, wish: EvidenceWish) -> dict[str, Any]:
    """Give what is asked for as JSON.

    Raises:
        NoEvidence: the worker has nothing of it.
        EvidenceRefused: what the journal has of it does not hold together.
    """
    if not wish.job:
        return {"kept": asdict(steps.usage)}
    if wish.canvas is not None:
        openings = await exporter.openings(wish.job, wish.canvas)
        return {"openings": loads(openings)}
    made = await exporter.export(wish.job, with_text=wish.with_text)
    shown = await asyncio.to_thread(evidence_json, made.file)
    return {"evidence": shown, "job": to_hex(made.id), "lacking": list(made.lacking)}


async def evidence_of(
    root: Path, password: Callable[[], str], wish: EvidenceWish
) -> dict[str, Any]:
    """Ask the daemon of a home, or read the home if none runs. `password` opens the operator key.

    Raises:
        PieceworkError: there is nothing of it. The text says why.
    """
    try:
        return await _read(Home(root), password, wish)
    except JournalLocked:
        body = json.dumps(asdict(wish)).encode()
        return await ask_daemon(root, "POST", "/evidence", body, limits=ANSWER_LIMITS)


async def _read(home: Home, password: Callable[[], str], wish: EvidenceWish) -> dict[str, Any]:
    """Answer from the journal and the kept steps of a home whose daemon does not run."""
    settings, deployment = config.load(home.root), Deployment.load(home.deployment)
    operator = parse_address("0x" + keystore_address(home.operator))
    journal = await SqliteJournal.open(home.journal, deployment.domain, operator)
    try:
        if not wish.job:
            return {"kept": asdict((await _steps(home, settings, SealingKeys(()))).usage)}
        secret = password()
        signer = await open_operator(home.operator, settings.signer, secret, deployment)
        try:
            own = await asyncio.to_thread(open_wrapping_secret, home.sealing, secret)
            under = WrappingSecrets(own, secret_of(signer))
            keys = SealingKeys.load(await journal.sealing_keys(), under)
            steps = await _steps(home, settings, keys)
            exporter = Exporter(journal, keys, deployment.domain, signer, steps)
            return await answer(exporter, steps, wish)
        finally:
            await close_operator(signer)
    finally:
        await journal.close()


async def _steps(home: Home, settings: WorkerConfig, keys: SealingKeys) -> StepStore:
    steps = StepStore(
        home.steps,
        keys,
        Deployment.load(home.deployment).domain,
        budget_bytes=settings.evidence_bytes,
        window_s=settings.evidence_s,
        clock=SystemClock(),
        log=logs.silent(),
    )
    await steps.load()
    return steps
