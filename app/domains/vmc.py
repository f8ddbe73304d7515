"""The check of a Verified Mark Certificate: is it one, is it valid now, does it speak for the domain?

Whether an authority that mailbox providers trust has issued it is theirs to judge: they keep the list of those.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

MAX_BYTES = 256 * 1024
_MAX_CERTIFICATES = 10

_BIMI_EKU = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.31")  # id-kp-BrandIndicatorforMessageIdentification
_LOGOTYPE = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.12")  # RFC 9399
_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class VmcError(Exception):
    """The certificate will not do; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Vmc:
    """What is worth knowing of a good one; `warnings` are sentences about what some receivers might miss in it."""

    subject: str
    not_after: datetime
    warnings: tuple[str, ...]


def check(pem: bytes, *, domain: str, selector: str) -> Vmc:
    """Read a certificate, its own first and those of its issuers after it. Raises VmcError."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        if len(certificates) > _MAX_CERTIFICATES:
            raise VmcError(f"There are more than {_MAX_CERTIFICATES} certificates in the file.")
        names = _names(certificates[0])
        purposes = _purposes(certificates[0])
        has_logotype = any(extension.oid == _LOGOTYPE for extension in certificates[0].extensions)
        _check_chain(certificates)
    except _UNREADABLE as error:
        raise VmcError("The file holds no certificate in PEM that can be read.") from error
    if _BIMI_EKU not in purposes and not has_logotype:
        raise VmcError("It is not a mark certificate: it has neither BIMI's extended key usage nor a logotype.")
    _check_dates(certificates[0])
    if not any(_covers(name, domain, selector) for name in names):
        shown = _shown(", ".join(names[:5])) or "no name"
        raise VmcError(f"The certificate is for {shown}, not for {domain}.")
    return Vmc(
        subject=_shown(certificates[0].subject.rfc4514_string()),
        not_after=certificates[0].not_valid_after_utc,
        warnings=_warnings(purposes, has_logotype, len(certificates)),
    )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower().rstrip(".") for name in extension.value.get_values_for_type(x509.DNSName)]


def _purposes(certificate: x509.Certificate) -> list[x509.ObjectIdentifier]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return []


def _check_chain(certificates: list[x509.Certificate]) -> None:
    for issued, issuer in pairwise(certificates):
        try:
            issued.verify_directly_issued_by(issuer)
        except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError) as error:
            raise VmcError("The certificates in the file are not each issued by the one after it.") from error


def _check_dates(certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    if now < certificate.not_valid_before_utc:
        raise VmcError(f"The certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC.")
    if now > certificate.not_valid_after_utc:
        raise VmcError(f"The certificate has expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC.")


def _covers(name: str, domain: str, selector: str) -> bool:
    """Whether a certificate's name stands for the domain or one above it, with or without BIMI's own labels.

    No authority issues for a public suffix, so the organizational domain needs no list of those to be found.
    """
    bare = name.removeprefix(f"{selector}._bimi.")
    return "." in bare and f".{domain}".endswith(f".{bare}")


def _warnings(purposes: list[x509.ObjectIdentifier], has_logotype: bool, certificates: int) -> tuple[str, ...]:
    found = []
    if _BIMI_EKU not in purposes:
        found.append("The mark certificate lacks BIMI's extended key usage (1.3.6.1.5.5.7.3.31).")
    if not has_logotype:
        found.append("The mark certificate contains no logotype (1.3.6.1.5.5.7.1.12).")
    if certificates == 1:
        found.append("The file holds only the mark certificate; receivers want its issuers' certificates after it.")
    return tuple(found)


def _shown(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text[:500])
