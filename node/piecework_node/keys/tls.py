"""The worker's TLS certificate. It is self-signed: clients pin its digest, which offers carry."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from piecework.base.files import FileError, read, shown
from piecework_node.errors import KeyFileError
from piecework_protocol.relaying import server_name
from piecework_protocol.types import Address, Digest, Timestamp

COMMON_NAME: Final = "piecework-worker"
"""The subject of every worker's certificate. What clients trust is the certificate's digest."""
MAX_PEM_BYTES: Final = 256 * 1024
TLS_LIFETIME_DAYS: Final = 3650
"""`worker init` replaces a lost certificate. The digest in the offer binds it, not this date."""


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A certificate with its key, both PEM. `digest` is SHA-256 over the certificate's DER form."""

    certificate: bytes
    key: bytes
    digest: Digest


def create_tls(operator: Address, now: Timestamp) -> tuple[bytes, bytes]:
    """Make a P-256 key with its self-signed certificate. Return (certificate PEM, key PEM).

    The certificate is for the operator's server name, by which relays find the worker.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, COMMON_NAME)])
    start = datetime.datetime.fromtimestamp(now, datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=TLS_LIFETIME_DAYS))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(server_name(operator))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def load_tls(certificate: Path, key: Path, operator: Address) -> TlsIdentity:
    """Read both files and take the certificate's digest.

    Raises:
        KeyFileError: a file is missing or unusable, or the certificate is another operator's.
    """
    try:
        pem, secret = read(certificate, MAX_PEM_BYTES), read(key, MAX_PEM_BYTES)
        loaded = x509.load_pem_x509_certificate(pem)
        serialization.load_pem_private_key(secret, password=None)
    except FileError as error:
        hint = ""
        if isinstance(error.__cause__, FileNotFoundError):
            hint = ". Run `piecework worker init` first."
        raise KeyFileError(f"{error}{hint}") from None
    except (ValueError, TypeError):
        raise KeyFileError(
            f"{shown(certificate)} or {shown(key)} is damaged. Remove both and run "
            "`piecework worker init` again."
        ) from None
    if server_name(operator) not in _names(loaded):
        raise KeyFileError(
            f"{shown(certificate)} does not name this operator. Remove it and {shown(key)}, and "
            "run `piecework worker init` again."
        )
    der = loaded.public_bytes(serialization.Encoding.DER)
    return TlsIdentity(pem, secret, Digest(sha256(der).digest()))


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.value.get_values_for_type(x509.DNSName)
