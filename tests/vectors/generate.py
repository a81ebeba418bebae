"""Write the golden vectors: `python -m tests.vectors.generate` (add `--check` to compare only).

The messages are fixed and arbitrary. The digests are computed by our encoder; the tests hold them
equal to eth-account's encoder and to Solidity, so that no encoder can be wrong alone. The bytes in
`wire.json` are those of version 2: a change of the encoder must not change them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from piecework.chain.descriptor import MARKET_NAME, MarketStatement
from piecework_protocol import merkle
from piecework_protocol.dialling import DialRequest, dial_domain
from piecework_protocol.eip712 import Domain, TypedData, message_dict, type_hash, type_string
from piecework_protocol.errors import Reason
from piecework_protocol.frames import (
    Accepted,
    Account,
    CancelJob,
    CanvasDelivered,
    ClientFrame,
    CloseChannelRequest,
    CloseChannelResponse,
    Draft,
    FundingAuthorization,
    GetAccountRequest,
    JobEnded,
    LeafRef,
    OpeningAuthorization,
    PayVoucher,
    Progress,
    ShownVoucher,
    ShowReceiptsRequest,
    SignedReceipt,
    SubmitJob,
    VoucherAccepted,
    WorkerFrame,
)
from piecework_protocol.limits import MAX_CANVASES_PER_JOB
from piecework_protocol.objects import (
    EVERYTHING,
    Acceptance,
    AccountRequest,
    AuditLevel,
    AuditOutcome,
    AuditReport,
    CancelWithdrawal,
    Channel,
    CloseChannel,
    Endpoint,
    Finish,
    FundChannel,
    Job,
    Kind,
    ModelOffer,
    Offer,
    Parameters,
    Receipt,
    Registration,
    RequestWithdrawal,
    Route,
    Service,
    Verdict,
    Voucher,
    WithdrawPooled,
    disputes_domain,
    registry_domain,
)
from piecework_protocol.relaying import RelayAdmission, relay_domain
from piecework_protocol.service import NO_TRACE, best_effort_parameters
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    Micros,
    PayerSignature,
    PublicKey,
    Seconds,
    Signature,
    Timestamp,
    Uint16,
    Uint32,
    Uint64,
    keccak256,
)
from piecework_protocol.wire import (
    CallMessage,
    SignedOffer,
    encode_call,
    encode_client_frame,
    encode_offer,
    encode_worker_frame,
)
from tests.vectors import contents, disputes, traces

LATEST = Timestamp(2**40 - 1)
HERE = Path(__file__).parent
DOMAIN = Domain(31337, Address(bytes.fromhex("5fbdb2315678afecb367f032d93f642f64180aa3")))
REGISTRY_DOMAIN = registry_domain(31337, Address(bytes.fromhex("11" * 20)))
DISPUTES_DOMAIN = disputes_domain(31337, Address(bytes.fromhex("22" * 20)))
RELAY_DOMAIN = relay_domain(31337, REGISTRY_DOMAIN.verifying_contract)
MARKET_DOMAIN = Domain(31337, DOMAIN.verifying_contract, MARKET_NAME)
DOMAINS = {
    "Registration": REGISTRY_DOMAIN,
    "Verdict": DISPUTES_DOMAIN,
    "RelayAdmission": RELAY_DOMAIN,
    "MarketStatement": MARKET_DOMAIN,
    "DialRequest": dial_domain(DOMAIN),
}
SECRETS = {
    name: bytes(keccak256(b"vector key " + name.encode()))
    for name in ("authorizer", "operator", "payer")
}
SIGNER_OF = {
    "Channel": "payer",
    "FundChannel": "payer",
    "RequestWithdrawal": "payer",
    "CancelWithdrawal": "payer",
    "WithdrawPooled": "payer",
    "AccountRequest": "authorizer",
    "Registration": "operator",
    "RelayAdmission": "operator",
    "MarketStatement": "payer",
    "DialRequest": "operator",
    "AuditReport": "authorizer",
    "Verdict": "authorizer",
    "Voucher": "authorizer",
    "Job": "authorizer",
    "Receipt": "operator",
    "CloseChannel": "operator",
    "Acceptance": "operator",
    "Offer": "operator",
}


def _bytes32(label: str) -> Bytes32:
    return keccak256(label.encode())


def _address(label: str) -> Address:
    return Address(keccak256(label.encode())[12:])


def _objects() -> list[TypedData]:
    addresses = {name: LocalSigner(secret).address for name, secret in SECRETS.items()}
    channel = Channel(
        payer=addresses["payer"],
        authorizer=addresses["authorizer"],
        receiver=_address("receiver"),
        operator=addresses["operator"],
        token=_address("token"),
        withdrawal_delay=Seconds(86_400),
        salt=_bytes32("channel salt"),
    )
    channel_id: ChannelId = channel.id(DOMAIN)
    parameters = Parameters(
        seed=Uint64(2**64 - 1),
        max_tokens=Uint32(512),
        max_steps=Uint32(48),
        temperature_start=Micros(800_000),
        temperature_end=Micros(400_000),
        entropy_bound=Micros(100_000),
        confidence_threshold=Micros(5_000),
        stability_steps=Uint32(1),
        service=Service.REPLAYABLE,
    )
    job = Job(
        channel=channel_id,
        salt=_bytes32("job salt"),
        offer=Digest(_bytes32("offer")),
        entry=Uint32(1),
        model=Digest(_bytes32("model")),
        kind=Kind.TEXT,
        content=Digest(_bytes32("content")),
        parameters=parameters,
        max_amount=Amount(123_456_789),
        deadline=Timestamp(1_800_000_000),
        reply_key=PublicKey(_bytes32("reply key")),
    )
    job_id: JobId = job.id(DOMAIN)
    receipt = Receipt(
        job=job_id,
        canvas=Uint32(0),
        output_digest=Digest(_bytes32("output")),
        trace_root=Digest(_bytes32("trace")),
        steps=Uint32(23),
        units=Uint32(256),
        amount=Amount(77),
        finish=Finish.MORE,
        total_prompt_tokens=Uint32(321),
        total_units=Uint32(256),
        total_steps=Uint32(23),
        total_amount=Amount(77),
        previous=Digest(job_id),
    )
    best_effort = job.replace(
        salt=_bytes32("another salt"), parameters=best_effort_parameters(Uint32(512))
    )
    unproved = receipt.replace(
        job=best_effort.id(DOMAIN),
        trace_root=NO_TRACE,
        steps=Uint32(0),
        total_steps=Uint32(0),
        previous=Digest(best_effort.id(DOMAIN)),
    )
    root = merkle.root([DOMAIN.digest(receipt)])
    return [
        channel,
        FundChannel(channel, Amount(2**96 - 1), Amount(40_000), Timestamp(1_900_000_000)),
        Voucher(channel_id, Amount(77), Uint64(1), root),
        Voucher(channel_id, Amount(0), Uint64(0), merkle.EMPTY_ROOT),
        CloseChannel(channel_id, Amount(77), Uint64(1), root, Amount(30_000)),
        RequestWithdrawal(channel_id, Amount(500), Uint64(3), Timestamp(1_850_000_000)),
        RequestWithdrawal(channel_id, EVERYTHING, Uint64(0), Timestamp(1_850_000_000)),
        CancelWithdrawal(channel_id, Uint64(3), Timestamp(1_850_000_001)),
        WithdrawPooled(
            owner=addresses["payer"],
            token=_address("token"),
            amount=Amount(2_000_000),
            to=_address("elsewhere"),
            fee=Amount(1_000),
            nonce=Uint64(5),
            deadline=Timestamp(1_850_000_002),
        ),
        AccountRequest(channel_id, Timestamp(1_850_000_003)),
        job,
        receipt,
        _next(receipt, Finish.END_OF_TEXT),
        _next(receipt, Finish.CANCELLED),
        best_effort,
        unproved,
        Acceptance(job_id, Uint32(321), Timestamp(1_799_999_000)),
        _offer(addresses["operator"], 2),
        _offer(addresses["operator"], 0),
        *_later(addresses["operator"], Digest(DOMAIN.digest(receipt))),
    ]


def _next(receipt: Receipt, finish: Finish) -> Receipt:
    """Give the receipt of the canvas after `receipt`, for the same work again."""
    return receipt.replace(
        canvas=Uint32(receipt.canvas + 1),
        finish=finish,
        total_units=Uint32(receipt.total_units + receipt.units),
        total_steps=Uint32(receipt.total_steps + receipt.steps),
        total_amount=Amount(receipt.total_amount + receipt.amount),
        previous=Digest(DOMAIN.digest(receipt)),
    )


def _later(operator: Address, receipt: Digest) -> list[TypedData]:
    """Objects of the registry, of audits and of disputes."""
    return [
        Registration(
            operator=operator,
            owner=_address("owner"),
            payout=_address("receiver"),
            stake=Amount(100_000_000),
            endpoint="worker.example:7443",
            nonce=Uint64(2),
            deadline=Timestamp(1_850_000_004),
        ),
        AuditReport(
            receipt=receipt,
            level=AuditLevel.REPLAY,
            outcome=AuditOutcome.FAIL,
            rule=Uint16(7),
            step=Uint32(22),
            score=Uint64(1_234_567),
            threshold=Uint64(1_000_000),
            evidence=Digest(_bytes32("evidence")),
            profile=Digest(_bytes32("profile")),
        ),
        Verdict(
            challenge=_bytes32("challenge"),
            guilty=True,
            leaf_root=Digest(_bytes32("leaves")),
            deadline=Timestamp(1_850_000_005),
        ),
    ]


def _off_chain() -> list[TypedData]:
    """What no contract reads: of relays and of markets."""
    return [
        RelayAdmission("relay.example:7443", _bytes32("nonce"), Timestamp(1_850_000_006)),
        MarketStatement(Digest(_bytes32("market"))),
        DialRequest(
            _address("operator"),
            (Endpoint(Route.DIRECT, "worker.example:7443"), Endpoint(Route.RELAYED, "[::1]:1")),
            Digest(_bytes32("certificate")),
            Timestamp(1_850_000_007),
        ),
    ]


def _offer(operator: Address, models: int) -> Offer:
    return Offer(
        operator=operator,
        receiver=_address("receiver"),
        sequence=Uint64(7),
        issued_at=Timestamp(1_790_000_000),
        expires_at=Timestamp(1_790_000_300),
        endpoints=(
            Endpoint(Route.DIRECT, "worker.example:7443"),
            Endpoint(Route.DIRECT, "[2001:db8::1]:7443"),
        )[: max(1, models)],
        tls_certificate=Digest(_bytes32("certificate")),
        sealing_key=PublicKey(_bytes32("sealing key")),
        tokens=(_address("token"), _address("another token"))[:models],
        models=tuple(
            ModelOffer(
                name=f"diffusion-gemma-{i}",
                digest=Digest(_bytes32(f"model {i}")),
                profile="h100/torch-2.13/bf16",
                kinds=Uint32(Kind.TEXT.bit),
                service=Service.REPLAYABLE if i else Service.BEST_EFFORT,
                price_per_million_prompt_tokens=Amount(50_000),
                price_per_million_output_tokens=Amount(300_000),
                price_per_thousand_steps=Amount(1_000 * i),
                max_context=Uint32(262_144),
                max_output=Uint32(8_192),
                canvas_size=Uint32(256),
                max_steps=Uint32(48 * i),
                tokens_per_second=Uint32(1_008),
                first_canvas_ms=Uint32(310),
            )
            for i in range(models)
        ),
        slots=Uint32(16),
        slots_free=Uint32(3),
        queue_free=Uint32(32),
        credit_first=Amount(20_000),
        credit_mined=Amount(250_000),
        credit_max=Amount(5_000_000),
        open_fee=Amount(40_000),
        top_up_fee=Amount(30_000),
        close_fee=Amount(25_000),
        min_top_up=Amount(500_000),
        min_withdrawal_delay=Seconds(3_600),
        min_deposit=Amount(1_000_000),
        evidence_seconds=Uint64(86_400),
        details='{"gpu":"H100","größe":"80 GiB"}' if models else "",
    )


def _strings(value: Any) -> Any:
    """Integers as decimal strings, so that no JSON reader loses digits."""
    if isinstance(value, dict):
        return {k: _strings(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_strings(v) for v in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def domain_of(kind: str) -> Domain:
    """Give the domain that objects of a type are signed under."""
    return DOMAINS.get(kind, DOMAIN)


def _domain(domain: Domain) -> dict[str, str]:
    return {
        "name": domain.name,
        "version": domain.version,
        "chainId": str(domain.chain_id),
        "verifyingContract": "0x" + domain.verifying_contract.hex(),
        "separator": "0x" + domain.separator().hex(),
    }


def eip712() -> dict[str, Any]:
    """The signed objects with their hashes and signatures. Solidity reads `cases`."""
    domains = (DOMAIN, *DOMAINS.values())
    return {
        "domain": _domain(DOMAIN),
        "domains": {domain.name: _domain(domain) for domain in domains},
        "cases": _cases(_objects()),
        "offChain": _cases(_off_chain()),
    }


def _cases(messages: list[TypedData]) -> list[dict[str, Any]]:
    cases = []
    for message in messages:
        kind = type(message).__name__
        signer = LocalSigner(SECRETS[SIGNER_OF[kind]])
        cases.append(
            {
                "type": kind,
                "typeString": type_string(type(message)),
                "message": _strings(message_dict(message)),
                "structHash": "0x" + message.struct_hash().hex(),
                "typeHash": "0x" + type_hash(type(message)).hex(),
                "domain": domain_of(kind).name,
                "digest": "0x" + domain_of(kind).digest(message).hex(),
                "signer": "0x" + signer.address.hex(),
                "signature": "0x" + sign(domain_of(kind), message, signer).hex(),
            }
        )
    return cases


def trees() -> dict[str, Any]:
    """Roots and every inclusion proof of trees of 0 to 17 leaves."""
    cases = []
    for count in (0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17):
        leaves = [_bytes32(f"leaf {i}") for i in range(count)]
        proofs = [merkle.prove(leaves, i) for i in range(count)]
        cases.append(
            {
                "leaves": ["0x" + leaf.hex() for leaf in leaves],
                "root": "0x" + merkle.root(leaves).hex(),
                "proofs": [
                    {
                        "index": p.index,
                        "count": p.count,
                        "siblings": ["0x" + s.hex() for s in p.siblings],
                    }
                    for p in proofs
                ],
            }
        )
    return {"cases": cases}


def _signed(message: TypedData) -> Signature:
    kind = type(message).__name__
    return sign(domain_of(kind), message, LocalSigner(SECRETS[SIGNER_OF[kind]]))


def _of(kind: type[Any]) -> list[Any]:
    return [o for o in _objects() if isinstance(o, kind)]


def client_frames() -> dict[str, ClientFrame]:
    """Client frames by name: every kind, with and without what is optional."""
    channel, (job, best_effort) = _of(Channel)[0], _of(Job)
    authorization = _of(FundChannel)[0]
    paid, empty = _of(Voucher)
    job_id = job.id(DOMAIN)
    leaves = (LeafRef(job_id, 0), LeafRef(job_id, MAX_CANVASES_PER_JOB - 1))
    submit = SubmitJob(job, _signed(job), channel, b"sealed content")
    plain = PayerSignature(_signed(authorization))
    funded = FundingAuthorization(authorization, plain)
    smart = FundingAuthorization(authorization, PayerSignature(bytes(1024)))
    opening = OpeningAuthorization(Amount(5_000_000), Amount(40_000), Timestamp(0), LATEST, plain)
    last = Digest(_bytes32("last receipt"))
    return {
        "a job": submit,
        "a funded job": SubmitJob(job, _signed(job), channel, b"", funding=funded),
        "a job of a smart account": SubmitJob(job, _signed(job), channel, b"", funding=smart),
        "a job that opens its channel": SubmitJob(job, _signed(job), channel, b"", funding=opening),
        "a resumed job": SubmitJob(
            job, _signed(job), channel, bytes(range(256)), MAX_CANVASES_PER_JOB, last
        ),
        "a best-effort job with drafts": SubmitJob(
            best_effort, _signed(best_effort), channel, b"sealed", drafts=True
        ),
        "a payment": PayVoucher(paid, _signed(paid), 2**63 - 1, leaves),
        "an empty payment": PayVoucher(empty, _signed(empty), 0, ()),
        "a cancel": CancelJob(),
    }


def worker_frames() -> dict[str, WorkerFrame]:
    """Worker frames by name: every kind, with and without what is optional."""
    acceptance, voucher = _of(Acceptance)[0], _of(Voucher)[0]
    job, signature, at = acceptance.job, _signed(acceptance), acceptance.accepted_at
    peaks = (_bytes32("peak 0"), _bytes32("peak 1"))
    canvases: dict[str, WorkerFrame] = {
        f"canvas {i}": CanvasDelivered(receipt, _signed(receipt), b"sealed output" * i)
        for i, receipt in enumerate(_of(Receipt))
    }
    traced = _of(Receipt)[0]
    leaves = tuple(Digest(_bytes32(f"leaf {i}")) for i in range(traced.steps + 1))
    return canvases | {
        "a canvas with leaves": CanvasDelivered(traced, _signed(traced), b"sealed", leaves),
        "an acceptance": Accepted(job, 321, at, signature, 0, None),
        "an acceptance with an account": Accepted(
            job, 321, at, signature, 17, Account(voucher, _signed(voucher), peaks)
        ),
        "an acceptance with an account without peaks": Accepted(
            job,
            2**31 - 1,
            LATEST,
            signature,
            1,
            Account(voucher, _signed(voucher), ()),
        ),
        "progress": Progress(job, 3, 47, 321),
        "progress in the queue": Progress(job, 0, 0, 0, queue_position=2**20 - 1),
        "progress of a paused job": Progress(job, 1, 0, 321, paused_until=1_799_999_060),
        "a draft": Draft(job, 3, 47, b"sealed draft"),
        "a first draft": Draft(job, 0, 0, b""),
        "a voucher is accepted": VoucherAccepted(2**63 - 1),
        "no voucher is accepted": VoucherAccepted(0),
        "an end": JobEnded(job, 2),
        "a failure": JobEnded(job, 0, Reason.ENGINE_FAILED, "größer als der Speicher"),
    }


def offers() -> dict[str, SignedOffer]:
    """Signed offers by name."""
    return {f"{len(o.models)} models": SignedOffer(o, _signed(o)) for o in _of(Offer)}


def calls() -> dict[str, CallMessage]:
    """Requests and answers outside of the stream by name."""
    channel, final, request = _of(Channel)[0], _of(CloseChannel)[0], _of(AccountRequest)[0]
    voucher, receipts = _of(Voucher)[0], _of(Receipt)
    closing, peaks = _signed(final), (_bytes32("peak 0"), _bytes32("peak 1"))
    transaction = Digest(_bytes32("transaction"))
    shown = ShownVoucher(voucher, _signed(voucher), 3, peaks)
    signed = tuple(SignedReceipt(r, _signed(r)) for r in receipts)
    return {
        "a request to close": CloseChannelRequest(channel, final, closing),
        "a close that was submitted": CloseChannelResponse(closing, transaction),
        "a close that was not submitted": CloseChannelResponse(closing, None),
        "a request for the account": GetAccountRequest(request, _signed(request)),
        "an account": Account(voucher, _signed(voucher), peaks),
        "receipts": ShowReceiptsRequest(channel, shown, signed),
        "no receipts": ShowReceiptsRequest(channel, shown, ()),
    }


def wire() -> dict[str, Any]:
    """The bytes of every frame, offer and call."""
    return {
        "clientFrames": {k: _hex(encode_client_frame(v)) for k, v in client_frames().items()},
        "workerFrames": {k: _hex(encode_worker_frame(v)) for k, v in worker_frames().items()},
        "offers": {k: _hex(encode_offer(v)) for k, v in offers().items()},
        "calls": {k: _hex(encode_call(v)) for k, v in calls().items()},
    }


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


FILES = {
    "contents.json": contents.vectors,
    "disputes.json": disputes.vectors,
    "eip712.json": eip712,
    "merkle.json": trees,
    "trace.json": traces.vectors,
    "wire.json": wire,
}


def main(arguments: list[str]) -> int:
    """Write the vectors, or with `--check` say which differ from what the code gives."""
    stale = 0
    for name, make in FILES.items():
        text = json.dumps(make(), indent=1, ensure_ascii=False) + "\n"
        if "--check" not in arguments:
            (HERE / name).write_text(text)
        elif (HERE / name).read_text() != text:
            print(f"tests/vectors/{name} differs from the code", file=sys.stderr)
            stale += 1
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
