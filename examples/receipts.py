"""Prove that every canvas that was paid for is signed and counted."""

from __future__ import annotations

import asyncio
import os

from piecework.client import ClientHome, PieceworkClient


async def main() -> None:
    secret = os.environ["PIECEWORK_PASSWORD"]
    async with await PieceworkClient.open(ClientHome.default(), password=secret) as client:
        proofs = await client.proofs()
        for proof in proofs:
            receipt = proof.row.receipt
            paid = client.payment_token.format(receipt.amount)
            print(f"{receipt.job.hex()[:12]} canvas {receipt.canvas}: {paid} {proof.trouble}")
        print(f"{sum(not proof.trouble for proof in proofs)} of {len(proofs)} receipts proved")


asyncio.run(main())
