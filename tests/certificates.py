"""A tiny certificate authority for the tests' TLS servers."""

import datetime
import ipaddress
import os
import ssl
import tempfile
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its key, PEM; for an authority, `issue` makes more of them.

    chain: certificates that a server sends after its own.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple["Certificate", ...] = ()

    @property
    def pem(self) -> bytes:
        """The certificate alone: what a client trusts."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def public_key_der(self) -> bytes:
        """SubjectPublicKeyInfo."""
        return self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def issue(self, *names: str, expired: bool = False) -> "Certificate":
        """A server certificate for these host names or IP addresses, signed by this authority."""
        return _make(names, signer=self, expired=expired)

    def issue_authority(self, name: str, *, expired: bool = False) -> "Certificate":
        """An authority below this one."""
        return _make((name,), signer=self, authority=True, expired=expired)

    def sent_with(self, *others: "Certificate") -> "Certificate":
        """The same, sent by servers with these certificates after it."""
        return replace(self, chain=others)

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # ssl reads certificates from files only.
        descriptor, path = tempfile.mkstemp(suffix=".pem")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(b"".join((self.pem, *(other.pem for other in self.chain), self.key_pem)))
            context.load_cert_chain(path)
        finally:
            os.unlink(path)
        return context

    def client_context(self) -> ssl.SSLContext:
        """A context that trusts this certificate and checks host names."""
        return ssl.create_default_context(cadata=self.pem.decode())


def make_authority() -> Certificate:
    """A new certificate authority."""
    return _make(("Test authority",), authority=True)


def self_signed(*names: str, expired: bool = False) -> Certificate:
    """A server certificate that nobody vouches for."""
    return _make(names, expired=expired)


def _make(
    names: tuple[str, ...], *, signer: Certificate | None = None, authority: bool = False, expired: bool = False
) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.certificate.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * VALID)
        .not_valid_after(now - VALID if expired else now + VALID)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return Certificate(builder.sign(signer.key if signer else key, hashes.SHA256()), key)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
