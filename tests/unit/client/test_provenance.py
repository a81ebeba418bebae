"""C2PA credentials of texts, read back by C2PA's own library."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from piecework.client.provenance import (
    ASSERTION,
    CHAIN_FILE,
    KEY_FILE,
    ProvenanceError,
    SigningKey,
    make_signing_key,
    read_credential,
    signing_key,
    write_credential,
)
from piecework_protocol.evidence.file import evidence_json
from tests.support.protocol.evidence import Story, evidence

TEXT = "Once upon a time — “é” 🙂\nit was."
DOCUMENT = evidence_json(evidence(Story(seed=2**64 - 1)))
NAME = "0x7E04ff75567f3d13Ee812EB68ECD0236161Bf953"
KEYS = {
    "P-256": make_signing_key(ec.generate_private_key(ec.SECP256R1()), NAME),
    "Ed25519": make_signing_key(ed25519.Ed25519PrivateKey.generate(), NAME),
}
MADE = write_credential(TEXT, DOCUMENT, KEYS["P-256"])


@pytest.mark.parametrize("kind", KEYS)
def test_a_credential_gives_the_evidence_back(kind: str) -> None:
    manifest = write_credential(TEXT, DOCUMENT, KEYS[kind])
    credential = read_credential(TEXT.encode(), manifest)
    assert credential.document == DOCUMENT
    assert (credential.issuer, credential.trusted) == (NAME, False)


def test_the_library_of_c2pa_reads_it_without_us() -> None:
    reader = c2pa.Reader("text/plain", io.BytesIO(TEXT.encode()), MADE)
    assert reader.get_validation_state() == "Valid"
    manifest: Any = reader.get_active_manifest()
    [own] = [one for one in manifest["assertions"] if one["label"] == ASSERTION]
    assert json.loads(own["data"]["document"]) == DOCUMENT
    [actions] = [one for one in manifest["assertions"] if one["label"].startswith("c2pa.actions")]
    [action] = actions["data"]["actions"]
    assert action["digitalSourceType"].endswith("trainedAlgorithmicMedia")


@given(st.integers(0, len(TEXT) - 1), st.characters(exclude_categories=["Cs"]))
@settings(deadline=None, max_examples=30)
def test_one_changed_character_is_refused(at: int, character: str) -> None:
    changed = TEXT[:at] + character + TEXT[at + 1 :]
    if changed == TEXT:
        return
    with pytest.raises(ProvenanceError, match=r"assertion.dataHash.mismatch"):
        read_credential(changed.encode(), MADE)


def test_a_text_that_was_cut_or_went_on_is_refused() -> None:
    for changed in (TEXT[:-1], TEXT + " ", ""):
        with pytest.raises(ProvenanceError):
            read_credential(changed.encode(), MADE)


def test_a_changed_evidence_in_a_manifest_is_refused() -> None:
    where = MADE.index(b"piecework-evidence")
    changed = MADE[:where] + b"q" + MADE[where + 1 :]
    with pytest.raises(ProvenanceError, match="assertion"):
        read_credential(TEXT.encode(), changed)


@pytest.mark.parametrize("manifest", [b"", b"no manifest", MADE[:200]])
def test_what_is_no_manifest_is_refused(manifest: bytes) -> None:
    with pytest.raises(ProvenanceError):
        read_credential(TEXT.encode(), manifest)


def test_a_gateway_makes_its_certificate_once_and_keeps_the_key_to_itself(tmp_path: Path) -> None:
    folder = tmp_path / "provenance"
    first = signing_key(folder, NAME)
    assert signing_key(folder, "another name") == first
    assert (folder / KEY_FILE).stat().st_mode & 0o077 == 0
    own = x509.load_pem_x509_certificates((folder / CHAIN_FILE).read_bytes())[0]
    assert own.not_valid_after_utc > datetime.now(UTC) + timedelta(days=365)


def test_other_keys_than_those_of_c2pa_here_are_refused() -> None:
    other = make_signing_key(ec.generate_private_key(ec.SECP384R1()), NAME)
    with pytest.raises(ProvenanceError, match="Ed25519 or P-256"):
        write_credential(TEXT, DOCUMENT, other)
    mixed = SigningKey(KEYS["P-256"].chain, KEYS["Ed25519"].key)
    with pytest.raises(ProvenanceError, match="not that of the certificate"):
        write_credential(TEXT, DOCUMENT, mixed)
    with pytest.raises(ProvenanceError, match="not PEM"):
        write_credential(TEXT, DOCUMENT, SigningKey(b"", b"x"))
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    with pytest.raises(ProvenanceError, match="not PEM"):
        write_credential(TEXT, DOCUMENT, SigningKey(KEYS["P-256"].chain, locked))
