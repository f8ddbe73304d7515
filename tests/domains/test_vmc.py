"""Mark certificates: what is one for the domain, and what is not."""

import base64
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from app.domains import vmc
from tests.certificates import Certificate, make_authority
from tests.domains.logos import mark_certificate


@pytest.fixture(scope="module")
def authority() -> Certificate:
    return make_authority()


@pytest.mark.parametrize(
    "name", ["mail.example.com", "example.com", "Example.COM", "v1._bimi.mail.example.com", "v1._bimi.example.com"]
)
def test_names_that_stand_for_the_domain(authority: Certificate, name: str) -> None:
    found = vmc.check(mark_certificate(authority, "other.example", name), domain="mail.example.com", selector="v1")
    assert (found.subject, found.warnings) == ("O=Acme", ())


@pytest.mark.parametrize(
    "names",
    [(), ("other.example",), ("com",), ("www.mail.example.com",), ("ple.com",), ("default._bimi.example.com",), ("*",)],
)
def test_names_that_do_not(authority: Certificate, names: tuple[str, ...]) -> None:
    with pytest.raises(vmc.VmcError, match=r"not for mail\.example\.com"):
        vmc.check(mark_certificate(authority, *names), domain="mail.example.com", selector="v1")


@pytest.mark.parametrize(("days", "sentence"), [((-30, -1), "has expired"), ((1, 30), "not valid before")])
def test_validity(authority: Certificate, days: tuple[int, int], sentence: str) -> None:
    with pytest.raises(vmc.VmcError, match=sentence):
        vmc.check(mark_certificate(authority, "example.com", days=days), domain="example.com", selector="default")


def test_it_has_to_be_a_mark_certificate(authority: Certificate) -> None:
    neither = mark_certificate(authority, "example.com", eku=False, logotype=False)
    with pytest.raises(vmc.VmcError, match="not a mark certificate"):
        vmc.check(neither, domain="example.com", selector="default")
    for lacking, sentence in (("eku", "key usage"), ("logotype", "no logotype"), ("with_issuer", "only the mark")):
        pem = mark_certificate(authority, "example.com", **{lacking: False})
        (warning,) = vmc.check(pem, domain="example.com", selector="default").warnings
        assert sentence in warning


def test_the_chain_has_to_be_one(authority: Certificate) -> None:
    pem = mark_certificate(authority, "example.com", with_issuer=False)
    with pytest.raises(vmc.VmcError, match="each issued by the one after it"):
        vmc.check(pem + make_authority().pem, domain="example.com", selector="default")
    with pytest.raises(vmc.VmcError, match="more than 10"):
        vmc.check(pem + authority.pem * 20, domain="example.com", selector="default")


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"hello",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n" * 5000,
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"\x30\x82\xff\xff" * 1000,
    ],
)
def test_what_is_no_certificate(pem: bytes) -> None:
    with pytest.raises(vmc.VmcError, match="no certificate in PEM"):
        vmc.check(pem, domain="example.com", selector="default")


def test_extensions_that_cannot_be_read(authority: Certificate) -> None:
    broken = x509.UnrecognizedExtension(x509.oid.ExtensionOID.AUTHORITY_KEY_IDENTIFIER, b"\xff\xff")
    pem = mark_certificate(authority, "example.com", extensions=[broken])
    with pytest.raises(vmc.VmcError, match="no certificate in PEM"):
        vmc.check(pem, domain="example.com", selector="default")


def test_damaged_certificates_are_refused_or_read(authority: Certificate) -> None:
    """Whatever an octet is changed to."""
    whole = x509.load_pem_x509_certificate(mark_certificate(authority, "example.com", with_issuer=False))
    der = whole.public_bytes(serialization.Encoding.DER)
    dice = random.Random(7)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(der)
        for _ in range(dice.randint(1, 3)):
            damaged[dice.randrange(len(der))] = dice.randrange(256)
        body = base64.encodebytes(bytes(damaged))
        pem = b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"
        try:
            vmc.check(pem + authority.pem, domain="example.com", selector="default")
        except vmc.VmcError:
            refused += 1
    assert refused > 1400
