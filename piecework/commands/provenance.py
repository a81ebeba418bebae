"""`piecework provenance`: C2PA credentials of answers, which prove where a text came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piecework.commands import _common as common
from piecework.commands._client.home import Home

app = common.group()

Manifest = Annotated[
    Path | None, typer.Option(help="The manifest's file. Default: the text's name and .c2pa.")
]


@app.callback()
def _provenance() -> None:
    """Write and check C2PA credentials of answers."""


@app.command()
def write(
    file: Annotated[
        Path, typer.Argument(help="A saved answer with evidence, or an evidence file with text.")
    ],
    *,
    text: Annotated[
        Path | None, typer.Option(help="Write the text here. Default: FILE's name and .txt.")
    ] = None,
    manifest: Manifest = None,
    choice: Annotated[int, typer.Option(min=0, help="Which choice of the answer.")] = 0,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM certificates, your own first. Default: one is made.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="The PEM key of --certificate: Ed25519 or P-256.")
    ] = None,
    home: Home = None,
) -> None:
    """Write the text of an answer, and a signed manifest beside it.

    The file is checked first. Without --certificate the gateway's own certificate is used, which
    lies in the client's folder.
    """
    from piecework.base.files import read, write_private
    from piecework.client import provenance
    from piecework.commands._evidence import check_document, read_document, texts_of
    from piecework_protocol.types import to_hex

    if (certificate is None) != (key is None):
        common.fail("--certificate and --key go together", 2)
    target = text or file.with_name(file.name + ".txt")
    beside = manifest or target.with_name(target.name + ".c2pa")

    async def work() -> None:
        found, document = read_document(file)
        checked = await check_document(document, found)
        texts = texts_of(checked)
        if choice >= len(texts) or not texts[choice]:
            common.fail(f"there is no text of choice {choice}", 2)
        if certificate is not None and key is not None:
            limit = provenance.MAX_PEM_BYTES
            signing = provenance.SigningKey(read(certificate, limit), read(key, limit))
        else:
            folder = common.home("client", home) / "provenance"
            authorizer = to_hex(checked.jobs[0][0].channel.authorizer)
            signing = provenance.signing_key(folder, authorizer)
        made = provenance.write_credential(texts[choice], document, signing)
        write_private(target, texts[choice].encode())
        write_private(beside, made)

    common.run(work())
    common.say(f"text      {target}")
    common.say(f"manifest  {beside}")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The text.")],
    *,
    manifest: Manifest = None,
) -> None:
    """Check a text against its manifest, and the evidence in that.

    Exit code 1: the text, the manifest or the evidence was changed.
    """
    from piecework.base.files import read
    from piecework.client import provenance
    from piecework.commands._evidence import check_document, lines_of, texts_of

    beside = manifest or file.with_name(file.name + ".c2pa")

    async def work() -> list[str]:
        text = read(file, provenance.MAX_MANIFEST_BYTES)
        credential = provenance.read_credential(text, read(beside, provenance.MAX_MANIFEST_BYTES))
        checked = await check_document(credential.document)
        if text not in [one.encode() for one in texts_of(checked)]:
            raise provenance.ProvenanceError("the text is not what the evidence says was answered")
        known = "on a list of C2PA" if credential.trusted else "on no list of C2PA"
        head = f"manifest   signed by the certificate of {credential.issuer}, which is {known}"
        return [head, *lines_of(checked)]

    for line in common.run(work()):
        common.say(line)
    common.say("it holds")
