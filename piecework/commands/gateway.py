"""`piecework gateway`: an OpenAI-compatible endpoint that pays per canvas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piecework.base.hosts import LOOPBACK
from piecework.commands import _common as common
from piecework.commands import _gateway_keys

if TYPE_CHECKING:
    from piecework.client.audits.auditor import CanvasReport
    from piecework.client.config import ClientConfig

app = common.single("[COMMAND]")
app.add_typer(_gateway_keys.app, name="keys")


@app.callback()
def serve(
    context: typer.Context,
    *,
    home: Annotated[Path | None, common.home_option("client")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. It spends your money.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 8400,
    index: Annotated[list[str] | None, typer.Option("--index", help="Index URL.")] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(help="Requests that run at once. More wait.")
    ] = None,
    best_effort: Annotated[
        bool | None,
        typer.Option(
            "--best-effort/--replayable", help="Whether models without seed and trace will do."
        ),
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File with the key's password.")
    ] = None,
) -> None:
    """Serve an OpenAI-compatible endpoint that pays per canvas.

    It serves chat completions, completions, responses, decisions and models under /v1 until SIGTERM
    or Ctrl-C. Give each caller an API
    key with a budget: piecework gateway keys add NAME --per-day AMOUNT.
    """
    if context.invoked_subcommand is not None:
        common.no_options_before(context)
        return
    from piecework.commands._client.home import open_config

    flags = {
        "indexes": tuple(index) if index else None,
        "gateway_max_concurrent": max_concurrent,
        "gateway_best_effort": best_effort,
    }
    folder, config = open_config(home, flags)
    if host not in LOOPBACK and config.gateway_api_key is None and not _gateway_keys.exist(home):
        common.fail(
            f"listening on {host} without an API key lets anybody spend your money. Make one: "
            "piecework gateway keys add NAME --per-day AMOUNT",
            2,
        )
    common.run(_serve(folder, config, common.password(password_file), host, port))


def _log_audit(report: CanvasReport, file: Path | None) -> None:
    """Log what an audit in the background found."""
    import structlog

    from piecework_protocol.objects import AuditOutcome
    from piecework_protocol.types import to_hex

    log = structlog.get_logger("audit")
    facts = {"canvas": report.canvas, "level": report.level.name.lower()}
    if report.by:
        facts["by"] = " ".join(map(to_hex, report.by))
    for remark in report.remarks:
        log.warning("an auditor", remark=remark)
    if report.outcome is AuditOutcome.FAIL:
        found = "; ".join(report.findings)
        kept = report.reason if file is None else str(file)
        log.error("a worker failed an audit, and gets no more jobs", file=kept, why=found)
    elif report.reason:
        log.warning("an audit has no verdict", reason=report.reason, **facts)
    else:
        log.info("audited", outcome=report.outcome.name.lower(), **facts)


async def _serve(folder: Path, config: ClientConfig, secret: str, host: str, port: int) -> None:
    from piecework.base.connections import parse_networks
    from piecework.base.http_server import HttpServer, http_limits, serving
    from piecework.client.config import ClientHome
    from piecework.client.gateway.server import Gateway, GatewayOptions
    from piecework.client.sdk import PieceworkClient
    from piecework.commands._server import logs_to_stderr, until_told_to_stop
    from piecework_protocol.types import to_hex

    logs_to_stderr()
    async with await PieceworkClient.open(ClientHome(folder), config, password=secret) as client:
        trusted = parse_networks(config.gateway_trusted_proxies)
        options = GatewayOptions(
            api_key=config.gateway_api_key,
            max_concurrent=config.gateway_max_concurrent,
            heartbeat_s=config.gateway_heartbeat_s,
            best_effort=config.gateway_best_effort,
            max_waiting=config.gateway_max_waiting,
            wait_s=config.gateway_wait_s,
            trusted_proxies=trusted,
            allowed_origins=config.gateway_allowed_origins,
            strict_parameters=config.gateway_strict_parameters,
            token_usd_price=config.token_usd_price,
        )
        client.audits.on_report = _log_audit
        gateway = Gateway(client, options)
        total = config.gateway_max_connections
        # Requests that still run when we are told to stop are cancelled at the worker and paid.
        server = HttpServer(
            gateway.application(),
            http_limits(total, total // 2, trusted),
            on_refused=gateway.metrics.connection_refused,
        )
        async with serving(server, host, port) as bound:
            common.print_json(
                {
                    "ready": True,
                    "role": "gateway",
                    "url": bound.url + "/v1",
                    "port": bound.port,
                    "payer": to_hex(client.wallet.payer.address),
                }
            )
            await until_told_to_stop()
