"""`piecework worker`: the daemon that sells canvases, and what its operator does with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common
from piecework.commands._worker import changes, earned, evidence, leave, own_test, update
from piecework.commands._worker import join as join_market
from piecework.commands._worker import options as _options

if TYPE_CHECKING:
    from piecework.base.amounts import Token
    from piecework_node.home import Home
    from piecework_node.operations.check_results import CheckResult

app = common.group()

HomeOption = Annotated[Path | None, common.home_option("worker")]
PasswordFile = Annotated[Path | None, typer.Option(help="File with the key's password.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
CardOption = Annotated[str | None, typer.Option("--card", help="One card. Default: all of them.")]
Payout = Annotated[
    str | None, typer.Option(help="Cold address that earns; its key stays elsewhere.")
]
VllmModel = Annotated[
    str, typer.Option(help="What vLLM calls the model. Not needed if it serves one alone.")
]
Faucet = Annotated[
    bool, typer.Option("--faucet", help="Development chains: take stake and gas from the faucet.")
]
SignerOption = Annotated[
    str, typer.Option("--signer", help="The signer that has the operator key, as unix:SOCKET.")
]
NoRegister = Annotated[bool, typer.Option("--no-register", help="Only write the files.")]
StepsPrice = Annotated[
    str,
    typer.Option(help="Price of a thousand denoising steps. Default: 0.001. With --vllm it is 0."),
]
Model = Annotated[
    str,
    typer.Option(help="Checkpoint folder or pulled model (owner/name). Default: the bundled one."),
]
VllmEndpoints = Annotated[
    list[str] | None,
    typer.Option(help="Base URL of a vLLM server that serves the model, best effort; repeatable."),
]
PromptPrice = Annotated[
    str, typer.Option(help="Price of a million prompt tokens, in the market's token.")
]
OutputPrice = Annotated[
    str, typer.Option(help="Price of a million output tokens, in the market's token.")
]
Stake = Annotated[str, typer.Option(help="Stake, in tokens. Default: the market's least.")]
Owner = Annotated[
    str | None, typer.Option(help="Address that gets the stake back. Default: the payout.")
]
NodeUrl = Annotated[
    str,
    typer.Option(
        "--rpc-url", help="The chain's node. The file of a development chain names its own."
    ),
]
Indexes = Annotated[list[str] | None, typer.Option(help="Index to publish offers to; repeatable.")]
RelayNames = Annotated[
    list[str] | None,
    typer.Option(
        "--relay", help="Relay to be reached through; repeatable. Without --bind nothing listens."
    ),
]


@app.command()
def init(
    context: typer.Context,
    *,
    deployment: Annotated[Path | None, typer.Option(help="The market's deployment file.")] = None,
    payout: Payout = None,
    endpoint: Annotated[
        str, typer.Option(help="host:port that clients dial. Default: that of --bind.")
    ] = "",
    bind: Annotated[str, typer.Option(help="host:port to listen on.")] = "127.0.0.1:50051",
    price_prompt: PromptPrice = "0.05",
    price_output: OutputPrice = "0.2",
    price_steps: StepsPrice = "",
    stake: Stake = "",
    owner: Owner = None,
    slots: Annotated[int, typer.Option(min=1, help="Jobs that run at once.")] = 2,
    index: Indexes = None,
    relay: RelayNames = None,
    rpc_url: NodeUrl = "",
    model: Model = "",
    vllm: VllmEndpoints = None,
    vllm_model: VllmModel = "",
    faucet: Faucet = False,
    no_register: NoRegister = False,
    signer: SignerOption = "",
    home: HomeOption = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Make keys and settings, and register with one transaction.

    Safe to run again: what is there stays. If an option differs from what is there, it changes
    nothing and says what to edit.
    """
    from piecework_node.home import Home
    from piecework_node.operations.setup import NewStake, set_up_worker

    file = deployment or Path(common.ask("--deployment", "The market's deployment file"))
    token = common.market_token(file)
    values: dict[str, Any] = {
        "payout": payout or common.ask("--payout", "Cold address for the earnings"),
        **_options.where(context, bind, endpoint, relay),
        "price_per_million_prompt_tokens": common.written(token, price_prompt),
        "price_per_million_output_tokens": common.written(token, price_output),
        "price_per_thousand_steps": common.written(token, price_steps or _steps_price(vllm)),
        "slots": slots,
        "indexes": tuple(index or ()),
        **{n: v for n, v in (("rpc_url", rpc_url), ("signer", signer)) if v},
        **_model_settings(model),
    }
    if vllm:
        values |= {"backend": "vllm", "vllm_endpoints": tuple(vllm), "vllm_model": vllm_model}
    place = Home(common.home("worker", home))
    secret = common.password(password_file, confirm=not place.operator.is_file())
    staked = common.units(token, stake) if stake else None
    heir = None if owner is None else common.address("--owner", owner)
    doubt = None if json else join_market.ask_about
    new = None if no_register else NewStake(staked, heir, faucet, doubt)
    more: dict[str, Any] = {"asked": _options.asked(context), "file_is_asked": True}
    more["flags"] = _options.FLAG_OF_SETTING
    _print_steps(common.run(set_up_worker(place, file, values, secret, new, **more)), json)


def _steps_price(vllm: list[str] | None) -> str:
    """The default. A vLLM worker counts no steps."""
    return "0" if vllm else "0.001"


@app.command()
def join(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="URL or file of the market's descriptor.")],
    *,
    fingerprint: Annotated[
        str | None,
        typer.Option(
            help="Address whose key must have signed the descriptor. Then nobody is asked about it."
        ),
    ] = None,
    payout: Payout = None,
    endpoint: Annotated[str, typer.Option(help="host:port that clients dial.")] = "",
    bind: Annotated[str, typer.Option(help="host:port to listen on.")] = "",
    relay: RelayNames = None,
    index: Indexes = None,
    price_prompt: PromptPrice = "",
    price_output: OutputPrice = "",
    price_steps: Annotated[str, typer.Option(help="Price of a thousand denoising steps.")] = "",
    stake: Stake = "",
    owner: Owner = None,
    rpc_url: NodeUrl = "",
    model: Model = "",
    faucet: Faucet = False,
    signer: SignerOption = "",
    no_start: Annotated[bool, typer.Option("--no-start", help="Register, and stop there.")] = False,
    home: HomeOption = None,
    password_file: PasswordFile = None,
) -> None:
    """Join a market by its descriptor, register, check and start.

    It asks for what is missing. Run again, it follows the market's indexes and relays. A key that
    changed is refused, and so is another chain, token or other terms.
    """
    from piecework_node.daemon.daemon import serve
    from piecework_node.home import Home

    place = Home(common.home("worker", home))
    given: dict[str, Any] = {"payout": payout, "endpoint": endpoint, "bind": bind}
    given |= {
        "rpc_url": rpc_url,
        "signer": signer,
        "relays": tuple(relay or ()),
        "indexes": tuple(index or ()),
    }
    given |= _model_settings(model) if model else {}
    # An empty flag is an answer too.
    asked = {n: v for n, v in given.items() if v or n in _options.asked(context)}
    prices = (price_prompt, price_output, price_steps)
    wishes = join_market.Wishes(asked, prices, fingerprint, stake, owner, faucet)
    done, secret = join_market.join(place, url, wishes, password_file, _options.FLAG_OF_SETTING)
    _print_steps(done, as_json=False, goes_on=not no_start)
    if no_start:
        return
    check_all(place, secret)
    common.run(serve(place.root, {}, secret))


def check_all(place: Home, password: str) -> None:
    """Run every check, and end with exit code 1 if anything fails."""
    from piecework_node.operations.checks import Checker

    findings = common.run(Checker(place, password).run())
    _print_findings(findings)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


def _print_findings(findings: list[CheckResult]) -> None:
    for finding in findings:
        for line in finding.lines:
            common.say(line)


def _print_steps(done: dict[str, Any], as_json: bool, *, goes_on: bool = False) -> None:
    if as_json:
        common.print_json(done)
        return
    for step in done["steps"]:
        common.say(f"{'made ' if step['new'] else 'there'}  {step['what']:14} {step['detail']}")
    for warning in done["warnings"]:
        common.say(f"warning: {warning}", err=True)
    common.say(f"operator {done['operator']}; earnings go to {done['payout']}")
    if not goes_on:
        common.say("next: piecework worker check, then piecework worker start")


def _model_settings(model: str) -> dict[str, Any]:
    """A pulled model by its name, a folder by its full path, or the bundled one."""
    from piecework_node.models.store import is_model_name

    if Path(model).is_dir() or not is_model_name(model):
        return {"model": str(Path(model).resolve()) if model else ""}
    # The daemon may run as another user, whose default is another folder.
    return {"model": model, "model_store": str(common.model_store().root.resolve())}


@app.command()
def check(
    *, home: HomeOption = None, password_file: PasswordFile = None, json: Json = False
) -> None:
    """Check all that it takes to earn, as others see it.

    Each line that is not ok has a code and what to do. Exit code 1 if anything fails. `--json` has
    the shape of `linkerd check -o json`.
    """
    from piecework_node.home import Home
    from piecework_node.operations.check_results import as_linkerd
    from piecework_node.operations.checks import Checker

    place = Home(common.home("worker", home))
    if not place.config.is_file() and not place.deployment.is_file():
        changes.no_home(place)
    findings = common.run(Checker(place, common.password(password_file)).run())
    good = all(finding.good for finding in findings)
    if json:
        common.print_json(as_linkerd(findings))
    else:
        _print_findings(findings)
    raise typer.Exit(0 if good else 1)


@app.command()
def start(
    *,
    bind: Annotated[
        str | None, typer.Option(help="host:port to listen on. Port 0 picks a free one.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="host:port that clients dial.")] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of /metrics and /status. 0 picks a free one."),
    ] = None,
    rpc_url: Annotated[str | None, typer.Option(help="The chain's node.")] = None,
    index: Annotated[
        list[str] | None, typer.Option(help="Index to publish to; repeatable.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, human or json.")] = None,
    home: HomeOption = None,
    password_file: PasswordFile = None,
) -> None:
    """Run the worker until SIGTERM or Ctrl-C.

    It then drains: running jobs get a grace period, and vouchers that are worth their gas are
    settled.
    """
    from piecework_node.daemon.daemon import serve

    flags = {
        "bind": bind,
        "endpoint": endpoint,
        "admin_port": admin_port,
        "rpc_url": rpc_url,
        "indexes": tuple(index) if index else None,
        "device": device,
        "log_level": log_level,
        "log_format": log_format,
    }
    common.run(serve(common.home("worker", home), flags, common.password(password_file)))


@app.command()
def status(*, home: HomeOption = None, json: Json = False) -> None:
    """Show what the running worker does, earns and misses."""
    from piecework.commands._worker.views import price_rows, reached_line

    body = _ask(home, "GET", "/status")
    token = _token(home)
    if json:
        common.print_json({**body, "token": common.token_json(token)})
        return
    engine, offer, earned = body["engine"], body["offer"] or {}, body["earnings"]
    seen: dict[str, bool] = body["seen_by"]
    rows = (
        ("state", body["state"] + (f": {body['fault']}" if body["fault"] else "")),
        ("can earn", "yes" if body["can_earn"] else "; ".join(body["obstacles"]) or "not yet"),
        ("paused", _why_paused(body["pause"])),
        ("operator", body["operator"]),
        ("earnings to", body["receiver"]),
        ("model", f"{engine.get('model', '-')} on {engine.get('device', '-')}"),
        ("kinds", ", ".join(engine.get("kinds", ())) or "-"),
        ("service", engine.get("service", "-").replace("_", " ")),
        ("precision", engine.get("precision") or "-"),
        ("speed", f"{engine.get('tokens_per_second', 0)} tokens/s, {engine['restarts']} restarts"),
        ("jobs", f"{body['active']} active of {body['slots']} slots and {body['queue']} queued"),
        ("offer", f"number {offer.get('sequence', '-')} at {offer.get('endpoint', '-')}"),
        ("relays", ", ".join(f"{name} {state}" for name, state in body["relays"].items()) or "-"),
        ("seen by", ", ".join(f"{h} {'yes' if s else 'no'}" for h, s in seen.items()) or "-"),
        ("reached", reached_line(body)),
        ("price", _rate(offer, token)),
        *price_rows(body["prices"]),
        ("accepted", token.format(earned["accepted"])),
        ("settled", token.format(earned["settled"])),
        ("unsettled", token.format(body["unsettled"])),
        (
            "exposure",
            f"{token.format(body['exposure'])}, bound {token.format(body['exposure_bound'] or 0)}",
        ),
        ("jobs missed", ", ".join(f"{k} {v}" for k, v in body["refusals"].items()) or "none"),
    )
    for name, value in rows:
        common.say(f"{name:14} {value}")
    for card in body["cards"] if len(body["cards"]) > 1 else ():
        common.say(f"{'card ' + card['name']:14} {_card_line(card)}")
    for member in engine.get("endpoints", ()):
        trouble = f": {member['trouble']}" if member["trouble"] else ""
        common.say(f"{'endpoint':14} {member['number']} {member['health']}{trouble}")
    for note in body["errors"][-5:]:
        common.say(f"{'error':14} {note['where']}: {note['message']}")


def _rate(offer: dict[str, Any], token: Token) -> str:
    """What a million output tokens cost with their steps, as the offer says."""
    usual = offer.get("with_steps")
    if not usual:
        return "-"
    p50, p90 = token.format(usual["p50"]), token.format(usual["p90"])
    if not usual["jobs"]:
        return f"about {p50} for 1M output tokens with their steps: an estimate, too few jobs yet"
    return f"{p50} for 1M output tokens with their steps (p90 {p90}, {usual['jobs']} jobs)"


@app.command()
def drain(*, home: HomeOption = None, json: Json = False) -> None:
    """Take nothing new, finish, settle, and stop."""
    body = _ask(home, "POST", "/drain")
    if json:
        common.print_json(body)
    else:
        common.say("draining")


@app.command()
def top(
    *,
    web: Annotated[
        bool,
        typer.Option("--web", help="Print the address of the same view as a web page, and end."),
    ] = False,
    home: HomeOption = None,
) -> None:
    """Watch the running worker live.

    It shows canvases, money, the GPU, refusals and alerts.

    Keys: Tab and the arrows move, d changes dark and light, q quits. The terminal needs the extra
    `console`.
    """
    from piecework_node.daemon.admin import console_url

    root = common.home("worker", home)
    if web:
        common.say(common.guard(lambda: console_url(root)))
        return
    from piecework.commands._worker.console import ConsoleApp

    common.guard(lambda: console_url(root))
    ConsoleApp(root).run()


@app.command()
def estimate(
    *,
    card: Annotated[
        str, typer.Option(help="A card that you do not have, by name. Empty: this machine.")
    ] = "",
    cards: Annotated[bool, typer.Option("--cards", help="Every card of the table.")] = False,
    usd_per_kwh: Annotated[
        float | None, typer.Option(min=0, help="Your price of power. Default: the setting.")
    ] = None,
    usd_per_token: Annotated[
        float | None, typer.Option(min=0, help="Your price of the token. Default: the setting.")
    ] = None,
    utilization: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the time that the card is busy, 0 to 1. Default: as in the market now.",
        ),
    ] = None,
    watts: Annotated[
        float | None,
        typer.Option(min=0, help="What the busy card draws. Default: its power limit."),
    ] = None,
    home: HomeOption = None,
    json: Json = False,
) -> None:
    """Say what a day would earn, each figure with its source.

    Speed times the prices that the market asks now times utilisation, less power and gas. What is
    not known is a dash.
    """
    from piecework.commands._worker import estimate as estimates
    from piecework_node.console.cards import CARDS

    wishes = estimates.EstimateWishes(usd_per_token, usd_per_kwh, utilization, watts)
    estimator = estimates.Estimator(common.home("worker", home), wishes)
    chosen = CARDS if cards else (estimates.card_named(card),) if card else ()
    made = estimates.by_cards(chosen, estimator) if chosen else estimates.here(estimator)
    estimates.show(made, estimator, as_json=json)


@app.command()
def pause(
    *,
    seconds: Annotated[
        int | None,
        typer.Option("--for", min=1, help="Seconds. Default: until `piecework worker resume`."),
    ] = None,
    card: CardOption = None,
    home: HomeOption = None,
    json: Json = False,
) -> None:
    """Stop all jobs between two steps: the machine is yours.

    They wait, and clients may leave free of charge. After `pause_max_s` the jobs that still wait
    are handed back unpaid. The command outlives a restart of the worker.
    """
    import json as notation

    asked = notation.dumps({"seconds": seconds, "card": card}).encode()
    body = _ask(home, "POST", "/pause", asked)
    if json:
        common.print_json(body)
    else:
        common.say("paused; piecework worker resume ends it")


@app.command()
def resume(*, card: CardOption = None, home: HomeOption = None, json: Json = False) -> None:
    """Lift `piecework worker pause`. Other causes of a pause stay."""
    import json as notation

    body = _ask(home, "POST", "/resume", notation.dumps({"card": card}).encode())
    if json:
        common.print_json(body)
    else:
        common.say("; ".join(("still paused", *body["causes"])) if body["paused"] else "resumed")


def _card_line(card: dict[str, Any]) -> str:
    """One line of one card of several."""
    engine = card["engine"]
    state = "ready" if card["serves"] else "starting"
    if card["failed"]:
        state = f"takes no jobs: {card['failed']}"
    elif card["pause"]:
        state = f"paused {_why_paused(card['pause'])}"
    runs = " ".join(filter(None, (engine.get("model"), engine.get("precision")))) or "-"
    return f"{state}; {card['active']} of {card['slots']} slots; {runs}"


def _why_paused(body: dict[str, Any] | None) -> str:
    if body is None:
        return "no"
    return f"{body['seconds']:.0f} s: " + "; ".join(body["causes"])


@app.command()
def settle(*, home: HomeOption = None, json: Json = False) -> None:
    """Settle every accepted voucher now, whatever the gas costs."""
    body = _ask(home, "POST", "/settle")
    if json:
        common.print_json(body)
    else:
        common.say("settling; see piecework worker status")


@app.command()
def recover(*, home: HomeOption = None, json: Json = False) -> None:
    """Go on with a journal that lacks what this worker has signed.

    Stop the worker first. Unfinished jobs end, and the next offer gets a number that is free.
    """
    from piecework_node.operations.recover import recover as recovered

    steps = common.run(recovered(common.home("worker", home)))
    if json:
        common.print_json({"steps": [{"item": item, "detail": detail} for item, detail in steps]})
        return
    for item, detail in steps:
        common.say(f"{item:10} {detail}")


earned.register(app)
evidence.register(app)


def _token(home: Path | None) -> Token:
    from piecework_node.home import Home

    return common.market_token(Home(common.home("worker", home)).deployment)


def _ask(home: Path | None, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
    from piecework_node.daemon.admin import ask_daemon

    return common.run(ask_daemon(common.home("worker", home), method, path, body))


changes.register(app)
leave.register(app)
own_test.register(app)
update.register(app)
