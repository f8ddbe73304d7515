"""DANE for SMTP: whether a host's certificate is one that its TLSA records vouch for (RFC 7672, 7671, 6698).

The records have to come from an answer that DNSSEC has validated; whoever calls sees to that. Chains are
verified by `cryptography.x509.verification`: Python's ssl takes its trust anchors before the handshake, while
with DANE-TA the anchor is a certificate that the host itself sends. That the host holds the certificate's key
is what the handshake proves, whatever the context verifies.
"""

import binascii
import datetime
import hashlib
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

MAX_RECORDS = 30
MAX_CHAIN = 10

DANE_TA = 2
DANE_EE = 3

_CERTIFICATE, _PUBLIC_KEY = 0, 1
_FULL, _SHA256, _SHA512 = 0, 1, 2
_DIGESTS: dict[int, Callable[[bytes], Any]] = {_SHA256: hashlib.sha256, _SHA512: hashlib.sha512}
_DER = 2  # _ssl.ENCODING_DER


class Mismatch(ValueError):  # noqa: N818
    """The certificate is none that the TLSA records vouch for; the message says why."""


@dataclass(frozen=True, slots=True)
class Tlsa:
    """One TLSA record (RFC 6698 §2.1): what `data` is, and of what."""

    usage: int
    selector: int
    matching: int
    data: bytes

    @property
    def is_usable(self) -> bool:
        """Whether SMTP can do anything with it: DANE-TA or DANE-EE, and all of it known and whole.

        The usages PKIX-TA(0) and PKIX-EE(1) are not for SMTP (RFC 7672 §3.1.3).
        """
        if self.usage not in (DANE_TA, DANE_EE) or self.selector not in (_CERTIFICATE, _PUBLIC_KEY):
            return False
        if self.matching == _FULL:
            return _loads(self.data) if self.selector == _CERTIFICATE else bool(self.data)
        digest = _DIGESTS.get(self.matching)
        return digest is not None and len(self.data) == digest(b"").digest_size

    def matches(self, certificate: bytes) -> bool:
        """Whether it is this certificate (DER) that the record means."""
        try:
            chosen = certificate if self.selector == _CERTIFICATE else _public_key(certificate)
        except (ValueError, UnsupportedAlgorithm):
            return False
        digest = _DIGESTS.get(self.matching)
        return self.data == (digest(chosen).digest() if digest else chosen)


def parse(text: str) -> Tlsa | None:
    """A record in zone-file form, "3 1 1 0123…"; None when it is none."""
    words = text.split()
    if len(words) < 4 or not all(word.isascii() and word.isdecimal() and len(word) <= 3 for word in words[:3]):
        return None
    try:
        return Tlsa(int(words[0]), int(words[1]), int(words[2]), binascii.unhexlify("".join(words[3:])))
    except binascii.Error:
        return None


def usable(texts: Sequence[str]) -> tuple[Tlsa, ...]:
    """Those records that SMTP can use. Where a key is named by more than one digest only the strongest counts
    (RFC 7671 §9), so that a broken one could be retired.
    """
    records = [record for text in texts[:MAX_RECORDS] if (record := parse(text)) is not None and record.is_usable]
    strong = {(record.usage, record.selector) for record in records if record.matching == _SHA512}
    return tuple(
        record for record in records if record.matching != _SHA256 or (record.usage, record.selector) not in strong
    )


def check(
    chain: Sequence[bytes], records: Sequence[Tlsa], names: Sequence[str], *, now: datetime.datetime | None = None
) -> None:
    """Check a host's certificates, DER, its own first, against usable records. Raises Mismatch.

    DANE-EE names the certificate itself; its names and dates mean nothing then (RFC 7672 §3.1.1). DANE-TA names
    an issuer that the host sends along (or the record holds): the chain up to it must be valid, and the
    certificate be for one of `names` (§3.1.2, §3.2.2).
    """
    if not chain:
        raise Mismatch("the host showed no certificate")
    if any(record.usage == DANE_EE and record.matches(chain[0]) for record in records):
        return
    anchors = _anchors(chain, [record for record in records if record.usage == DANE_TA])
    if not anchors:
        raise Mismatch("no TLSA record matches the certificate")
    _verify(chain[: MAX_CHAIN + 1], anchors, names, now or datetime.datetime.now(datetime.UTC))


def peer_chain(ssl_object: ssl.SSLObject) -> tuple[bytes, ...]:
    """The certificates that the peer sent, DER, its own first and never verified.

    Python has a public getter since 3.13; before, it is the one that the later one calls. uvloop's connections
    carry the same ssl.SSLObject as asyncio's.
    """
    leaf = ssl_object.getpeercert(binary_form=True)
    if not leaf:
        return ()
    public = getattr(ssl_object, "get_unverified_chain", None)
    if public is not None:
        return (leaf, *cast(list[bytes], public())[1:])
    sent = cast(Any, ssl_object)._sslobj.get_unverified_chain() or ()
    return (leaf, *(certificate.public_bytes(_DER) for certificate in sent[1:]))


def _anchors(chain: Sequence[bytes], records: Sequence[Tlsa]) -> list[x509.Certificate]:
    """The issuers that the records vouch for: of those sent, and of those that a record holds in full."""
    found = [sent for sent in chain[1 : MAX_CHAIN + 1] if any(record.matches(sent) for record in records)]
    found += [record.data for record in records if (record.selector, record.matching) == (_CERTIFICATE, _FULL)]
    # The host's own certificate vouches for itself by DANE-EE only.
    return [x509.load_der_x509_certificate(one) for one in dict.fromkeys(found) if one != chain[0]]


def _verify(
    chain: Sequence[bytes], anchors: list[x509.Certificate], names: Sequence[str], now: datetime.datetime
) -> None:
    try:
        leaf, *others = [x509.load_der_x509_certificate(one) for one in chain]
        builder = PolicyBuilder().store(Store(anchors)).time(now).max_chain_depth(MAX_CHAIN)
        builder = builder.extension_policies(ca_policy=_AUTHORITY, ee_policy=_HOST)
    except ValueError as error:
        raise Mismatch(f"a certificate is malformed: {error}") from error
    reason = "there is no name to check it against"
    for name in names:
        try:
            builder.build_server_verifier(x509.DNSName(name)).verify(leaf, others)
        except (VerificationError, ValueError) as error:
            reason = str(error)[:300]
        else:
            return
    raise Mismatch(f"the chain to the TLSA record's authority is not valid for {' or '.join(names)}: {reason}")


def _is_authority(_policy: Policy, _certificate: x509.Certificate, found: x509.BasicConstraints) -> None:
    if not found.ca:
        raise ValueError("an issuer is no authority")


def _may_sign(_policy: Policy, _certificate: x509.Certificate, found: x509.KeyUsage | None) -> None:
    if found is not None and not found.key_cert_sign:
        raise ValueError("an issuer's key is not for certificates")


def _may_serve(_policy: Policy, _certificate: x509.Certificate, found: x509.ExtendedKeyUsage | None) -> None:
    allowed = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if found is not None and not any(usage in allowed for usage in found):
        raise ValueError("the certificate is not for servers")


# What RFC 5280 §6 demands of a chain, without what the web's authorities demand of each other beyond it: private
# authorities, which are what DANE-TA is for, leave out key identifiers and the like. Dates, signatures, path
# lengths, name constraints and unknown critical extensions are the verifier's own business.
_AUTHORITY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_authority)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_sign)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _may_serve)
)
_HOST = (
    ExtensionPolicy.permit_all()
    .require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _may_serve)
)


def _public_key(certificate: bytes) -> bytes:
    """SubjectPublicKeyInfo, DER."""
    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _loads(certificate: bytes) -> bool:
    try:
        x509.load_der_x509_certificate(certificate)
    except ValueError:
        return False
    return True
