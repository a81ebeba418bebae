"""The cost of the protocol itself, per operation: `python -m bench.protocol [--json]`.

Beside each figure stands something real to compare with: eth-account's encoder for hashing, a bare
libsecp256k1 call for signatures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from coincurve import PrivateKey, PublicKey
from eth_account.messages import encode_typed_data

from bench.report import environment
from piecework_protocol import merkle, sealing
from piecework_protocol.eip712 import Domain, message_dict, type_dict
from piecework_protocol.frames import LeafRef
from piecework_protocol.ledger import PayerLedger, WorkerLedger
from piecework_protocol.objects import Finish, Receipt, Voucher
from piecework_protocol.signing import LocalSigner, recover, sign
from piecework_protocol.types import (
    Address,
    Amount,
    ChannelId,
    Digest,
    JobId,
    Uint32,
    Uint64,
    keccak256,
)

DOMAIN = Domain(31337, Address(bytes(20)))
SIGNER = LocalSigner(bytes(keccak256(b"bench")))
JOB = JobId(keccak256(b"job"))
RECEIPT = Receipt(
    job=JOB,
    canvas=Uint32(0),
    output_digest=Digest(keccak256(b"output")),
    trace_root=Digest(keccak256(b"trace")),
    steps=Uint32(23),
    units=Uint32(256),
    amount=Amount(77),
    finish=Finish.MORE,
    total_prompt_tokens=Uint32(40),
    total_units=Uint32(256),
    total_steps=Uint32(23),
    total_amount=Amount(77),
    previous=Digest(JOB),
)
VOUCHER = Voucher(ChannelId(keccak256(b"channel")), Amount(77), Uint64(1), merkle.EMPTY_ROOT)
TEXT = b"x" * 1400  # a canvas of 256 tokens, ids and text


def microseconds(work: Callable[[], object], rounds: int = 2000) -> float:
    """The mean over the fastest of five runs, in microseconds."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(rounds):
            work()
        best = min(best, (time.perf_counter() - start) / rounds)
    return best * 1e6


def _voucher_check() -> Callable[[], object]:
    """What the worker does with every voucher: recover its signer, apply it to the book."""
    ref, digest = LeafRef(JOB, 0), Digest(DOMAIN.digest(RECEIPT))
    worker = WorkerLedger(VOUCHER.channel).issue(ref, digest, RECEIPT.amount)
    payer = PayerLedger(VOUCHER.channel).pay(ref, digest, RECEIPT.amount, Amount(1000))
    voucher = payer.voucher()
    payment = payer.payment(voucher, sign(DOMAIN, voucher, SIGNER))

    def check() -> object:
        recover(DOMAIN.digest(payment.voucher), payment.signature)
        return worker.apply(payment, Amount(1000))

    return check


def measure() -> dict[str, float]:
    """Microseconds an operation."""
    secret = PrivateKey(SIGNER.secret)
    digest = DOMAIN.digest(VOUCHER)
    signature = SIGNER.sign_typed(DOMAIN, VOUCHER)
    raw = secret.sign_recoverable(digest, hasher=None)
    domain = {
        "name": DOMAIN.name,
        "version": DOMAIN.version,
        "chainId": DOMAIN.chain_id,
        "verifyingContract": "0x" + "00" * 20,
    }
    types, message = type_dict(Voucher), message_dict(VOUCHER)
    reply = bytes(keccak256(b"reply"))
    public, context = sealing.public_key(reply), sealing.canvas_context(DOMAIN, JOB, 0)
    sealed = sealing.seal(TEXT, public, context)
    big = merkle.Accumulator().extend([keccak256(i.to_bytes(4, "big")) for i in range(1000)])
    return {
        "voucher digest": microseconds(lambda: DOMAIN.digest(VOUCHER)),
        "voucher digest by eth-account": microseconds(
            lambda: encode_typed_data(domain, types, message), 300
        ),
        "sign": microseconds(lambda: SIGNER.sign_typed(DOMAIN, VOUCHER)),
        "recover": microseconds(lambda: recover(digest, signature)),
        "recover by bare libsecp256k1": microseconds(
            lambda: PublicKey.from_signature_and_message(raw, digest, hasher=None)
        ),
        "check and apply a voucher": microseconds(_voucher_check()),
        "accumulator append and root at 1000": microseconds(lambda: big.append(digest).root()),
        "seal a canvas": microseconds(lambda: sealing.seal(TEXT, public, context), 500),
        "open a canvas": microseconds(lambda: sealing.unseal(sealed, reply, context), 500),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    where, figures = environment("coincurve", "cryptography", "eth-account"), measure()
    if wanted.json:
        print(json.dumps({"environment": where, "microseconds": figures}))
        return
    for key, value in where.items():
        print(f"{key:>14}  {value}")
    for name, value in figures.items():
        print(f"{value:10.1f} µs  {name}")


if __name__ == "__main__":
    main()
