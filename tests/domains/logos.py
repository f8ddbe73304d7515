"""Logos and mark certificates to test with: good ones, and parts to make bad ones of."""

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.certificates import Certificate

BIMI_EKU = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.31")
LOGOTYPE = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.12")

TITLE = "<title>Acme &amp; Söhne</title>"
SHAPES = """
  <defs>
    <linearGradient id="sky"><stop offset="0" stop-color="#036"/><stop offset="1" stop-color="#9cf"/></linearGradient>
    <circle id="dot" r="5"/>
  </defs>
  <rect width="100" height="100" fill="url(#sky)"/>
  <g fill="white"><use xlink:href="#dot" x="20" y="20"/><path d="M10 10 L90 90 Z"/><text x="5" y="50">A</text></g>
"""


def svg(
    inside: str = TITLE + SHAPES, *, before: str = '<?xml version="1.0" encoding="UTF-8"?>\n', **attributes: str | None
) -> bytes:
    """A logo; attributes replace those of the root (`viewBox="0 0 1 1"`), None takes one away."""
    root: dict[str, str | None] = {
        "xmlns": "http://www.w3.org/2000/svg",
        "xmlns:xlink": "http://www.w3.org/1999/xlink",
        "version": "1.2",
        "baseProfile": "tiny-ps",
        "viewBox": "0 0 100 100",
        **attributes,
    }
    shown = " ".join(f'{name}="{value}"' for name, value in root.items() if value is not None)
    return f"{before}<svg {shown}>{inside}</svg>\n".encode()


def mark_certificate(
    authority: Certificate,
    *names: str,
    eku: bool = True,
    logotype: bool = True,
    days: tuple[int, int] = (-1, 30),
    with_issuer: bool = True,
    extensions: Sequence[x509.ExtensionType] = (),
) -> bytes:
    """A VMC for these names, valid from and until so many days from now, in PEM."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme")]))
        .issuer_name(authority.certificate.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    purpose = BIMI_EKU if eku else x509.oid.ExtendedKeyUsageOID.SERVER_AUTH
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if logotype:
        builder = builder.add_extension(x509.UnrecognizedExtension(LOGOTYPE, b"\x30\x00"), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    pem = builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return pem + authority.pem if with_issuer else pem
