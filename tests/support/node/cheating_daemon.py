"""Daemons that cheat: `python -P -m tests.support.node.cheating_daemon HOME WAY`.

equivocates: signs a second receipt for every canvas, and sends it behind the first. The engine is
the stand-in.
accuses: its audits of others' canvases come to other numbers, and fail. The engine is the stand-in.
other-weights: its engine has loaded the bundled model, and rounds its weights to 8 bits.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from piecework_node import config
from piecework_node.daemon.assembly import build
from piecework_node.daemon.daemon import Daemon, serve
from piecework_node.daemon.ports import Ports
from piecework_node.engine.environment import child_environment
from piecework_node.engine.supervisor import EngineCommandLine, engine_arguments
from piecework_node.home import Home
from piecework_node.jobs.worker import Worker
from piecework_node.runtime.sink import FrameSink
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import Refusal
from piecework_protocol.frames import CanvasDelivered, SubmitJob, WorkerFrame
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import Uint32
from tests.support.system.worker_process import OPERATOR_SECRET


class SaysItTwice:
    """A stream on which every receipt comes in two versions."""

    def __init__(self, sink: FrameSink, domain: Domain) -> None:
        self._sink, self._domain = sink, domain

    def send(self, frame: WorkerFrame) -> bool:
        sent = self._sink.send(frame)
        if isinstance(frame, CanvasDelivered):
            other = frame.receipt.replace(units=Uint32(frame.receipt.units + 1))
            signature = sign(self._domain, other, LocalSigner(OPERATOR_SECRET))
            self._sink.send(replace(frame, receipt=other, signature=signature))
        return sent

    def close(self, refusal: Refusal | None) -> None:
        self._sink.close(refusal)


class Equivocator:
    """A worker all of whose streams say it twice. It is the honest one in all else."""

    def __init__(self, worker: Worker, domain: Domain) -> None:
        self._worker, self._domain = worker, domain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    async def submit(self, submission: SubmitJob, sink: FrameSink) -> Any:
        return await self._worker.submit(submission, SaysItTwice(sink, self._domain))


def stand_in(*more: str) -> EngineCommandLine:
    """The stand-in engine."""
    command = (sys.executable, "-P", "-m", "tests.support.node.engine_child", "0.01", *more)
    return EngineCommandLine(command, dict(os.environ))


async def accuse(home: Path, password: str) -> None:
    """Serve, and find fault with what others have made."""
    await serve(home, {}, password, engine=stand_in(b"a lie".hex()))


async def equivocate(home: Path, password: str) -> None:
    """Serve, and sign everything twice."""
    settings = config.load(home, {})
    ports = Ports.bind(settings)
    try:
        components = await build(Home(home), settings, password, engine=stand_in())
        lying = Equivocator(components.worker, components.base.deployment.domain)
        await Daemon(replace(components, worker=cast("Worker", lying)), ports).run()
    finally:
        ports.close()


async def serve_other_weights(home: Path, password: str) -> None:
    """Serve with an engine of other weights than it says."""
    python, _, _, _, *options = engine_arguments(
        sys.executable,
        model="",
        device="cpu",
        precision="float32",
        planned_context=0,
        slots=1,
        queue=4,
        threads=1,
        benchmark_s=0.2,
    )
    command = (python, "-P", "-m", "tests.support.node.rounded_engine", *options)
    child = EngineCommandLine(command, child_environment(dict(os.environ)))
    await serve(home, {}, password, engine=child)


WAYS = {"equivocates": equivocate, "accuses": accuse, "other-weights": serve_other_weights}


def main() -> None:
    """Cheat until SIGTERM."""
    home, way = Path(sys.argv[1]), sys.argv[2]
    asyncio.run(WAYS[way](home, os.environ["PIECEWORK_PASSWORD"]))


if __name__ == "__main__":
    main()
