"""`piecework models`: the weights. Pull a published model, list what is here, hold it to its
manifest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common
from piecework.commands.plan import plan

if TYPE_CHECKING:
    from piecework.commands._progress import PullProgress
    from piecework_node.models.name import ModelName
    from piecework_node.models.pull import Received
    from piecework_node.models.store import Pulled

app = common.group()

Store = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Folder of pulled models; else $PIECEWORK_MODELS, else the user's data."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DIGEST_HEX_CHARS = 64

app.command()(plan)


@app.command()
def pull(
    *,
    name: Annotated[
        str, typer.Argument(help="owner/name or owner/name@revision (a commit, tag or branch).")
    ] = "google/diffusiongemma-26B-A4B-it",
    revision: Annotated[str | None, typer.Option(help="Instead of @revision.")] = None,
    expect_digest: Annotated[
        str | None,
        typer.Option(help="Refuse any other model digest, where possible before the weights."),
    ] = None,
    endpoint: Annotated[
        str, typer.Option(envvar="HF_ENDPOINT", help="A hub that speaks the Hugging Face API.")
    ] = "https://huggingface.co",
    store: Store = None,
    json: Json = False,
) -> None:
    """Download a model, or continue a download.

    It takes safetensors, configuration and tokenizer. It never takes code or pickle files. Every
    file is verified. Run it again after a failure: it continues where it stopped. A gated model
    needs a token with read access in HF_TOKEN.
    """
    from piecework.commands._progress import progress
    from piecework_node.models.name import ModelName

    expected = _digest(expect_digest)
    model = common.guard(lambda: ModelName.parse(name))
    if revision is not None:
        model = common.guard(lambda: model.at(revision))
    with progress() as shown:
        received = common.run(_pull(model, endpoint, store, expected, shown))
    if json:
        common.print_json({**_view(received.pulled), "downloaded_bytes": received.downloaded_bytes})
        return
    pulled = received.pulled
    common.say(f"{pulled.model}@{pulled.commit}  {pulled.files} files, {_size(pulled.size_bytes)}")
    common.say(f"digest  0x{(pulled.digest or b'').hex()}")
    common.say(f"folder  {pulled.folder}")
    common.say(
        f'next: model = "{model}" in the config.toml of the worker, then piecework worker check'
    )


async def _pull(
    model: ModelName, endpoint: str, store: Path | None, expected: bytes | None, shown: PullProgress
) -> Received:
    from piecework_node.models.hub import Hub
    from piecework_node.models.pull import pull

    token = os.environ.get("HF_TOKEN", "").strip()
    async with Hub.connect(endpoint, token, on_wait=shown.on_wait) as hub:
        return await pull(
            hub, common.model_store(store), model, watcher=shown, expected_digest=expected
        )


@app.command("list")
def list_models(*, store: Store = None, json: Json = False) -> None:
    """List the models in the store."""
    place = common.model_store(store)
    everything = common.guard(place.all)
    if json:
        common.print_json(
            {"store": str(place.root), "models": [_view(pulled) for pulled in everything]}
        )
        return
    if not everything:
        common.say(f"nothing in {place.root}; piecework models pull brings the published model")
    for pulled in everything:
        named = ", ".join(pulled.revisions) or "-"
        state = f"0x{pulled.digest.hex()}" if pulled.digest is not None else _progress_of(pulled)
        size = _size(pulled.size_bytes)
        common.say(f"{pulled.model!s:40} {named:12} {pulled.commit[:12]} {size:>10}  {state}")


@app.command()
def verify(
    *,
    name: Annotated[str, typer.Argument(help="A pulled model, or a checkpoint folder.")],
    store: Store = None,
    json: Json = False,
) -> None:
    """Read a model again and compare it with its manifest.

    If a file differs, the command names the first one. Its exit code is then 1.
    """
    from piecework.commands._progress import busy
    from piecework_model.checkpoint.manifest import verify as hold_to_manifest
    from piecework_model.errors import CheckpointError

    folder = common.checkpoint(name, store)
    try:
        with busy(f"reading {folder}"):
            digest = hold_to_manifest(folder)
    except CheckpointError as error:
        if json:
            common.print_json(
                {"good": False, "folder": str(folder), "path": error.path, "error": str(error)}
            )
            raise typer.Exit(1) from None
        pulled = folder != Path(name)
        common.fail(
            f"{error}. Delete it and run: piecework models pull {name}" if pulled else str(error)
        )
    if json:
        common.print_json({"good": True, "folder": str(folder), "digest": "0x" + digest.hex()})
        return
    common.say(f"{folder} is what its manifest says; digest 0x{digest.hex()}")


def _view(pulled: Pulled) -> dict[str, Any]:
    from piecework_protocol.views import members

    return {
        "repository": pulled.model.repository,
        **members(pulled, "revisions", "commit", "digest"),
        "folder": str(pulled.folder),
        **members(pulled, "files", "size_bytes", "present_bytes", "complete"),
    }


def _progress_of(pulled: Pulled) -> str:
    return f"incomplete: {_size(pulled.present_bytes)} are here"


def _size(count: int) -> str:
    """Decimal units, as disks and downloads have them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _digest(text: str | None) -> bytes | None:
    if text is None:
        return None
    digits = text.removeprefix("0x")
    try:
        if len(digits) != DIGEST_HEX_CHARS:
            raise ValueError
        return bytes.fromhex(digits)
    except ValueError:
        common.fail("--expect-digest is 0x and 64 hexadecimal digits", 2)
