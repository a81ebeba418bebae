"""The chain's node of a client, or several that must agree about money."""

from __future__ import annotations

from piecework.chain.deployment import Deployment
from piecework.chain.reading.reader import ChainReader
from piecework.client.config import ClientConfig


async def connect(config: ClientConfig, deployment: Deployment) -> ChainReader:
    """Connect to the chain as the settings say. Close the reader with `close`.

    Raises:
        ChainError: no node answers, or it serves another market.
    """
    return await ChainReader.connect(
        deployment,
        rpc_url=config.rpc_url,
        rpc_urls=config.rpc_urls,
        rpc_quorum=config.rpc_quorum,
        timeout_s=config.rpc_timeout_s,
    )
