"""dkimpy as the independent judge of our signatures.

dkimpy does Ed25519 only with PyNaCl. Here its parsing, canonicalisation and hashing are used as they
are; only the curve comes from `cryptography`, whose key is put where dkimpy would have put PyNaCl's.
"""

import base64
from collections.abc import Mapping

import dkim
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class _VerifyKey:
    """Has the method of PyNaCl's VerifyKey that dkimpy calls, but keeps the verdict instead of raising.

    dkimpy knows no exception for a bad signature other than PyNaCl's.
    """

    def __init__(self, raw: bytes) -> None:
        self.key = Ed25519PublicKey.from_public_bytes(raw)
        self.is_valid = False

    def verify(self, data: bytes, signature: bytes) -> None:
        try:
            self.key.verify(signature, data)
        except InvalidSignature:
            return
        self.is_valid = True


class Verifier(dkim.DKIM):  # type: ignore[misc]
    def verify_sig(self, sig, include_headers, sig_header, dnsfunc):  # type: ignore[no-untyped-def]
        txt = dnsfunc(sig[b"s"] + b"._domainkey." + sig[b"d"] + b".")
        tags = dkim.parse_tag_value(txt)
        if sig[b"a"] != b"ed25519-sha256" or tags[b"k"] != b"ed25519":
            return super().verify_sig(sig, include_headers, sig_header, dnsfunc)
        self.pk = _VerifyKey(base64.b64decode(tags[b"p"], validate=True))
        self.keysize, self.ktag, self.seqtlsrpt = 256, b"ed25519", False
        return self.verify_sig_process(sig, include_headers, sig_header, dnsfunc) and self.pk.is_valid


def verdicts(content: bytes, records: Mapping[str, str]) -> list[bool]:
    """Whether each DKIM-Signature of the mail verifies, top to bottom; `records` are TXT values by name."""

    def txt(name: bytes, timeout: float = 5) -> bytes:
        return records[name.decode().rstrip(".")].encode()

    found = []
    for index in range(content.partition(b"\r\n\r\n")[0].lower().count(b"dkim-signature: v=")):
        try:
            found.append(bool(Verifier(content).verify(index, dnsfunc=txt)))
        except dkim.ValidationError:
            found.append(False)
    return found
