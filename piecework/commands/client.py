"""`piecework client`: deposit, find workers, run prompts, check receipts, take the rest back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.base.text import one_line
from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.base.amounts import Token
    from piecework.client.config import ClientConfig, ClientHome
    from piecework.client.jobs.requests import TextRequest
    from piecework.client.sdk import PieceworkClient
    from piecework_protocol.types import Address

app = common.group()

Home = Annotated[Path | None, common.home_option("client")]
PasswordFile = Annotated[Path | None, typer.Option(help="File with the key's password.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Index = Annotated[
    list[str] | None, typer.Option("--index", help="Index URL instead of the configured ones.")
]
Model = Annotated[str | None, typer.Option(help="Model name or digest; any if not given.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]
Steps = Annotated[
    int | None, typer.Option("--max-steps", min=1, help="Denoising steps a canvas, at most.")
]
Seed = Annotated[int | None, typer.Option(min=0, max=(1 << 64) - 1, help="Random if not given.")]
MaxPrice = Annotated[
    str | None, typer.Option(help="Most that the job may cost, in the payment token.")
]
System = Annotated[str | None, typer.Option(help="A system message before the prompt.")]

BestEffort = Annotated[
    bool,
    typer.Option("--best-effort", help="Also take models that honour no seed and leave no trace."),
]

Work = Callable[["PieceworkClient"], Awaitable[Any]]


@app.callback()
def _client() -> None:
    """Buy text by the canvas."""


@app.command()
def init(
    *,
    deployment: Annotated[Path, typer.Option(help="The market's deployment file.")],
    home: Home = None,
    index: Annotated[
        list[str] | None, typer.Option(help="Index to ask for offers; repeatable.")
    ] = None,
    rpc_url: Annotated[
        str | None,
        typer.Option(help="The chain's node. The file of a development chain names its own."),
    ] = None,
    second_key: Annotated[
        bool, typer.Option("--second-key", help="A key of its own for signing jobs and vouchers.")
    ] = False,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Make a home: keys, settings, deployment.

    Safe to run again: what is there stays. If an option differs from what is there, it changes
    nothing and says what to edit.
    """
    from piecework.client.setup import set_up
    from piecework_protocol.types import to_hex

    folder = common.home("client", home)
    made = common.run(
        set_up(
            folder,
            deployment,
            tuple(index or ()),
            second_key=second_key,
            password=lambda: common.password(password_file, confirm=True),
            rpc_url=rpc_url,
        )
    )
    facts = {
        "home": str(folder),
        "payer": to_hex(made.payer),
        "authorizer": to_hex(made.authorizer),
        "created": list(made.created),
    }
    if json:
        common.print_json(facts)
        return
    common.say(f"home        {folder}")
    common.say(f"payer       {facts['payer']}")
    if made.authorizer != made.payer:
        common.say(f"authorizer  {facts['authorizer']}")
    common.say("created     " + (", ".join(made.created) or "nothing, all was there"))
    common.say("Next: send tokens to the payer, then: piecework client deposit AMOUNT")


@app.command()
def deposit(
    amount: Annotated[str | None, typer.Argument(help="Tokens to put into the escrow.")] = None,
    *,
    gasless: Annotated[
        Path | None,
        typer.Option(help="Write a signed deposit that anybody may submit to this file."),
    ] = None,
    relay: Annotated[
        Path | None,
        typer.Option(help="Submit somebody's signed deposit from this file and pay its gas."),
    ] = None,
    valid_hours: Annotated[float, typer.Option(min=0.01, max=720)] = 24.0,
    faucet: Annotated[
        bool,
        typer.Option("--faucet", help="Development chains: take the tokens and the gas there."),
    ] = False,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Put tokens into the escrow.

    One deposit serves any number of workers.
    """
    if (amount is None) == (relay is None) or (gasless and relay):
        common.fail("give an AMOUNT (perhaps with --gasless FILE), or --relay FILE", 2)
    if faucet and (gasless or relay):
        common.fail(
            "--faucet pays for a deposit that is made now: leave out --gasless and --relay", 2
        )
    token = _token(home)
    units = None if amount is None else common.some_units(token, amount)

    async def work(client: PieceworkClient) -> dict[str, Any]:
        from piecework.chain.dev.faucet import take_from_faucet
        from piecework.commands._deposits import deposit_now, relay_from, sign_to
        from piecework_protocol.types import Amount

        if relay is not None:
            return await relay_from(client, relay)
        if gasless is not None:
            return await sign_to(client, token.amount(units or 0), gasless, int(valid_hours * 3600))
        if faucet:
            await take_from_faucet(
                client.reader.rpc, client.token, client.wallet.payer.address, Amount(units or 0)
            )
        return await deposit_now(client, token.amount(units or 0))

    result = _with_client(home, password_file, work)
    if json:
        _print_json(result, token)
    elif "file" in result:
        common.say(
            f"Signed. Anybody may submit it: piecework client deposit --relay {result['file']}"
        )
    else:
        common.say(f"{token.format(result['amount'])} deposited in block {result['block']}")


@app.command()
def offers(
    *,
    home: Home = None,
    password_file: PasswordFile = None,
    index: Index = None,
    json: Json = False,
) -> None:
    """List workers, models and prices.

    Every offer is verified here. An index is not trusted.
    """
    from piecework_protocol.views import as_json

    found = _with_client(
        home, password_file, lambda client: client.offers(), indexes=_indexes(index)
    )
    rows = [as_json(signed.offer) for signed in found.offers]
    token = _token(home)
    if json:
        _print_json({"offers": rows, "troubles": list(found.troubles)}, token)
        return
    for row in rows:
        common.say(
            f"{row['operator']}  {_safe(row['endpoint'])}  "
            f"{row['slots_free']} of {row['slots']} slots free"
        )
        for model in row["models"]:
            common.say(
                f"    {_safe(model['name']):24} {model['tokens_per_second']:>6} tokens/s"
                f"  out {token.format(model['price_per_million_output_tokens'])}/M"
                f"  in {token.format(model['price_per_million_prompt_tokens'])}/M"
                f"  steps {token.format(model['price_per_thousand_steps'])}/k"
                + ("  best effort: no seed, no trace" if model["service"] == "best_effort" else "")
            )
    for trouble in found.troubles:
        common.say(f"left out: {trouble}", err=True)
    if not rows:
        common.say("no usable offer", err=True)


@app.command()
def quote(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    *,
    model: Model = None,
    max_tokens: MaxTokens = None,
    max_steps: Steps = None,
    system: System = None,
    best_effort: BestEffort = False,
    home: Home = None,
    password_file: PasswordFile = None,
    index: Index = None,
    json: Json = False,
) -> None:
    """Show what a prompt would cost.

    Nothing is sent to a worker.
    """
    from piecework.commands._client_views import quote_view

    token = _token(home)
    request = _request(
        prompt,
        system=system,
        model=model,
        max_tokens=max_tokens,
        max_steps=max_steps,
        best_effort=best_effort,
    )
    flags = _indexes(index)
    view = quote_view(_with_client(home, password_file, lambda c: c.quote(request), indexes=flags))
    if json:
        _print_json(view, token)
        return
    common.say(f"worker    {view['worker']} ({_safe(view['model'])})")
    common.say(f"expected  {token.format(view['expected'])}")
    common.say(f"at most   {token.format(view['ceiling'])}")
    common.say(f"why       {view['why']}")
    for line in view["unfit"]:
        common.say(f"left out  {_safe(line)}", err=True)


@app.command()
def run(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; - reads it from standard input.")
    ] = None,
    *,
    model: Model = None,
    max_tokens: MaxTokens = None,
    max_steps: Steps = None,
    seed: Seed = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="At the last step.")
    ] = None,
    max_price: MaxPrice = None,
    system: System = None,
    best_effort: BestEffort = False,
    resume: Annotated[
        str | None, typer.Option(help="Take up an interrupted job by its id.")
    ] = None,
    home: Home = None,
    password_file: PasswordFile = None,
    index: Index = None,
    json: Json = False,
) -> None:
    """Run a prompt and pay for it canvas by canvas."""
    if (prompt is None) == (resume is None):
        common.fail("give a PROMPT, or --resume JOB", 2)
    token = _token(home)
    request = None
    if prompt is not None:
        request = _request(
            prompt,
            system=system,
            model=model,
            max_tokens=max_tokens,
            max_steps=max_steps,
            seed=seed,
            temperature=temperature,
            max_price=None if max_price is None else common.units(token, max_price),
            drafts=not json,
            best_effort=best_effort,
        )

    async def work(client: PieceworkClient) -> dict[str, Any]:
        from piecework.commands._client_views import result_view
        from piecework.commands._terminal import choose
        from piecework_protocol.types import JobId

        if request is not None:
            job = client.run(request)
        else:
            job = client.resume(JobId(_digest(resume or "", "job")))
        return result_view(await choose(token.format, quiet=json).show(job))

    result = _with_client(home, password_file, work, indexes=_indexes(index))
    if json:
        _print_json(result, token)


@app.command()
def receipts(
    *,
    job: Annotated[str | None, typer.Option(help="Only this job's.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Fail unless every receipt is signed and included.")
    ] = False,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """List and prove the receipts of paid canvases."""
    from piecework.commands._client_views import receipts_view

    wanted = None if job is None else _digest(job, "job")
    view = _with_client(home, password_file, lambda client: receipts_view(client, wanted))
    token = _token(home)
    if json:
        _print_json(view, token)
    else:
        for row in view["receipts"]:
            mark = row["trouble"] or "proved"
            common.say(
                f"{row['job'][:12]}… canvas {row['canvas']:>3}"
                f"  {row['units']:>4} tokens {row['steps']:>4} steps"
                f"  {token.format(row['amount'])}  leaf {row['leaf_index']} of {row['count']}: "
                f"{mark}"
            )
        common.say(f"{len(view['receipts'])} receipts, {view['failed']} with trouble", err=True)
    if verify and view["failed"]:
        raise typer.Exit(1)


@app.command()
def balance(*, home: Home = None, password_file: PasswordFile = None, json: Json = False) -> None:
    """Show where the client's money is."""
    from piecework.commands._client_views import balance_view

    view = _with_client(home, password_file, balance_view)
    token = _token(home)
    if json:
        _print_json(view, token)
        return
    common.say(f"payer                {view['payer']}")
    for label, key in (
        ("own account", "own"),
        ("escrow, free", "free"),
        ("escrow, pooled", "pooled"),
        ("in channels", "in_channels"),
        ("promised to workers", "paid"),
    ):
        common.say(f"{label:20} {token.format(view[key])}")


@app.command()
def channels(*, home: Home = None, password_file: PasswordFile = None, json: Json = False) -> None:
    """List payment channels and their state."""
    from piecework.commands._client_views import channels_view

    rows = _with_client(home, password_file, channels_view)
    token = _token(home)
    if json:
        _print_json({"channels": rows}, token)
        return
    for row in rows:
        common.say(
            f"{row['channel']}  {row['status']:8} worker {row['operator']}"
            f"  {token.format(row['cumulative'])} of {token.format(row['deposit'])}"
            f"  {row['count']} canvases, {row['unacknowledged']} unconfirmed"
        )


@app.command()
def close(
    channel: Annotated[
        list[str] | None, typer.Argument(help="Channel ids; all open ones if none.")
    ] = None,
    *,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Close channels together with their workers.

    If a worker does not answer, the withdrawal delay of its channel starts.
    """
    chosen = [_digest(text, "channel") for text in channel or ()]

    async def work(client: PieceworkClient) -> list[dict[str, Any]]:
        from piecework.commands._client_views import closings_view

        if not chosen:
            return closings_view(await client.funds.close_all())
        return closings_view(tuple([await client.funds.close(one) for one in chosen]))

    _print_closings(_with_client(home, password_file, work), json)


@app.command()
def withdraw(
    amount: Annotated[
        str | None, typer.Argument(help="Tokens; all that is free if not given.")
    ] = None,
    *,
    to: Annotated[
        str | None, typer.Option(help="Address; the payer's own account if not given.")
    ] = None,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Take money out of closed channels and the escrow."""
    token = _token(home)
    units = None if amount is None else common.some_units(token, amount)

    receiver = None if to is None else _address(to)

    async def work(client: PieceworkClient) -> dict[str, Any]:
        from piecework.commands._client_views import withdrawal_view

        wanted = None if units is None else token.amount(units)
        return withdrawal_view(await client.funds.withdraw(wanted, receiver))

    view = _with_client(home, password_file, work)
    if json:
        _print_json(view, token)
        return
    _print_closings(view["channels"], as_json=False)
    common.say(f"{token.format(view['amount'])} sent to {view['to']}")


# --- shared


def open_config(home: Path | None, flags: dict[str, Any]) -> tuple[Path, ClientConfig]:
    """The home and its settings with flags applied. One clear line if they cannot be used."""
    from piecework.client.config import load_config

    files = _existing(home)
    return files.path, common.guard(lambda: load_config(files.config, flags))


def _token(home: Path | None) -> Token:
    """What the amounts of this client's market are counted in."""
    return common.market_token(_existing(home).deployment)


def _print_json(values: dict[str, Any], token: Token) -> None:
    common.print_json({**values, "token": common.token_json(token)})


def _existing(home: Path | None) -> ClientHome:
    """The files of a home that `client init` made. One clear line when there is none."""
    from piecework.client.config import ClientHome

    files = ClientHome(common.home("client", home))
    common.guard(files.check)
    return files


def _with_client(home: Path | None, password_file: Path | None, work: Work, **flags: Any) -> Any:
    folder, config = open_config(home, flags)
    secret = common.password(password_file)

    async def whole() -> Any:
        from piecework.client.config import ClientHome
        from piecework.client.sdk import PieceworkClient

        async with await PieceworkClient.open(
            ClientHome(folder), config, password=secret
        ) as client:
            return await work(client)

    return common.run(whole())


def _indexes(index: list[str] | None) -> Any:
    return tuple(index) if index else None


def _request(prompt: str, **options: Any) -> TextRequest:
    """A request from the options of a command. `-` reads the prompt from standard input."""
    import sys

    from piecework.client.jobs.requests import TextRequest
    from piecework_protocol.errors import MalformedInput

    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():  # such as what a failed command before a pipe gives
        common.fail("the prompt is empty", 2)
    try:
        return TextRequest.of(text, **options)
    except MalformedInput as error:
        common.fail(str(error), 2)


def _digest(text: str, what: str) -> Any:
    from piecework_protocol.types import parse_hex

    try:
        return parse_hex(text, 32, what)
    except ValueError as error:
        common.fail(str(error), 2)


def _address(text: str) -> Address:
    from piecework_protocol.types import parse_address

    try:
        return parse_address(text)
    except ValueError as error:
        common.fail(str(error), 2)


def _safe(text: str) -> str:
    """A stranger's words in one line of a terminal."""
    return one_line(text, 500)


def _print_closings(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        common.print_json({"channels": rows})
        return
    for row in rows:
        at = row["withdrawable_at"]
        later = "" if at is None else f", withdrawable at {at} (Unix time)"
        state = "closed" if row["closed"] else "open"
        common.say(f"{row['channel'][:14]}…  {state}: {_safe(row['note'])}{later}")
