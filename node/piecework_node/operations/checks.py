"""`piecework worker check`: check every condition of a good start without starting anything."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from piecework.base.amounts import native_coin
from piecework.base.clock import Clock, SystemClock
from piecework.base.dialling import Dialled
from piecework.base.errors import PieceworkError
from piecework.base.http import HttpReader
from piecework.chain.deployment import Deployment
from piecework.chain.errors import ChainError
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.fees import GWEI, FeePolicy
from piecework.signer.book import shown_time
from piecework.signer.remote import RemoteSigner
from piecework_model.errors import ModelError
from piecework_node import config as settings
from piecework_node import logs
from piecework_node.card_settings import FIRST_CARD
from piecework_node.config import WorkerConfig
from piecework_node.daemon.admin import ask_daemon
from piecework_node.daemon.assembly import connect
from piecework_node.daemon.engines import checkpoint_of, vllm_settings
from piecework_node.daemon.owners import machine_senses, owner_rules
from piecework_node.daemon.reach import (
    DIALLED,
    REACH_LIMITS,
    SHOWN,
    Onlooker,
    ReachWatch,
    Sight,
    answering,
)
from piecework_node.daemon.standing import REGISTERED_ADDRESS, REGISTRATION, StandingWatch
from piecework_node.daemon.surroundings import (
    CLOCK,
    IndexWatch,
    ask_indexes,
    check_endpoints,
    check_evidence_time,
)
from piecework_node.disputes.leaves import jobs_of_others
from piecework_node.endpoints import split_endpoint
from piecework_node.errors import AdminError, ConfigError, JournalLocked
from piecework_node.home import Home
from piecework_node.job_port.relays import RelayAway, RelayCredentials, RelayDeclines, RelayLink
from piecework_node.jobs.offers import PUBLISH_LIMITS, Dates
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import (
    close_operator,
    is_record,
    keystore_address,
    load_operator,
    open_operator,
)
from piecework_node.keys.tls import load_tls
from piecework_node.metrics import Metrics
from piecework_node.operations.check_results import CheckResult, Result
from piecework_node.owner.causes import describe_heat
from piecework_node.owner.watch import check_rules
from piecework_node.runtime.faults import Code, Fault, FaultBoard, Stops, code_of
from piecework_node.runtime.signing import CHECK as SIGNER
from piecework_node.runtime.signing import judge
from piecework_node.settlement.chain import ChainLink
from piecework_node.settlement.watch import CHECKS as NODE_CHECKS
from piecework_node.settlement.watch import NodeWatch, WatchLimits
from piecework_node.times import now
from piecework_protocol.objects import Endpoint, ModelOffer, Route
from piecework_protocol.relaying import relay_domain
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import Digest, address_hex, parse_address

if TYPE_CHECKING:
    from piecework_model.checkpoint.memory import PrecisionPlan
    from piecework_model.machine.probe import Hardware

T = TypeVar("T")
Check = Callable[[], Awaitable[str]]
NATIVE_COIN: Final = native_coin()


class _Unchecked(PieceworkError):
    """An item needs what an earlier one missed."""

    def result(self, item: str) -> CheckResult:
        """Say so of the item."""
        return CheckResult.unchecked(item)


class _InUse(_Unchecked):
    """Another process has the home, and tells nothing yet."""

    def result(self, item: str) -> CheckResult:
        return CheckResult.in_use(item)


class _Found(PieceworkError):
    """Conditions of the board that fail an item."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(fault.line for fault in faults))
        self.faults = faults


class Checker:
    """Runs the checks in order. Later ones use what earlier ones find."""

    def __init__(self, home: Home, password: str, *, clock: Clock | None = None) -> None:
        self._time = clock or SystemClock()
        self._home, self._password = home, password
        self._config: WorkerConfig | None = None
        self._deployment: Deployment | None = None
        self._operator: AsyncSigner | None = None
        self._tls_digest: Digest | None = None
        self._model_digests: dict[str, bytes] = {}
        """By the name of the card."""
        self._card = ""
        """The card of several that is being checked."""
        self._status: dict[str, Any] | None = None
        """Of the worker that runs in this home."""
        self._held = False
        """Whether another process has the home, and tells nothing yet."""
        self._watched = False
        self._remarks: list[Fault] = []
        """Conditions that do not fail the item that is being checked."""
        # What fails once fails the check: nothing is waited for.
        self._metrics = Metrics()
        self._board = FaultBoard(self._time, self._metrics, logs.silent(), patience_s=0)

    async def run(self) -> list[CheckResult]:
        """Return every finding. A check that needs what an earlier one missed says so."""
        findings = []
        for item, check in self._checks():
            self._remarks = []
            of_card = await self._result_of(item, check)
            findings += [replace(finding, card=self._card) for finding in of_card]
        if self._operator is not None:
            await close_operator(self._operator)
        return findings

    async def _result_of(self, item: str, check: Check) -> list[CheckResult]:
        warn = Result.WARNING
        try:
            detail = await check()
        except _Unchecked as error:
            return [error.result(item)]
        except _Found as error:
            return [CheckResult.of(item, fault, Result.ERROR) for fault in error.faults]
        except ChainError as error:
            code = code_of(error)
            if code is None:
                return [CheckResult.failed(item, str(error))]
            return [CheckResult.of(item, Fault(code, str(error).rstrip(". ")), Result.ERROR)]
        except (PieceworkError, ModelError, OSError) as error:
            return [CheckResult.failed(item, str(error))]
        remarks = [CheckResult.of(item, fault, warn) for fault in self._remarks]
        return [CheckResult(item, Result.SUCCESS, detail), *remarks] if detail else remarks

    def _checks(self) -> Iterator[tuple[str, Check]]:
        """In order. What is checked of the engine depends on the settings, which come first."""
        yield from (
            ("settings", self._settings),
            ("deployment", self._load_deployment),
            ("operator key", self._key),
        )
        if self._config is not None and self._config.signer:
            yield "signer", self._signer
        yield from (
            ("certificate", self._tls),
            ("journal", self._journal),
            ("chain", self._chain),
            ("clock", self._clock),
            ("stake", self._stake),
            ("gas", self._gas),
            ("endpoint", self._endpoint),
            ("ports", self._ports),
        )
        if self._config is not None and self._config.relays:
            yield "relays", self._relays
        yield from (("indexes", self._indexes), ("dialled", self._dialled))
        cards = ((FIRST_CARD, None),) if self._config is None else self._config.of_cards
        for name, own in cards:
            self._card = name if self._config is not None and self._config.cards else ""
            yield from self._of_card(name, own)
        self._card = ""
        if any(own is None or own.backend == "diffusion" for _, own in cards):
            yield "audits", self._audits

    def _of_card(self, name: str, own: WorkerConfig | None) -> Iterator[tuple[str, Check]]:
        """What is checked of each card, by its own settings."""
        yield "owner", lambda: self._owner(name, self._need(own))
        yield "model", lambda: self._model(name, self._need(own))
        if own is not None and own.backend == "vllm":
            yield "endpoints", lambda: self._endpoints(own)
            return
        yield "device", lambda: self._device(self._need(own))
        yield "precision", lambda: self._precision(self._need(own))
        yield "fast paths", lambda: self._fast_paths(self._need(own))

    async def _settings(self) -> str:
        self._config = settings.load(self._home.root)
        return str(self._home.config)

    async def _load_deployment(self) -> str:
        self._deployment = Deployment.load(self._home.deployment)
        if self._config is not None:
            self._config.amounts(self._deployment.payment_token)
            check_evidence_time(self._config, self._deployment)
        return f"chain {self._deployment.chain_id}, escrow {address_hex(self._deployment.escrow)}"

    async def _key(self) -> str:
        config = self._need(self._config)
        if config.signer:
            named = parse_address("0x" + keystore_address(self._home.operator))
            return f"{address_hex(named)}, in a signer"
        self._operator = await asyncio.to_thread(load_operator, self._home.operator, self._password)
        return address_hex(self._operator.address)

    async def _signer(self) -> str:
        """Ask the signer whose key it has, and what is left of its day."""
        config, deployment = self._need(self._config), self._need(self._deployment)
        operator = await open_operator(self._home.operator, config.signer, "", deployment)
        self._operator = operator
        if not isinstance(operator, RemoteSigner):
            return "none set. The key is in this home"
        state = await operator.state()
        judge(self._board, state)
        self._hold(SIGNER)
        left = f"{state.signatures} signatures, {state.wei} wei and {state.tokens} base units"
        detail = f"has the operator's key, with {left} left until {shown_time(state.renews_at)}"
        if is_record(self._home.operator):
            return detail
        return f"{detail}. The key is in this home too: remove operator.json, and run init again"

    async def _tls(self) -> str:
        named = parse_address("0x" + keystore_address(self._home.operator))
        tls = load_tls(self._home.certificate, self._home.certificate_key, named)
        self._tls_digest = tls.digest
        return "0x" + tls.digest.hex()

    async def _journal(self) -> str:
        operator = parse_address("0x" + keystore_address(self._home.operator))
        if not self._home.journal.exists():
            return "none yet. The first start makes it"
        try:
            journal = await SqliteJournal.open(
                self._home.journal, self._need(self._deployment).domain, operator
            )
        except JournalLocked:
            try:
                self._status = await ask_daemon(self._home.root, "GET", "/status")
            except AdminError:
                self._held = True
                raise _InUse from None
            return f"in use by a running worker, which is {self._status['state']}"
        try:
            return f"{await journal.verify()} log rows, chain unbroken"
        finally:
            await journal.close()

    @property
    def _is_running(self) -> bool:
        return self._status is not None

    def _need_free(self) -> None:
        """Leave ports, relays and journal to the process that has them."""
        if self._held:
            raise _Unchecked

    async def _chain(self) -> str:
        """Ask the node everything that the running worker asks, by the same watch."""
        async with await self._connect() as reader:
            height = await reader.latest_block()
            await self._watch_node(reader)
        self._hold(*(c for c in NODE_CHECKS if c not in ("head", "gas tank")))
        return f"block {height}, contracts are the deployment's"

    async def _watch_node(self, reader: ChainReader) -> None:
        config = self._need(self._config)
        fees = FeePolicy(max_fee_wei=int(config.max_fee_gwei * GWEI))
        watch = NodeWatch(
            ChainLink(reader, self._need(self._operator), fees),
            self._board,
            clock=self._time,
            limits=WatchLimits.of(reader.deployment.chain_id, config.block_time_s),
            metrics=self._metrics,
        )
        await watch.round()
        self._watched = True

    async def _clock(self) -> str:
        self._need(self._watched or None)
        self._hold("head")
        return "the chain's latest block is of now"

    async def _endpoint(self) -> str:
        config, deployment = self._need(self._config), self._need(self._deployment)
        check_endpoints(config, deployment.chain_id)
        return config.endpoint or config.bind or "none. Clients come through relays alone"

    async def _relays(self) -> str:
        """Join each relay as the worker would, and hang up."""
        self._need_free()
        config, deployment = self._need(self._config), self._need(self._deployment)
        if self._status is not None:
            states: dict[str, str] = self._status["relays"]
            return ", ".join(f"{name} {state}" for name, state in states.items())
        domain = relay_domain(deployment.chain_id, deployment.registry)
        credentials = RelayCredentials(self._need(self._operator), domain, self._time)
        for relay in config.relays:
            check = f"relay {relay}"
            try:
                (await RelayLink.join(relay, credentials)).close()
            except RelayDeclines as error:
                self._board.failed(check, Code.RELAY_DECLINES, f"{relay}: {error}")
            except RelayAway as error:
                self._board.failed(check, Code.RELAY_AWAY, f"{relay}: {error}")
        self._hold_all(*(f"relay {relay}" for relay in config.relays))
        return ", ".join(config.relays)

    async def _indexes(self) -> str:
        indexes, dates = self._need(self._config).indexes, Dates()
        if not indexes:
            return "none set. Clients find the worker in the registry only"
        async with HttpReader(PUBLISH_LIMITS, dated=dates) as http:
            answers = await ask_indexes(indexes, http, dates, self._time)
        IndexWatch(self._board, self._metrics).note(answers)
        self._hold_all(CLOCK, *(f"index {answer.host}" for answer in answers))
        if self._status is None:
            return ", ".join(answer.host for answer in answers)
        shown: dict[str, bool | None] = self._status["shown_by"]
        for host, told in shown.items():
            if told is False:
                detail = f"{host} does not show this worker's offer"
                self._board.failed(SHOWN.format(host), Code.OFFER_HIDDEN, detail)
        self._hold_all(*map(SHOWN.format, shown))
        return ", ".join(f"{host}{' shows the offer' * bool(told)}" for host, told in shown.items())

    async def _dialled(self) -> str:
        """Have the worker's own address dialled by each index, or by a relay if none does."""
        self._need_free()
        config = self._need(self._config)
        if not config.indexes and not config.relays:
            return "nobody to ask. An index or a relay would dial the worker and say what it finds"
        if self._status is not None:
            reached: dict[str, str] = self._status["reached"]
            if not reached:
                return "the running worker knows no answer yet"
            by = ", ".join(self._status["dialled_by"])
            self._judge_dials(reached, by)
            found = ", ".join(f"{address} {word}" for address, word in reached.items())
            return f"{found}, says {by}"
        if not config.listens:
            return "through relays alone. The running worker has them dialled"
        host, port = split_endpoint(config.bind)
        if port == 0 and not config.endpoint:
            return "the port is free to choose, so the running worker has it dialled"
        address = config.endpoint or config.bind
        async with answering(self._home, host, port):
            sights = await self._look(Endpoint(Route.DIRECT, address))
        watch = ReachWatch(self._board)
        watch.note(sights, [Endpoint(Route.DIRECT, address)])
        self._judge_dials(watch.reached, ", ".join(watch.dialled_by))
        said = [f"{s.name} reached {address}" for s in sights if s.reached]
        said += [f"{s.name} has not dialled: {s.why}" for s in sights if not s.reached]
        return "; ".join(said)

    async def _look(self, endpoint: Endpoint) -> tuple[Sight, ...]:
        config, deployment = self._need(self._config), self._need(self._deployment)
        async with HttpReader(REACH_LIMITS) as http:
            onlooker = Onlooker(
                config.indexes,
                http,
                self._need(self._operator),
                deployment.domain,
                self._time,
                relays=config.relays,
            )
            return await onlooker.look((endpoint,), self._need(self._tls_digest), None)

    def _judge_dials(self, reached: Mapping[str, str], by: str) -> None:
        for address, word in reached.items():
            if word != Dialled.REACHED.value:
                check = DIALLED.format(address)
                detail = f"{address} is not reached by {by} ({word})"
                self._board.failed(check, Code.ADDRESS_UNREACHED, detail)
        self._hold_all(*map(DIALLED.format, reached))

    def _hold(self, *checks: str) -> None:
        """Raise what these checks found that stops jobs. The rest is a remark."""
        found = self._board.failures(*checks)
        grave = [fault for fault in found if fault.condition.stops is not Stops.NOTHING]
        if grave:
            raise _Found(tuple(dict.fromkeys(grave)))
        self._remarks += found

    def _hold_all(self, *checks: str) -> None:
        """Raise whatever these checks found: a worker that nobody finds earns nothing."""
        found = self._board.failures(*checks)
        if found:
            raise _Found(tuple(dict.fromkeys(found)))

    async def _stake(self) -> str:
        config, operator = self._need(self._config), self._need(self._operator)
        async with await self._connect() as reader:
            watch = StandingWatch(
                reader,
                self._board,
                operator=operator.address,
                receiver=config.receiver,
                addresses=config.lasting_addresses,
            )
            known = await watch.look()
        self._hold(REGISTRATION, REGISTERED_ADDRESS)
        if known is None:
            return ""
        return f"{reader.deployment.payment_token.format(known.stake)}, {known.endpoint}"

    async def _gas(self) -> str:
        self._need(self._watched or None)
        self._hold("gas tank")
        async with await self._connect() as reader:
            return NATIVE_COIN.format(
                await reader.native_balance(self._need(self._operator).address)
            )

    async def _owner(self, name: str, config: WorkerConfig) -> str:
        """Say when the owner's rules pause jobs, and why they do now."""
        senses = await asyncio.to_thread(machine_senses, config)
        rules = owner_rules(config)
        readings = await asyncio.to_thread(senses.read, frozenset())
        check_rules(rules, senses, readings)
        if self._is_running:
            status = await ask_daemon(self._home.root, "GET", "/status")
            pause = {card["name"]: card["pause"] for card in status["cards"]}.get(name)
            if pause is not None:
                return f"the running worker is paused: {'; '.join(pause['causes'])}"
        on_cpu = config.device == "cpu" and config.backend != "vllm"
        heat = "" if on_cpu else describe_heat(rules, readings)
        return "; ".join(filter(None, (f"jobs pause for {rules.describe()}", heat)))

    async def _model(self, name: str, config: WorkerConfig) -> str:
        from piecework_model.checkpoint import manifest
        from piecework_model.checkpoint.digests import DigestStore

        folder = checkpoint_of(config) or manifest.bundled_checkpoint_path()
        digests = DigestStore(self._home.digests)
        if (folder / manifest.MANIFEST_FILE).is_file():
            digest = await asyncio.to_thread(manifest.verify, folder, digests)
            digests.save()
            self._model_digests[name] = digest
            return f"{folder.name}, digest 0x{digest.hex()}, as its manifest says"
        text = await asyncio.to_thread(manifest.manifest_text, folder, digests)
        digests.save()
        digest = self._model_digests[name] = manifest.manifest_digest(text)
        return f"{folder.name}, digest 0x{digest.hex()}, no manifest to compare it with"

    async def _device(self, config: WorkerConfig) -> str:
        hardware = await asyncio.to_thread(self._hardware, config)
        if config.device == "cuda" and hardware.device != "cuda":
            raise ConfigError(f"the settings ask for a GPU: {hardware.missing}")
        if config.device == "cpu" or hardware.device == "cpu":
            why = "as the settings ask" if config.device == "cpu" else hardware.missing
            return f"cpu: {hardware.cpu}, {hardware.host_memory_bytes // 2**20} MiB, {why}"
        shared = " shared with the host" if hardware.unified else ""
        return (
            f"cuda: {hardware.name}, {hardware.memory_bytes // 2**20} MiB{shared}, "
            f"{hardware.runtime}, driver {hardware.driver or 'unknown'}"
        )

    def _hardware(self, config: WorkerConfig) -> Hardware:
        """Probe the machine. Of several cards the engine of each sees its own."""
        from piecework_model.machine.probe import probe

        several = self._config is not None and bool(self._config.cards)
        return probe(index=config.gpu_number if several else 0)

    async def _precision(self, config: WorkerConfig) -> str:
        """The line of the memory table for this machine."""
        return (await self._plan(config)).reason

    async def _fast_paths(self, config: WorkerConfig) -> str:
        """Which fast paths the engine would have, and why one is missing."""
        from piecework_model.checkpoint import dimensions, manifest
        from piecework_model.fast_paths import describe
        from piecework_model.machine.trials import survey

        if self._is_running:
            return "the running worker told them with its log line 'engine ready'"
        folder = checkpoint_of(config) or manifest.bundled_checkpoint_path()
        blueprint = await asyncio.to_thread(dimensions.read, folder)
        return describe(await asyncio.to_thread(survey, blueprint, await self._plan(config)))

    async def _audits(self) -> str:
        """Compare the engines that would start with those of jobs that may be challenged."""
        self._need_free()
        deployment = self._need(self._deployment)
        if deployment.disputes is None:
            return "this market has no disputes"
        if self._status is not None:
            told = {fault["code"]: fault["line"] for fault in self._status["faults"]}
            if Code.ENGINE_CHANGED.value in told:
                self._remarks.append(Fault(Code.ENGINE_CHANGED, told[Code.ENGINE_CHANGED.value]))
            return "the running worker watches its challenges"
        if not self._home.journal.exists():
            return "no job yet"
        starts = [
            await self._start_of(name, own)
            for name, own in self._need(self._config).of_cards
            if own.backend == "diffusion"
        ]

        def runs(model: ModelOffer) -> bool:
            return any(model.digest == d and model.profile.startswith(s) for d, s in starts)

        shown = " and ".join(sorted({f"{start}…" for _, start in starts}))
        operator = parse_address("0x" + keystore_address(self._home.operator))
        journal = await SqliteJournal.open(self._home.journal, deployment.domain, operator)
        try:
            found = await jobs_of_others(journal, now(self._time), runs, shown)
        finally:
            await journal.close()
        if found is None:
            return "no job that may be challenged ran on another engine, as far as shows now"
        self._remarks.append(Fault(Code.ENGINE_CHANGED, found))
        return ""

    async def _start_of(self, name: str, config: WorkerConfig) -> tuple[bytes, str]:
        """The digest of a card's model, and the beginning of its profile."""
        from piecework_model.machine.probe import profile_start

        planned, digest = await self._plan(config), self._need(self._model_digests.get(name))
        hardware, need = await asyncio.to_thread(self._hardware, config), planned.need
        return digest, profile_start(hardware, planned.kind, need.dtype, need.quantization)

    async def _plan(self, config: WorkerConfig) -> PrecisionPlan:
        from piecework_model.machine.planning import plan

        return await asyncio.to_thread(
            plan,
            checkpoint_of(config),
            self._hardware(config),
            device=config.device,
            precision=config.precision,
            sequences=config.slots,
            context_tokens=config.planned_context,
        )

    async def _endpoints(self, config: WorkerConfig) -> str:
        from piecework_node.vllm.link import survey

        return await survey(vllm_settings(config), self._time, logs.silent())

    async def _ports(self) -> str:
        self._need_free()
        if self._is_running:
            return "in use by the running worker"
        config = self._need(self._config)
        places = [split_endpoint(config.bind)] if config.listens else []
        places.append((config.admin_host, config.admin_port))
        for where in places:
            _bindable(*where)
        return f"{' and '.join(f'{host}:{port}' for host, port in places)} free"

    async def _connect(self) -> ChainReader:
        return await connect(self._need(self._config), self._need(self._deployment))

    @staticmethod
    def _need(value: T | None) -> T:
        if value is None:
            raise _Unchecked("an earlier check failed")
        return value


def _bindable(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
