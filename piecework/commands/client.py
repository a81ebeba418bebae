"""`piecework client`: deposit, find workers, run prompts, check receipts, take the rest back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common
from piecework.commands._client import audit, dispute, evidence, money, move
from piecework.commands._client.home import (
    Home,
    Json,
    PasswordFile,
    market_token_of,
    print_amounts,
    safe,
    with_client,
)

if TYPE_CHECKING:
    from piecework.client.jobs.requests import TextRequest
    from piecework.client.sdk import PieceworkClient

app = common.group()

Index = Annotated[
    list[str] | None, typer.Option("--index", help="Index URL instead of the configured ones.")
]
Model = Annotated[str | None, typer.Option(help="Model name or digest. Default: any.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]
Steps = Annotated[
    int | None, typer.Option("--max-steps", min=1, help="Most denoising steps of a canvas.")
]
Seed = Annotated[
    int | None, typer.Option(min=0, max=(1 << 64) - 1, help="Seed of the text. Default: random.")
]
MaxPrice = Annotated[
    str | None, typer.Option(help="Most that the job may cost, in the payment token.")
]
System = Annotated[str | None, typer.Option(help="A system message before the prompt.")]

BestEffort = Annotated[
    bool,
    typer.Option("--best-effort", help="Also take models that honour no seed and leave no trace."),
]


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
        bool, typer.Option("--second-key", help="Sign jobs and vouchers with a key of their own.")
    ] = False,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Make a home: keys, settings, deployment.

    Safe to run again: what is there stays. If an option differs from what is there, it changes
    nothing and says what to edit.
    """
    from piecework.client.setup import set_up
    from piecework_protocol.views import members

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
        **members(made, "payer", "authorizer", "created"),
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
    from piecework.commands._client.views import offers_view, rate_line

    async def read(client: PieceworkClient) -> dict[str, Any]:
        return offers_view(await client.offers(), await client.rates())

    view = with_client(home, password_file, read, indexes=_indexes(index))
    rows, token = view["offers"], market_token_of(home)
    if json:
        print_amounts(view, token)
        return
    for row in rows:
        common.say(
            f"{row['operator']}  {safe(', '.join(e['address'] for e in row['endpoints']))}  "
            f"{row['slots_free']} of {row['slots']} slots free"
        )
        for model in row["models"]:
            common.say(
                f"    {safe(model['name'])}: {', '.join(model['kinds'])}, "
                f"{model['tokens_per_second']} tokens/s"
                + (", best effort: no seed, no trace" if model["service"] == "best_effort" else "")
            )
            common.say(f"        {rate_line(model['with_steps'], token)}")
            common.say(
                f"        parts: output {token.format(model['price_per_million_output_tokens'])}/M,"
                f" prompt {token.format(model['price_per_million_prompt_tokens'])}/M,"
                f" steps {token.format(model['price_per_thousand_steps'])}/k"
            )
    for trouble in view["troubles"]:
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
    from piecework.commands._client.views import quote_view, rate_line

    token = market_token_of(home)
    request = _request(
        prompt,
        system=system,
        model=model,
        max_tokens=max_tokens,
        max_steps=max_steps,
        best_effort=best_effort,
    )
    flags = _indexes(index)
    view = quote_view(with_client(home, password_file, lambda c: c.quote(request), indexes=flags))
    if json:
        print_amounts(view, token)
        return
    common.say(f"worker    {view['worker']} ({safe(view['model'])})")
    common.say(f"expected  {token.format(view['expected'])}")
    usage = view["usage"]
    common.say(
        f"for       about {usage['prompt_tokens']} prompt tokens, {usage['output_tokens']} output "
        f"tokens and {usage['denoising_steps']} denoising steps"
    )
    common.say(f"rate      {rate_line(view['with_steps'], token)}")
    common.say(f"at most   {token.format(view['ceiling'])}")
    if view["fee"]:
        common.say(f"opening   {token.format(view['fee'])}, once, for the worker's transaction")
    common.say(f"why       {view['why']}")
    for line in view["unfit"]:
        common.say(f"left out  {safe(line)}", err=True)


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
        float | None,
        typer.Option(min=0, max=2, help="0 to 2. 1 is the model's published schedule."),
    ] = None,
    max_price: MaxPrice = None,
    system: System = None,
    best_effort: BestEffort = False,
    resume: Annotated[
        str | None,
        typer.Option(help="Take up an interrupted job by its id or the first digits of it."),
    ] = None,
    home: Home = None,
    password_file: PasswordFile = None,
    index: Index = None,
    json: Json = False,
) -> None:
    """Run a prompt and pay for it canvas by canvas."""
    if (prompt is None) == (resume is None):
        common.fail("give a PROMPT, or --resume JOB", 2)
    token = market_token_of(home)
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
        from piecework.commands._client.views import result_view
        from piecework.commands._terminal import choose

        if request is not None:
            job = client.run(request)
        else:
            job = client.resume(client.store.job_named(resume or ""))
        return result_view(await choose(token.format, quiet=json).show(job))

    result = with_client(home, password_file, work, indexes=_indexes(index))
    if json:
        print_amounts(result, token)


@app.command()
def receipts(
    *,
    job: Annotated[
        str | None, typer.Option(help="Only this job's: its id, or its first digits.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Fail unless every receipt is signed and included.")
    ] = False,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """List and prove the receipts of paid canvases."""
    from piecework.commands._client.views import receipts_view

    view = with_client(home, password_file, lambda client: receipts_view(client, job))
    token = market_token_of(home)
    if json:
        print_amounts(view, token)
    else:
        for row in view["receipts"]:
            mark = row["trouble"] or "proved"
            common.say(
                f"{row['job'][:14]} canvas {row['canvas']:>3}"
                f"  {row['units']:>4} tokens {row['steps']:>4} steps"
                f"  {token.format(row['amount'])}  leaf {row['leaf_index']} of {row['count']}: "
                f"{mark}"
            )
        common.say(f"{len(view['receipts'])} receipts, {view['failed']} with trouble", err=True)
    if verify and view["failed"]:
        raise typer.Exit(1)


money.register(app)
audit.register(app)
dispute.register(app)
move.register(app)
app.add_typer(evidence.app, name="evidence", help="Export what proves a job.")


# --- shared


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
