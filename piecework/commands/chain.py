"""`piecework chain`: the embedded chain, deployment to any EVM chain, the faucet of development
chains."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.base.amounts import native_coin
from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.base.amounts import Token
    from piecework.chain.addresses import DisputeTerms
    from piecework.chain.deployment import Deployment
    from piecework.chain.dev.anvil import Anvil
    from piecework.chain.dev.embedded import EmbeddedChain
    from piecework.chain.reading.reader import ChainReader
    from piecework_protocol.signing import AsyncSigner
    from piecework_protocol.types import Address

app = common.group()

DEPLOYER_KEY_VARIABLE = "PIECEWORK_DEPLOYER_KEY"
NATIVE_COIN = native_coin()
_PRESENCE = {
    "ours": "code is this program's",
    "nothing": "nothing is there",
    "other code": "other code is there",
}
_SECONDS_PER_DAY = 24 * 3600

DeploymentFile = Annotated[Path, typer.Option("--deployment", help="The market's deployment file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
MinStake = Annotated[str, typer.Option(help="Least stake of a worker, in tokens.")]
Unbonding = Annotated[
    float, typer.Option("--unbonding-days", min=7, max=180, help="Days until a stake is free.")
]


@app.command()
def dev(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 8545,
    anvil: Annotated[
        bool, typer.Option("--anvil", help="Use anvil in place of the embedded chain.")
    ] = False,
    bare: Annotated[
        bool, typer.Option("--bare", help="The chain alone, without the contracts.")
    ] = False,
    deployment: Annotated[
        Path | None, typer.Option(help="Write the deployment to this file.")
    ] = None,
    min_stake: MinStake = "100",
    unbonding_days: Unbonding = 7.0,
) -> None:
    """Run a development chain with the contracts on it.

    It runs until SIGTERM or Ctrl-C. Nothing is kept.
    """
    if bare and deployment is not None:
        common.fail(
            "--bare deploys nothing, so there is no deployment to write. Leave one of them out.", 2
        )
    terms = None
    if not bare:
        terms = min_stake, int(unbonding_days * _SECONDS_PER_DAY)
    file = None if deployment is None else _writable(deployment)
    common.run(_dev(host, port, anvil=anvil, file=file, terms=terms))


@app.command()
def deploy(
    *,
    rpc: Annotated[str, typer.Option("--rpc", help="The node's http(s) address.")],
    key_file: Annotated[
        Path | None,
        typer.Option(help=f"v3 keystore of the deployer; else ${DEPLOYER_KEY_VARIABLE}."),
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File with the keystore's password.")
    ] = None,
    faucet_key: Annotated[
        bool,
        typer.Option(
            "--faucet-key", help="Development chains only: pay with the published test key."
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="Where to write the deployment.")] = Path(
        "deployment.json"
    ),
    token: Annotated[
        str | None,
        typer.Option(help="An existing token. Default: a new test token, which is worthless."),
    ] = None,
    min_stake: MinStake = "100",
    unbonding_days: Unbonding = 7.0,
    disputes: Annotated[
        Path | None, typer.Option(help="JSON file with the terms of a dispute contract.")
    ] = None,
    json: Json = False,
) -> None:
    """Deploy the contracts to a chain.

    They have no owner. The deployer keeps no power over them.
    """
    if out.is_dir():
        common.fail(f"{out} is a directory. Name the file: --out {out / 'deployment.json'}", 2)
    if out.exists():
        common.fail(f"{out} is there already. Move it away, or choose another file with --out.")
    if not out.parent.is_dir():
        common.fail(f"there is no directory {out.parent}", 2)
    address = None if token is None else common.address("--token", token)
    delay = int(unbonding_days * _SECONDS_PER_DAY)
    deployer = _deployer(rpc, key_file, password_file, faucet_key)
    terms = None if disputes is None else common.guard(lambda: _dispute_terms(disputes))
    made = common.run(
        _deploy(
            rpc,
            deployer,
            token=address,
            min_stake=min_stake,
            unbonding_delay_s=delay,
            disputes=terms,
        )
    )
    common.guard(lambda: made.save(out))
    if json:
        common.print_json({"file": str(out), "contracts": _addresses(made), **made.to_json()})
        return
    _show_deployment(made, out)


def _show_deployment(made: Deployment, out: Path) -> None:
    addresses = _addresses(made)
    token_found = made.payment_token
    common.say(f"chain        {made.chain_id}")
    for name, where in addresses.items():
        common.say(f"{name:12} {where}")
    common.say(f"token        {made.to_json()['token']['address']}, {token_found.symbol}")
    common.say(
        f"terms        at least {token_found.format(made.min_stake)} of stake, "
        f"{made.unbonding_delay_s // _SECONDS_PER_DAY} days to leave"
    )
    common.say(f"written to   {out}")


@app.command()
def faucet(
    *,
    deployment: DeploymentFile,
    to: Annotated[str, typer.Option(help="Who gets it.")],
    native: Annotated[str, typer.Option(help="Coins for gas.")] = "0",
    tokens: Annotated[str, typer.Option(help="Test tokens.")] = "0",
    rpc: Annotated[
        str | None, typer.Option("--rpc", help="Another node than the deployment's.")
    ] = None,
    json: Json = False,
) -> None:
    """Give away coins and test tokens, on development chains only."""
    token = common.market_token(deployment)
    wei, amount = common.units(NATIVE_COIN, native), common.units(token, tokens)
    if wei == 0 and amount == 0:
        common.fail("nothing to give: say --native AMOUNT, --tokens AMOUNT, or both", 2)
    result = common.run(_faucet(deployment, rpc, common.address("--to", to), wei, amount))
    if json:
        common.print_json(result)
    else:
        common.say(
            f"{to} now holds {NATIVE_COIN.format(result['native'])} and "
            f"{token.format(result['tokens'])}"
        )


@app.command()
def status(
    deployment: DeploymentFile,
    rpc: Annotated[
        str | None,
        typer.Option(
            "--rpc", help="The chain's node. The file of a development chain names its own."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check the chain of a market and list its workers."""
    result = common.run(_status(deployment, rpc))
    token = common.market_token(deployment)
    if json:
        common.print_json(result)
    else:
        _say_status(result, token)
    if not result["contracts_match_build"]:
        common.fail("the contracts of this market are not on this chain as this program has them")


def _say_status(result: dict[str, Any], token: Token) -> None:
    height, final = result["latest_block"], result["finalized_block"]
    common.say(f"chain        {result['chain_id']}, block {height}, final {final}")
    for name, address in result["contracts"].items():
        common.say(f"{name:12} {address}, {_PRESENCE[result['found'][name]]}")
    if not result["contracts_match_build"]:
        return
    common.say(
        f"token        {result['token']['address']}, {token.symbol}, {token.decimals} decimals"
    )
    for warning in result["warnings"]:
        common.say(f"warning      {warning}")
    common.say(
        f"workers      {result['workers']}, at least {token.format(result['min_stake'])} of "
        "stake each"
    )
    common.say(f"unbonding    {result['unbonding_delay_s']} s")


async def _dev(
    host: str, port: int, *, anvil: bool, file: Path | None, terms: tuple[str, int] | None
) -> None:
    """Serve a chain. `terms`: least stake and unbonding delay (s) of the contracts; None deploys
    none."""
    from piecework.chain.dev.anvil import Anvil
    from piecework.chain.dev.embedded import EmbeddedChain
    from piecework.commands._server import stop_event

    stop = stop_event()
    chain: EmbeddedChain | Anvil = Anvil() if anvil else EmbeddedChain()
    try:
        rpc_url = await chain.start(host, port)
        common.print_json(await _prepare(chain, rpc_url, file, terms))
        await _until_stopped(chain, stop)
    finally:
        await chain.stop()


async def _prepare(
    chain: EmbeddedChain | Anvil, rpc_url: str, file: Path | None, terms: tuple[str, int] | None
) -> dict[str, Any]:
    """Deploy the contracts unless the chain stays bare; the ready line."""
    from piecework.chain.sending.deploy import deploy as deploy_contracts
    from piecework_protocol.types import Seconds, to_hex

    ready = {
        "ready": True,
        "role": "chain",
        "rpc_url": rpc_url,
        "faucet": to_hex(chain.faucet.address),
    }
    if terms is None:
        return {**ready, "chain_id": chain.chain_id}
    min_stake, unbonding_delay_s = terms
    made = await deploy_contracts(
        rpc_url,
        chain.faucet,
        min_stake=min_stake,
        unbonding_delay_s=Seconds(unbonding_delay_s),
        poll_s=0.05,
    )
    if file is not None:
        made.save(file)
    return {
        **ready,
        "chain_id": made.chain_id,
        "contracts": _addresses(made),
        "deployment": made.to_json(),
        "deployment_file": None if file is None else str(file),
    }


async def _until_stopped(chain: EmbeddedChain | Anvil, stop: Any) -> None:
    """Wait for a signal; a chain that ends by itself is an error."""
    import asyncio

    from piecework.chain.errors import ChainError

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(stop.wait(), name="signal")
        ended = group.create_task(chain.ended(), name="chain")
        await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
        failed = ended.done() and not waiting.done()
        waiting.cancel()
        ended.cancel()
    if failed:
        raise ChainError("the chain ended by itself. Its log may say why.")


async def _deploy(
    rpc_url: str,
    deployer: Coroutine[Any, Any, AsyncSigner],
    *,
    token: Address | None,
    min_stake: str,
    unbonding_delay_s: int,
    disputes: DisputeTerms | None = None,
) -> Deployment:
    from piecework.chain.sending.deploy import deploy as deploy_contracts
    from piecework_protocol.types import Seconds

    return await deploy_contracts(
        rpc_url,
        await deployer,
        min_stake=min_stake,
        unbonding_delay_s=Seconds(unbonding_delay_s),
        token=token,
        disputes=disputes,
    )


async def _deployer(
    rpc_url: str, key_file: Path | None, password_file: Path | None, faucet_key: bool
) -> AsyncSigner:
    """The key that pays: the faucet's, a keystore's, or the environment's, in this order of
    explicitness."""
    from piecework.chain.dev.faucet import faucet_signer
    from piecework.chain.nodes.rpc import HttpRpc
    from piecework_protocol.signing import LocalSigner
    from piecework_protocol.types import parse_hex

    if faucet_key:
        async with HttpRpc(rpc_url) as rpc:
            return await faucet_signer(rpc)
    if key_file is not None:
        return await _open_keystore(key_file, password_file)
    from_environment = os.environ.get(DEPLOYER_KEY_VARIABLE)
    if from_environment is None:
        common.fail(
            f"no key: give --key-file, or set {DEPLOYER_KEY_VARIABLE} to the deployer's private key"
        )
    try:
        return LocalSigner(parse_hex(from_environment.strip(), 32, DEPLOYER_KEY_VARIABLE))
    except ValueError:
        common.fail(f"{DEPLOYER_KEY_VARIABLE} is not a private key: 32 bytes of hex, not zero")


async def _open_keystore(key_file: Path, password_file: Path | None) -> AsyncSigner:
    """Decrypt a v3 keystore; scrypt takes half a second, so it runs in a thread."""
    import asyncio

    from piecework.chain.keystore import open_keystore

    return await asyncio.to_thread(open_keystore, key_file, common.password(password_file))


async def _faucet(
    file: Path, rpc_url: str | None, to: Address, wei: int, amount: int
) -> dict[str, Any]:
    from piecework.chain.deployment import Deployment
    from piecework.chain.dev.faucet import faucet_signer, fund_native, mint_tokens
    from piecework.chain.reading.reader import ChainReader
    from piecework_protocol.types import Amount, to_hex

    deployment = Deployment.load(file)
    async with await ChainReader.connect(deployment, rpc_url=rpc_url) as reader:
        signer = await faucet_signer(reader.rpc)
        if wei:
            await fund_native(reader.rpc, signer, to, wei)
        if amount:
            await mint_tokens(reader.rpc, signer, deployment.token, to, Amount(amount))
        held = await reader.token_balance(deployment.token, to)
        return {"to": to_hex(to), "native": await reader.native_balance(to), "tokens": held}


async def _status(file: Path, rpc_url: str | None) -> dict[str, Any]:
    """What is at the addresses that follow from the file, and the market's state if all is there.

    Raises:
        ChainError: the node does not answer, or is of another chain.
    """
    from piecework.chain.deployment import Deployment
    from piecework.chain.errors import NoFinality
    from piecework.chain.reading.presence import Presence, places
    from piecework.chain.reading.reader import ChainReader
    from piecework_protocol.types import to_hex

    deployment = Deployment.load(file)
    async with ChainReader.over_node(deployment, rpc_url=rpc_url) as reader:
        await reader.verify_chain()
        try:
            finalized = await reader.finalized_block()
        except NoFinality:
            finalized = None
        found = await places(reader.rpc, deployment)
        complete = all(place.presence is Presence.OURS for place in found)
        state = {
            **deployment.to_json(),
            "contracts": {place.name: to_hex(place.address) for place in found},
            "found": {place.name: place.presence.value for place in found},
            "contracts_match_build": complete,
            "latest_block": await reader.latest_block(),
            "finalized_block": finalized,
            "timestamp": await reader.timestamp(),
        }
        return state | await _market_state(reader) if complete else state


async def _market_state(reader: ChainReader) -> dict[str, Any]:
    """Workers, terms and warnings of a market whose contracts are there."""
    await reader.verify()
    requirements, warning = await reader.stake_requirements(), await reader.verify_token()
    return {
        "workers": await reader.worker_count(),
        "min_stake": requirements.min_stake,
        "unbonding_delay_s": requirements.unbonding_delay,
        "warnings": [] if warning is None else [warning],
    }


def _addresses(deployment: Deployment) -> dict[str, str]:
    """Where the contracts of a market are."""
    from piecework_protocol.types import to_hex

    found = {"escrow": to_hex(deployment.escrow), "registry": to_hex(deployment.registry)}
    disputes = deployment.disputes_contract
    if disputes is not None:
        found |= {"verifier": to_hex(deployment.verifier), "disputes": to_hex(disputes)}
    return found


def _dispute_terms(file: Path) -> DisputeTerms:
    """Read the terms of a dispute contract.

    Raises:
        FileError: The file cannot be read.
        BadDeployment: It does not hold such terms.
    """
    from piecework.base.files import read
    from piecework.chain.deployment import dispute_terms_of
    from piecework.chain.limits import MAX_DEPLOYMENT_BYTES

    return dispute_terms_of(read(file, MAX_DEPLOYMENT_BYTES))


def _writable(file: Path) -> Path:
    """The whole path of a file that may be written; one clear line if it may not."""
    from piecework.chain.deployment import require_file_of_a_development_chain

    common.guard(lambda: require_file_of_a_development_chain(file))
    return file.resolve()
