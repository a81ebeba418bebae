"""What is around the worker: what indexes tell of its offer and its clock, and room on its disk."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Final
from urllib.parse import urlsplit

from piecework.base.clock import Clock
from piecework.base.hosts import is_address, is_loopback, is_public, is_unspecified
from piecework.base.http import HttpError, HttpReader, HttpStatus, host_of
from piecework.chain.deployment import Deployment
from piecework.chain.limits import DEVELOPMENT_CHAIN_IDS
from piecework_node.config import WorkerConfig
from piecework_node.endpoints import split_endpoint
from piecework_node.errors import ConfigError
from piecework_node.jobs.offers import Dates, IndexAnswer
from piecework_node.metrics import Metrics
from piecework_node.runtime.faults import Code, FaultBoard
from piecework_protocol.disputes import ANSWER_SECONDS, CHALLENGE_SECONDS
from piecework_protocol.limits import MAX_CLOCK_SKEW_S

CLOCK: Final = "clock"
"""The name under which the clock is reported to the board."""
DISK: Final = "disk"
MIB: Final = 1024 * 1024
FIRST_RETRY_S: Final = 2.0
_SET: Final = "Set endpoint to the host:port that clients dial, or name relays and leave bind empty"
_SET_RELAYS: Final = "Set relays to what relays call themselves"
LEAST_EVIDENCE_S: Final = CHALLENGE_SECONDS + ANSWER_SECONDS
"""Of a market with disputes. Once a challenge is seen, its evidence stays."""
MAX_RETRY_S: Final = 60.0
"""An index that was away for seconds shows the worker again within seconds."""


class DiskWatch:
    """Reports to the board whether the disk has room. A journal that cannot write ends the worker.

    So new jobs stop before that.
    """

    def __init__(
        self,
        board: FaultBoard,
        folder: Path,
        least_mib: int,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        """`free_bytes` tells how many bytes a folder's disk has left."""
        self._board, self._folder, self._least_mib = board, folder, least_mib
        self._free_bytes = free_bytes

    def look(self) -> None:
        """Look at the disk once."""
        free_mib = self._free_bytes(self._folder) // MIB
        if free_mib >= self._least_mib:
            self._board.passed(DISK)
            return
        detail = f"{free_mib} MiB are free, and min_free_disk_mib is {self._least_mib}"
        self._board.failed(DISK, Code.DISK_LOW, detail)


class IndexWatch:
    """Reports to the board what indexes answer, and says when to ask those again that failed."""

    def __init__(self, board: FaultBoard, metrics: Metrics) -> None:
        self._board, self._metrics = board, metrics
        self._seen: dict[str, bool] = {}
        self._retry_s = FIRST_RETRY_S

    @property
    def seen_by(self) -> dict[str, bool]:
        """By host: whether the index took the last offer."""
        return dict(self._seen)

    @property
    def retry_s(self) -> float | None:
        """Seconds after which to publish again. None: every index took the offer."""
        return None if all(self._seen.values()) else self._retry_s

    def note(self, answers: Sequence[IndexAnswer]) -> None:
        """Take the answers to one offer."""
        for answer in answers:
            self._seen[answer.host] = answer.taken
            check = f"index {answer.host}"
            if answer.taken:
                self._board.passed(check)
            elif answer.declined:
                detail = f"{answer.host} declines the offer ({answer.reason})"
                self._board.failed(check, Code.INDEX_DECLINES, detail)
            else:
                detail = f"{answer.host} does not answer ({answer.reason})"
                self._board.failed(check, Code.INDEX_AWAY, detail)
        good = all(answer.taken for answer in answers)
        self._retry_s = FIRST_RETRY_S if good else min(2 * self._retry_s, MAX_RETRY_S)
        self._judge_clock(a.ahead_s for a in answers if a.ahead_s is not None)

    def _judge_clock(self, told: Iterable[float]) -> None:
        """Compare our clock with those of the indexes. More than half of them must say so."""
        offsets = list(told)
        if not offsets:
            return
        offset = median(offsets)
        self._metrics.clock_offset.set(offset)
        for code, off, word in (
            (Code.CLOCK_AHEAD, [s for s in offsets if s > MAX_CLOCK_SKEW_S], "ahead of"),
            (Code.CLOCK_BEHIND, [s for s in offsets if s < -MAX_CLOCK_SKEW_S], "behind"),
        ):
            if 2 * len(off) > len(offsets):
                said = f"{abs(offset):.0f} s {word} {len(off)} of {len(offsets)} indexes"
                self._board.failed(CLOCK, code, f"this clock is {said}")
                return
        self._board.passed(CLOCK)


async def ask_indexes(
    indexes: Sequence[str], http: HttpReader, dates: Dates, clock: Clock
) -> tuple[IndexAnswer, ...]:
    """Ask every index for one offer: whether it answers, and what time it has."""

    async def ask(index: str) -> IndexAnswer:
        host, sent = host_of(index), clock.wall()
        reason, declined = "", False
        try:
            await http.get(index.rstrip("/") + "/v1/offers?limit=1")
        except HttpError as error:
            reason, declined = str(error), isinstance(error, HttpStatus)
        ahead = dates.ahead_s(host, sent, clock.wall())
        return IndexAnswer(host, not reason, reason, declined, ahead)

    return tuple(await asyncio.gather(*map(ask, indexes)))


def check_settings(config: WorkerConfig, deployment: Deployment) -> None:
    """Refuse settings with which a worker of this market would earn nothing, or lose its stake.

    Raises:
        ConfigError: as `check_endpoints` and `check_evidence_time` say.
    """
    check_endpoints(config, deployment.chain_id)
    check_evidence_time(config, deployment)


def check_endpoints(config: WorkerConfig, chain_id: int) -> None:
    """Refuse addresses that no client of this market could dial: the worker's own and its relays'.

    Raises:
        ConfigError: no client could dial one of them. The text says what to set.
    """
    if config.listens:
        check_endpoint(config.endpoint or config.bind, chain_id, config.indexes)
    for relay in config.relays:
        check_endpoint(relay, chain_id, config.indexes, _SET_RELAYS)


def check_evidence_time(config: WorkerConfig, deployment: Deployment) -> None:
    """Refuse to let go of what a challenge may still ask for: an honest worker would be silent.

    Raises:
        ConfigError: the market has disputes, and `evidence_s` is shorter than they take.
    """
    traced = any(card.backend != "vllm" for _, card in config.of_cards)
    if deployment.disputes is None or not traced or config.evidence_s >= LEAST_EVIDENCE_S:
        return
    raise ConfigError(
        f"evidence_s is {config.evidence_s}, and this market has disputes. A job can be challenged "
        f"until {CHALLENGE_SECONDS} s after its deadline, and who cannot answer loses stake. "
        f"Set evidence_s to {LEAST_EVIDENCE_S} or more, or leave it out"
    )


def check_endpoint(
    endpoint: str, chain_id: int, indexes: Sequence[str], remedy: str = _SET
) -> None:
    """Refuse an address that no client of this market could dial.

    Raises:
        ConfigError: it means every address, this machine only, or one of a private network. The
            text says what to set.
    """
    host, _ = split_endpoint(endpoint)
    if is_unspecified(host):
        raise ConfigError(f"{endpoint} means every address, and clients cannot dial it. {remedy}")
    if not is_loopback(host):
        if chain_id not in DEVELOPMENT_CHAIN_IDS and is_address(host) and not is_public(host):
            raise ConfigError(
                f"{endpoint} is of a private network, and clients come from elsewhere. {remedy}"
            )
        return
    public = [index for index in indexes if not is_loopback(urlsplit(index).hostname or "")]
    if public:
        where = f"the index {host_of(public[0])} is not on it"
    elif chain_id not in DEVELOPMENT_CHAIN_IDS:
        where = f"chain {chain_id} is not a development chain"
    else:
        return
    raise ConfigError(f"{endpoint} is this machine only, and {where}. {remedy}")
