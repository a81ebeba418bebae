"""Keys at rest: they open with what they should, and with nothing else."""

from __future__ import annotations

import stat
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509

from piecework.base.files import FileError, write_private
from piecework_node.errors import KeyFileError
from piecework_node.journal.records import SealingKeyAdded, SealingKeyDropped, StoredSealingKey
from piecework_node.keys.operator import (
    create_keystore,
    is_record,
    keystore_address,
    load_operator,
    write_record,
)
from piecework_node.keys.sealing import (
    KEY_ARRIVAL_S,
    SealingKeys,
    WrappingSecrets,
    open_wrapping_secret,
)
from piecework_node.keys.tls import create_tls, load_tls
from piecework_protocol.errors import MalformedInput
from piecework_protocol.relaying import server_name
from piecework_protocol.sealing import seal
from piecework_protocol.types import Address, Timestamp
from tests.support.node.harness import OPERATOR

NOW = Timestamp(1_700_000_000)


def entropy(seed: int):  # type: ignore[no-untyped-def]
    state = [seed]

    def draw(count: int) -> bytes:
        state[0] += 1
        return sha256(str(state[0]).encode()).digest()[:count]

    return draw


def stored(added: SealingKeyAdded) -> StoredSealingKey:
    return StoredSealingKey(added.public, added.wrapped, added.created_at)


def first_key(seed: int = 0) -> tuple[SealingKeys, StoredSealingKey]:
    keys, added = SealingKeys(()).rotated(NOW, OPERATOR.secret, entropy(seed))
    return keys, stored(added)


def renewed(
    keys: SealingKeys, now: int, seed: int, evidence_s: int = 0
) -> tuple[SealingKeys, tuple[SealingKeyAdded | SealingKeyDropped, ...]]:
    """Add a key, and let go of those that are of no use any more."""
    every, added = keys.rotated(Timestamp(now), OPERATOR.secret, entropy(seed))
    kept, dropped = every.without_old(Timestamp(now), evidence_s)
    return kept, (added, *dropped)


def test_a_sealing_key_comes_back_from_the_journal() -> None:
    keys, row = first_key()
    assert keys.current is not None
    loaded = SealingKeys.load((row,), WrappingSecrets(OPERATOR.secret))
    assert loaded == keys
    assert loaded.open(seal(b"text", keys.current, b"context"), b"context") == b"text"


def test_a_sealing_key_is_not_in_the_journal_in_the_clear() -> None:
    keys, row = first_key()
    assert keys.secrets[0][1] not in row.wrapped


@pytest.mark.parametrize("what", ["secret", "public", "wrapped"])
def test_a_wrapped_key_opens_with_nothing_else(what: str) -> None:
    _, row = first_key()
    other, _ = first_key(99)
    secret = bytes([1]) * 32 if what == "secret" else OPERATOR.secret
    if what == "public" and other.current is not None:
        row = replace(row, public=other.current)
    if what == "wrapped":
        row = replace(row, wrapped=row.wrapped[:-1] + bytes([row.wrapped[-1] ^ 1]))
    with pytest.raises(KeyFileError):
        SealingKeys.load((row,), WrappingSecrets(secret))


def test_a_replaced_key_still_opens_until_nothing_can_arrive_for_it() -> None:
    old, _ = first_key()
    assert old.current is not None
    sealed = seal(b"text", old.current, b"context")
    later = Timestamp(NOW + 3600)
    keys, _ = renewed(old, later, 5)
    assert keys.current != old.current
    assert keys.open(sealed, b"context") == b"text"
    still, records = renewed(keys, later + KEY_ARRIVAL_S - 1, 9)
    assert len(records) == 1
    assert still.open(sealed, b"context") == b"text"
    gone, records = renewed(still, later + KEY_ARRIVAL_S, 13)
    assert SealingKeyDropped(old.current) in records
    with pytest.raises(MalformedInput):
        gone.open(sealed, b"context")


def test_a_replaced_key_stays_for_as_long_as_its_jobs_can_be_audited() -> None:
    old, _ = first_key()
    assert old.current is not None
    sealed, later = seal(b"text", old.current, b"context"), Timestamp(NOW + 3600)
    keys, _ = renewed(old, later, 5, 500)
    end = later + KEY_ARRIVAL_S + 500
    still, _ = renewed(keys, end - 1, 9, 500)
    assert still.open(sealed, b"context") == b"text"
    gone, _ = renewed(still, end, 13, 500)
    with pytest.raises(MalformedInput):
        gone.open(sealed, b"context")


def test_rotation_is_due_by_age() -> None:
    keys, _ = first_key()
    assert SealingKeys(()).rotation_due(NOW, 600)
    assert not keys.rotation_due(Timestamp(NOW + 599), 600)
    assert keys.rotation_due(Timestamp(NOW + 600), 600)


def test_a_key_of_an_earlier_release_moves_from_the_operator_key_to_the_own_secret() -> None:
    old, row = first_key()
    keys, newest = old.rotated(Timestamp(NOW + 60), OPERATOR.secret, entropy(5))
    rows, own = (stored(newest), row), b"\7" * 32
    loaded = SealingKeys.load(rows, WrappingSecrets(own, OPERATOR.secret))
    assert loaded == keys
    moved = loaded.moved(rows, own, entropy(9))
    added = [stored(r) for r in moved if isinstance(r, SealingKeyAdded)]
    assert [r.public for r in added] == [row.public, rows[0].public]
    after = tuple(reversed(added))
    assert SealingKeys.load(after, WrappingSecrets(own)) == keys
    assert loaded.moved(after, own, entropy(20)) == ()
    with pytest.raises(KeyFileError, match=r"sealing\.json"):
        SealingKeys.load(rows, WrappingSecrets(own))


def test_the_wrapping_secret_is_made_once_and_opens_with_the_password_alone(tmp_path: Path) -> None:
    path = tmp_path / "sealing.json"
    made = open_wrapping_secret(path, "password", iterations=2)
    assert open_wrapping_secret(path, "password") == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(KeyFileError, match="password"):
        open_wrapping_secret(path, "other")


def test_a_record_names_an_operator_and_opens_no_key(tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    write_record(path, OPERATOR.address)
    assert is_record(path)
    assert bytes.fromhex(keystore_address(path)) == OPERATOR.address
    with pytest.raises(KeyFileError, match="in a signer"):
        load_operator(path, "password")


def test_the_operator_key_opens_with_its_password_alone(tmp_path: Path) -> None:
    path = tmp_path / "operator.json"
    create_keystore(path, "password", OPERATOR.secret, iterations=2)
    assert load_operator(path, "password").address == OPERATOR.address
    assert bytes.fromhex(keystore_address(path)) == OPERATOR.address
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(KeyFileError, match="password"):
        load_operator(path, "other")
    with pytest.raises(KeyFileError, match="worker init"):
        load_operator(tmp_path / "none.json", "password")


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"1")
    with pytest.raises(FileError, match="not overwritten"):
        write_private(tmp_path / "key", b"2")
    assert (tmp_path / "key").read_bytes() == b"1"


def test_the_certificate_is_pinned_by_the_digest_of_its_der_form(tmp_path: Path) -> None:
    certificate, key = create_tls(OPERATOR.address, NOW)
    (tmp_path / "tls.pem").write_bytes(certificate)
    (tmp_path / "tls.key").write_bytes(key)
    loaded = load_tls(tmp_path / "tls.pem", tmp_path / "tls.key", OPERATOR.address)
    parsed = x509.load_pem_x509_certificate(certificate)
    from cryptography.hazmat.primitives.serialization import Encoding

    assert loaded.digest == sha256(parsed.public_bytes(Encoding.DER)).digest()
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [server_name(OPERATOR.address)]
    with pytest.raises(KeyFileError, match="does not name this operator"):
        load_tls(tmp_path / "tls.pem", tmp_path / "tls.key", Address(bytes(20)))
    with pytest.raises(KeyFileError, match="worker init"):
        load_tls(tmp_path / "none.pem", tmp_path / "tls.key", OPERATOR.address)


@pytest.mark.parametrize("folder", ["none", "file"])
def test_a_home_without_keys_gets_lines_without_error_numbers(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    key = tmp_path / folder / "operator.json"
    for use in (
        lambda: load_operator(key, "password"),
        lambda: keystore_address(key),
        lambda: load_tls(
            tmp_path / folder / "tls.pem", tmp_path / folder / "tls.key", OPERATOR.address
        ),
    ):
        with pytest.raises(KeyFileError) as caught:
            use()
        line = str(caught.value)
        assert "Errno" not in line
        assert line.count(str(tmp_path)) == 1
        assert line.endswith("init` first." if folder == "none" else ": not a directory")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 1000])
def test_a_damaged_keystore_is_one_line(tmp_path: Path, content: bytes) -> None:
    key = tmp_path / "operator.json"
    key.write_bytes(content)
    with pytest.raises(KeyFileError):
        keystore_address(key)
    with pytest.raises(KeyFileError):
        load_operator(key, "password")
