"""The signer's process: answers questions over a unix socket, within a policy and daily limits.

It has no network and asks no chain. Whoever may open the socket and has an allowed user id gets
what the policy allows, up to the limits of the day.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from piecework.base.clock import Clock
from piecework.base.errors import PieceworkError
from piecework.base.files import shown
from piecework.base.text import one_line
from piecework.chain.sending.rawtx import UnsignedTransaction
from piecework.signer.book import BookError, LimitBook
from piecework.signer.limits import (
    FRAME_S,
    IDLE_S,
    MAX_CLIENTS,
    MAX_FRAME_BYTES,
    MAX_GROUP,
    MAX_SOCKET_PATH_BYTES,
)
from piecework.signer.policy import (
    KIND,
    KINDS,
    MALFORMED,
    NotSigned,
    Pins,
    Use,
    judge_transaction,
    judge_typed,
)
from piecework.signer.record import SignatureLog
from piecework.signer.statements import SignedStatements
from piecework.signer.wire import (
    VERSION,
    asked_domain,
    asked_payload,
    frame,
    read_frame,
)
from piecework_protocol.errors import EvidenceRefused, MalformedInput
from piecework_protocol.evidence.members import of_names, taken
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Signature, address_hex, keccak256, to_hex

_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred: process, user and group."""
_MAX_WHY: Final = 300
OWNER_ONLY: Final = 0o600
OWNER_AND_GROUP: Final = 0o660
METHOD: Final = "method"
BUSY: Final = "busy"
USER: Final = "user"
JOURNAL: Final = "journal"


class CannotServe(PieceworkError):
    """The socket cannot be made. The text says why."""


def require_linux(platform: str) -> None:
    """Refuse another system. platform: `sys.platform` there.

    Raises:
        CannotServe: it is one.
    """
    if platform != "linux":
        raise CannotServe("only Linux says which user is at the other end of a socket")


class SignerServer:
    """One signer. `start` listens and `close` ends everything."""

    def __init__(
        self,
        key: LocalSigner,
        pins: Pins,
        book: LimitBook,
        statements: SignedStatements,
        record: SignatureLog,
        *,
        users: frozenset[int],
        clock: Clock,
        log: Any,
    ) -> None:
        """users: ids that may ask. The system says whose a connection is."""
        self._key, self._pins, self._book, self._record = key, pins, book, record
        self._statements = statements
        self._users, self._clock, self._log = users, clock, log
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._path: Path | None = None

    async def start(self, path: Path, *, group: str = "") -> None:
        """Listen at `path`. A socket that nobody listens at any more is replaced.

        The socket is its owner's alone, or that of a group as well.

        Raises:
            CannotServe: the path is too long or in use, its folder cannot be written, or this is
                not Linux.
        """
        require_linux(sys.platform)
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise CannotServe(f"the path of a socket has at most {MAX_SOCKET_PATH_BYTES} bytes")
        listening = await asyncio.to_thread(_bind, path, group)
        self._path = path
        self._server = await asyncio.start_unix_server(
            self._connected, sock=listening, limit=MAX_FRAME_BYTES
        )

    async def close(self) -> None:
        """Answer nobody any more, and remove the socket."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._clients)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._live(reader, writer), name="signer client")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _live(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (TimeoutError, OSError):
            writer.transport.abort()  # it left, is idle, or does not read
        except MalformedInput as error:
            self._log.warning("malformed", reason=str(error))
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer, user = _peer(writer.get_extra_info("socket"))
        if user not in self._users:
            self._log.warning("refused", refusal=USER, user=user)
            why = f"user {user} is not among users of signer.toml"
            await _send(writer, {"refused": USER, "why": why})
            return
        if len(self._clients) > MAX_CLIENTS:
            await _send(writer, {"refused": BUSY, "why": f"{MAX_CLIENTS} connections are open"})
            return
        while True:
            question = await read_frame(reader, IDLE_S)
            if question is None:
                return
            await _send(writer, self._answer(question, peer))

    def _answer(self, question: Mapping[str, Any], peer: int) -> Mapping[str, Any]:
        try:
            return self._sign(question, peer)
        except NotSigned as error:
            refusal, why = error.refusal, str(error)
        except (MalformedInput, EvidenceRefused) as error:
            refusal, why = MALFORMED, str(error)
        except (BookError, OSError) as error:
            refusal, why = JOURNAL, str(error)
        why = one_line(why, _MAX_WHY)
        self._log.warning("refused", refusal=refusal, why=why)
        return {"refused": refusal, "why": why}

    def _sign(self, question: Mapping[str, Any], peer: int) -> Mapping[str, Any]:
        method = question.get("method")
        if method == "hello":
            return self._hello()
        if method == "typed":
            given = of_names(question, "question", "method", "domain", "kind", "message")
            kind = given["kind"]
            cls = KINDS.get(kind) if isinstance(kind, str) else None
            if cls is None:
                raise NotSigned(KIND, "objects of that kind are not signed")
            domain = asked_domain(given["domain"])
            message = taken(cls, given["message"], kind)
            use, digest = judge_typed(self._pins, domain, message), domain.digest(message)
            self._statements.require_consistent(message, digest)
            self._count(use, digest, peer)
            self._statements.remember(message, digest, int(self._clock.wall()))
            return _signed(self._key.sign_typed(domain, message))
        if method == "transaction":
            given = of_names(question, "question", "method", "payload")
            payload = asked_payload(given["payload"])
            tx = UnsignedTransaction.from_payload(payload)
            use = judge_transaction(self._pins, tx)
            self._count(use, keccak256(payload), peer)
            return _signed(self._key.sign_transaction(tx))
        raise NotSigned(METHOD, "a signer knows hello, typed and transaction. It signs no digest")

    def _count(self, use: Use, digest: bytes, peer: int) -> None:
        """Count what is about to be signed, and write it down."""
        now = int(self._clock.wall())
        self._book.take(now, use)
        entry: dict[str, Any] = {"at": now, "what": use.what, "digest": to_hex(digest)}
        if use.wei or use.tokens:
            entry |= {"wei": str(use.wei), "tokens": str(use.tokens)}
        self._record.add({**entry, "process": peer})

    def _hello(self) -> Mapping[str, Any]:
        left, deployment = self._book.left(int(self._clock.wall())), self._pins.deployment
        return {
            "version": VERSION,
            "address": address_hex(self._key.address),
            "chain_id": deployment.chain_id,
            "escrow": address_hex(deployment.escrow),
            "registry": address_hex(deployment.registry),
            "last_offer": self._statements.last_offer,
            "left": {
                "signatures": left.signatures,
                "wei": str(left.wei),
                "tokens": str(left.tokens),
                "renews_at": left.renews_at,
            },
        }


def _signed(signature: Signature) -> Mapping[str, Any]:
    return {"signature": "0x" + signature.hex()}


async def _send(writer: asyncio.StreamWriter, body: Mapping[str, Any]) -> None:
    writer.write(frame(body))
    async with asyncio.timeout(FRAME_S):
        await writer.drain()


def _peer(sock: Any) -> tuple[int, int]:
    """Return the process and the user at the other end, as the kernel knows them."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(raw)
    return int(process), int(user)


def _bind(path: Path, group: str) -> socket.socket:
    """Bind a socket that nobody else can connect to before it has its mode."""
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listening.fileno(), OWNER_ONLY)  # Linux gives the file the mode of its socket
        listening.bind(str(path))
        path.chmod(OWNER_ONLY)
        if group:
            shutil.chown(path, group=_group(group))
            path.chmod(OWNER_AND_GROUP)
        return listening
    except (OSError, LookupError) as error:
        if listening.getsockname():
            path.unlink(missing_ok=True)
        listening.close()
        why = getattr(error, "strerror", None) or str(error)
        raise CannotServe(f"{shown(path)}: {why}") from None


def _group(text: str) -> int | str:
    """The number of a group, or its name. A container often has no names.

    Raises:
        LookupError: it is a number that no group has. The highest one means "leave it as it is".
    """
    if not (text.isascii() and text.isdecimal()):
        return text
    if len(text) > len(str(MAX_GROUP)) or int(text) > MAX_GROUP:
        raise LookupError(f"no group has a number above {MAX_GROUP}")
    return int(text)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a signer that was killed.

    Raises:
        CannotServe: it is another kind of file, or somebody listens there.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise CannotServe(f"{shown(path)} is not a socket")
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotServe(f"{shown(path)}: {error.strerror or error}") from None
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(FRAME_S)
    try:
        probe.connect(str(path))
    except ConnectionRefusedError:
        with suppress(OSError):
            path.unlink()
        return
    except OSError as error:
        raise CannotServe(f"{shown(path)}: {error.strerror or error}") from None
    finally:
        probe.close()
    raise CannotServe(f"another signer listens at {shown(path)}")
