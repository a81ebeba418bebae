"""Write the golden vectors: `python -m tests.vectors.generate` (add `--check` to compare only).

The messages are fixed and arbitrary. The digests are computed by our encoder; the tests hold them
equal to eth-account's encoder and to Solidity, so that no encoder can be wrong alone. The bytes in
`wire.json` are those of the first release: a change of the encoder must not change them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from piecework_protocol import merkle
from piecework_protocol.eip712 import Domain, TypedData, message_dict, type_string
from piecework_protocol.errors import Reason
from piecework_protocol.frames import (
    Accepted,
    Account,
    CancelJob,
    CanvasDelivered,
    ClientFrame,
    Draft,
    Funding,
    JobEnded,
    LeafRef,
    PayVoucher,
    SubmitJob,
    VoucherAccepted,
    WorkerFrame,
)
from piecework_protocol.objects import (
    Acceptance,
    Channel,
    CloseChannel,
    Finish,
    FundChannel,
    Job,
    ModelOffer,
    Offer,
    Parameters,
    Receipt,
    RequestWithdrawal,
    Service,
    Voucher,
)
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
    PublicKey,
    Seconds,
    Signature,
    Timestamp,
    Uint32,
    Uint64,
    keccak256,
)
from piecework_protocol.wire import (
    SignedOffer,
    encode_client_frame,
    encode_close_request,
    encode_close_response,
    encode_offer,
    encode_worker_frame,
)

HERE = Path(__file__).parent
DOMAIN = Domain(31337, Address(bytes.fromhex("5fbdb2315678afecb367f032d93f642f64180aa3")))
SECRETS = {
    name: bytes(keccak256(b"vector key " + name.encode()))
    for name in ("authorizer", "operator", "payer")
}
SIGNER_OF = {
    "Channel": "payer",
    "FundChannel": "payer",
    "RequestWithdrawal": "payer",
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
        model=Digest(_bytes32("model")),
        prompt=Digest(_bytes32("prompt")),
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
        previous=Digest(job_id),
    )
    best_effort = job.replace(
        salt=_bytes32("another salt"), parameters=best_effort_parameters(Uint32(512))
    )
    unproved = receipt.replace(
        job=best_effort.id(DOMAIN),
        trace_root=NO_TRACE,
        steps=Uint32(0),
        previous=Digest(best_effort.id(DOMAIN)),
    )
    return [
        channel,
        FundChannel(channel, Amount(2**128 - 1), Timestamp(1_900_000_000)),
        Voucher(channel_id, Amount(77), Uint64(1), merkle.root([DOMAIN.digest(receipt)])),
        Voucher(channel_id, Amount(0), Uint64(0), merkle.EMPTY_ROOT),
        CloseChannel(channel_id, Amount(77), Uint64(1), merkle.root([DOMAIN.digest(receipt)])),
        RequestWithdrawal(channel_id, Timestamp(1_850_000_000)),
        job,
        receipt,
        receipt.replace(
            canvas=Uint32(1), finish=Finish.END_OF_TEXT, previous=Digest(DOMAIN.digest(receipt))
        ),
        best_effort,
        unproved,
        Acceptance(job_id, Uint32(321)),
        _offer(addresses["operator"], 2),
        _offer(addresses["operator"], 0),
    ]


def _offer(operator: Address, models: int) -> Offer:
    return Offer(
        operator=operator,
        receiver=_address("receiver"),
        sequence=Uint64(7),
        issued_at=Timestamp(1_790_000_000),
        expires_at=Timestamp(1_790_000_300),
        endpoint="worker.example:7443",
        tls_certificate=Digest(_bytes32("certificate")),
        sealing_key=PublicKey(_bytes32("sealing key")),
        tokens=(_address("token"), _address("another token"))[:models],
        models=tuple(
            ModelOffer(
                name=f"diffusion-gemma-{i}",
                digest=Digest(_bytes32(f"model {i}")),
                profile="h100/torch-2.13/bf16",
                price_per_million_prompt_tokens=Amount(50_000),
                price_per_million_output_tokens=Amount(300_000),
                price_per_thousand_steps=Amount(1_000 * i),
                max_context=Uint32(262_144),
                max_output=Uint32(8_192),
                canvas_size=Uint32(256),
                max_steps=Uint32(48 * i),
                tokens_per_second=Uint32(1_008),
                first_canvas_ms=Uint32(310),
                service=Service.REPLAYABLE if i else Service.BEST_EFFORT,
            )
            for i in range(models)
        ),
        slots=Uint32(16),
        slots_free=Uint32(3),
        queue_free=Uint32(32),
        credit_window=Uint32(2),
        min_withdrawal_delay=Seconds(3_600),
        min_deposit=Amount(1_000_000),
        details='{"gpu":"H100","größe":"80 GiB"}' if models else "",
    )


def _strings(value: Any) -> Any:
    """Integers as decimal strings, so that no JSON reader loses digits."""
    if isinstance(value, dict):
        return {k: _strings(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_strings(v) for v in value]
    return str(value) if isinstance(value, int) else value


def eip712() -> dict[str, Any]:
    """The signed objects with their hashes and signatures."""
    cases = []
    for message in _objects():
        kind = type(message).__name__
        signer = LocalSigner(SECRETS[SIGNER_OF[kind]])
        cases.append(
            {
                "type": kind,
                "typeString": type_string(type(message)),
                "message": _strings(message_dict(message)),
                "structHash": "0x" + message.struct_hash().hex(),
                "digest": "0x" + DOMAIN.digest(message).hex(),
                "signer": "0x" + signer.address.hex(),
                "signature": "0x" + sign(DOMAIN, message, signer).hex(),
            }
        )

    contract = "0x" + DOMAIN.verifying_contract.hex()
    return {
        "domain": {
            "name": DOMAIN.name,
            "version": DOMAIN.version,
            "chainId": str(DOMAIN.chain_id),
            "verifyingContract": contract,
            "separator": "0x" + DOMAIN.separator().hex(),
        },
        "cases": cases,
    }


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
    return sign(DOMAIN, message, LocalSigner(SECRETS[SIGNER_OF[type(message).__name__]]))


def _of(kind: type[Any]) -> list[Any]:
    return [o for o in _objects() if isinstance(o, kind)]


def client_frames() -> dict[str, ClientFrame]:
    """Client frames by name: every kind, with and without what is optional."""
    channel, (job, best_effort) = _of(Channel)[0], _of(Job)
    authorization = _of(FundChannel)[0]
    paid, empty = _of(Voucher)
    job_id = job.id(DOMAIN)
    leaves = (LeafRef(job_id, 0), LeafRef(job_id, 2**32 - 1))
    submit = SubmitJob(job, _signed(job), channel, b"sealed prompt")
    return {
        "a job": submit,
        "a funded job": SubmitJob(
            job, _signed(job), channel, b"", 0, Funding(authorization, _signed(authorization))
        ),
        "a resumed job": SubmitJob(job, _signed(job), channel, bytes(range(256)), 2**32 - 1),
        "a best-effort job with drafts": SubmitJob(
            best_effort, _signed(best_effort), channel, b"sealed", drafts=True
        ),
        "a payment": PayVoucher(paid, _signed(paid), 2**64 - 1, leaves),
        "an empty payment": PayVoucher(empty, _signed(empty), 0, ()),
        "a cancel": CancelJob(),
    }


def worker_frames() -> dict[str, WorkerFrame]:
    """Worker frames by name: every kind, with and without what is optional."""
    acceptance, voucher = _of(Acceptance)[0], _of(Voucher)[0]
    job, signature = acceptance.job, _signed(acceptance)
    peaks = (_bytes32("peak 0"), _bytes32("peak 1"))
    canvases: dict[str, WorkerFrame] = {
        f"canvas {i}": CanvasDelivered(receipt, _signed(receipt), b"sealed output" * i)
        for i, receipt in enumerate(_of(Receipt))
    }
    return canvases | {
        "an acceptance": Accepted(job, 321, signature, 0, None),
        "an acceptance with an account": Accepted(
            job, 321, signature, 17, Account(voucher, _signed(voucher), peaks)
        ),
        "an acceptance with an account without peaks": Accepted(
            job, 2**32 - 1, signature, 1, Account(voucher, _signed(voucher), ())
        ),
        "a draft": Draft(job, 3, 47, b"sealed draft"),
        "a first draft": Draft(job, 0, 0, b""),
        "a voucher is accepted": VoucherAccepted(2**64 - 1),
        "no voucher is accepted": VoucherAccepted(0),
        "an end": JobEnded(job, 2),
        "a failure": JobEnded(job, 0, Reason.ENGINE_FAILED, "größer als der Speicher"),
    }


def offers() -> dict[str, SignedOffer]:
    """Signed offers by name."""
    return {f"{len(o.models)} models": SignedOffer(o, _signed(o)) for o in _of(Offer)}


def wire() -> dict[str, Any]:
    """The bytes of every frame, offer and closing message."""
    channel, final = _of(Channel)[0], _of(CloseChannel)[0]
    closing = _signed(final)
    return {
        "clientFrames": {k: _hex(encode_client_frame(v)) for k, v in client_frames().items()},
        "workerFrames": {k: _hex(encode_worker_frame(v)) for k, v in worker_frames().items()},
        "offers": {k: _hex(encode_offer(v)) for k, v in offers().items()},
        "closeRequest": _hex(encode_close_request(channel, final, closing)),
        "closeResponses": {
            "submitted": _hex(encode_close_response(closing, _bytes32("transaction"))),
            "not submitted": _hex(encode_close_response(closing, b"")),
        },
    }


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


FILES = {"eip712.json": eip712, "merkle.json": trees, "wire.json": wire}


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
