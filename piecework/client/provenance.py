"""C2PA credentials of answers: a manifest beside a text, with the evidence of its jobs in it.

The manifest is signed by a certificate of the gateway's own. It binds the text by its hash, and has
the saved answer or evidence file as an assertion. So a reader of C2PA sees that the text is as it
was, and `piecework verify-reply` judges what is in it. Plain text has no place for a manifest, so
it is a file of its own, as C2PA has it for such formats.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from piecework import __version__
from piecework.base.errors import PieceworkError
from piecework.base.files import read, write_private, write_public
from piecework.base.jsons import loads

TEXT_TYPE: Final = "text/plain"
ASSERTION: Final = "org.piecework.evidence"
SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CHAIN_FILE: Final = "certificate.pem"
KEY_FILE: Final = "key.pem"
MAX_PEM_BYTES: Final = 64 * 1024
MAX_MANIFEST_BYTES: Final = 192 * 1024 * 1024
CERTIFICATE_YEARS: Final = 5
NOT_TRUSTED: Final = "signingCredential.untrusted"
"""C2PA's word for a certificate that no list of its names. That of a gateway is on none."""
_SETTINGS: Final = {
    # A manifest of a stranger must not make this machine call anybody.
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
}

Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


class ProvenanceError(PieceworkError):
    """A credential cannot be made, or does not hold. The text says why."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A certificate chain, its own certificate first, and the key of that. Both are PEM."""

    chain: bytes
    key: bytes

    @property
    def algorithm(self) -> c2pa.C2paSigningAlg:
        """What the key signs with: Ed25519, or ECDSA on P-256.

        Raises:
            ProvenanceError: It is another key, or not the certificate's.
        """
        try:
            key = serialization.load_pem_private_key(self.key, None)
            certificate = x509.load_pem_x509_certificates(self.chain)[0]
        except (ValueError, TypeError) as error:
            raise ProvenanceError(f"the key or the certificate is not PEM: {error}") from None
        if key.public_key() != certificate.public_key():
            raise ProvenanceError("the key is not that of the certificate")
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return c2pa.C2paSigningAlg.ED25519
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return c2pa.C2paSigningAlg.ES256
        raise ProvenanceError("the key of a certificate is Ed25519 or P-256")


@dataclass(frozen=True, slots=True)
class Credential:
    """What a manifest says that holds.

    Attributes:
        document: The saved answer or evidence file in it, not checked yet.
        issuer: The name in the certificate.
        trusted: Whether C2PA's reader knows the certificate's issuer.
    """

    document: Any
    issuer: str
    trusted: bool


def signing_key(folder: Path, name: str) -> SigningKey:
    """Return the key in a folder. Make one on P-256 if there is none.

    `name` stands in the certificate, such as the payer's address.

    Raises:
        FileError: The folder cannot be read or written.
    """
    chain, key = folder / CHAIN_FILE, folder / KEY_FILE
    if not key.exists():
        made = make_signing_key(ec.generate_private_key(ec.SECP256R1()), name)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_public(chain, made.chain)
        write_private(key, made.key)
    return SigningKey(read(chain, MAX_PEM_BYTES), read(key, MAX_PEM_BYTES))


def make_signing_key(key: Key, name: str) -> SigningKey:
    """Make a certificate for a key, and the authority that signs it and is thrown away.

    C2PA takes no certificate that signs itself.
    """
    authority: Key = (
        ed25519.Ed25519PrivateKey.generate()
        if isinstance(key, ed25519.Ed25519PrivateKey)
        else ec.generate_private_key(ec.SECP256R1())
    )
    root_name, own_name = _named(f"{name} root"), _named(name)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    root = (
        _certificate(root_name, root_name, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(authority, _digest_of(authority))
    )
    own_usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    own = (
        _certificate(own_name, root_name, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(own_usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
        )
        .add_extension(issuer, critical=False)
        .sign(authority, _digest_of(authority))
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return SigningKey(own.public_bytes(pem) + root.public_bytes(pem), secret)


def _named(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Piecework gateway"),
            x509.NameAttribute(NameOID.COMMON_NAME, name[:64]),
        ]
    )


def _certificate(subject: x509.Name, issuer: x509.Name, key: Key) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365 * CERTIFICATE_YEARS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _digest_of(key: Key) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def write_credential(text: str, document: Any, key: SigningKey) -> bytes:
    """Make the manifest of a text. `document` is the answer or evidence file that it came from.

    Raises:
        ProvenanceError: The key cannot be used, or the text is empty.
    """
    manifest = {
        "claim_generator_info": [{"name": "piecework", "version": __version__}],
        "format": TEXT_TYPE,
        "assertions": [
            {
                "label": "c2pa.actions",
                "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]},
            },
            # As text, so that no reader of JSON changes a number in it.
            {"label": ASSERTION, "data": {"document": json.dumps(document)}},
        ],
    }
    info = c2pa.C2paSignerInfo(
        alg=key.algorithm, sign_cert=key.chain, private_key=key.key, ta_url=None
    )
    try:
        builder = c2pa.Builder.from_json(json.dumps(manifest))
        builder.set_no_embed()
        signer = c2pa.Signer.from_info(info)
        return bytes(builder.sign(signer, TEXT_TYPE, io.BytesIO(text.encode()), io.BytesIO()))
    except c2pa.C2paError as error:
        raise ProvenanceError(f"the credential cannot be made: {error}") from None


def read_credential(text: bytes, manifest: bytes) -> Credential:
    """Check a text against its manifest, and return what the manifest says.

    Raises:
        ProvenanceError: The manifest is damaged, or the text is another.
    """
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(_SETTINGS))
        reader = c2pa.Reader(TEXT_TYPE, io.BytesIO(text), manifest, context=context)
        found, results = reader.get_active_manifest(), reader.get_validation_results()
    except c2pa.C2paError as error:
        raise ProvenanceError(f"the manifest cannot be read: {error}") from None
    failures = _failures(results)
    wrong = [code for code in failures if code != NOT_TRUSTED]
    if wrong or found is None:
        raise ProvenanceError(f"the text or its manifest was changed: {', '.join(wrong)}")
    document = _assertion(found)
    issuer = str((found.get("signature_info") or {}).get("common_name", ""))
    return Credential(document, issuer, NOT_TRUSTED not in failures)


def _failures(results: Mapping[str, Any] | None) -> list[str]:
    """The codes of all that does not hold. Without results nothing was checked."""
    active = (results or {}).get("activeManifest")
    if not isinstance(active, dict) or not active.get("success"):
        raise ProvenanceError("the manifest has no active part that could be checked")
    return [str(one.get("code")) for one in active.get("failure", [])]


def _assertion(manifest: Mapping[str, Any]) -> Any:
    for one in manifest.get("assertions", []):
        if one.get("label") == ASSERTION:
            document = one.get("data", {}).get("document")
            try:
                return loads(document, unique=True)
            except (ValueError, TypeError, AttributeError):
                break
    raise ProvenanceError(f"the manifest has no assertion {ASSERTION} that can be read")
