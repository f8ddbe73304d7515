"""DKIM signatures (RFC 6376) with RSA and Ed25519 keys (RFC 8463)."""

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

Algorithm = Literal["rsa-sha256", "ed25519-sha256"]

RSA_BITS: Final = 2048
_MAX_RECORD_CHARACTERS = 4096
_KEY_TYPES: dict[str, str] = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}
_PKCS1V15 = PKCS1v15()
_SHA256 = SHA256()
_LINE_CHARACTERS = 72

# Named once more than they are present, so that adding one breaks the signature (RFC 6376 section 5.4.2).
_OVERSIGNED = (
    b"from",
    b"to",
    b"cc",
    b"subject",
    b"date",
    b"reply-to",
    b"message-id",
    b"mime-version",
    b"content-type",
    b"list-unsubscribe",
    b"list-unsubscribe-post",
)
# These belong to the path of a mail, not to its author (RFC 6376 section 5.4.1).
_UNSIGNED = frozenset({b"return-path", b"received", b"dkim-signature", b"authentication-results", b"bcc"})

_WSP_RUN = re.compile(rb"[ \t]+")


@dataclass(frozen=True, slots=True)
class Signer:
    """A domain's key, parsed once and used for many mails; `domain` in A-labels."""

    domain: str
    selector: str
    algorithm: Algorithm
    key: RSAPrivateKey | Ed25519PrivateKey

    def signature(self, data: bytes) -> bytes:
        """The raw signature of `data`; Ed25519 signs its SHA-256 digest (RFC 8463 section 3)."""
        if isinstance(self.key, RSAPrivateKey):
            return self.key.sign(data, _PKCS1V15, _SHA256)
        return self.key.sign(hashlib.sha256(data).digest())


def generate(algorithm: Algorithm) -> tuple[bytes, str]:
    """Make a key: (PKCS #8 DER of the private key, base64 of the public key as in the record's p= tag).

    RSA keys have 2048 bits and take a tenth of a second; their p= is a SubjectPublicKeyInfo (RFC 6376 section
    3.6.1), that of Ed25519 the bare 32 octets (RFC 8463 section 4).
    """
    key: RSAPrivateKey | Ed25519PrivateKey
    if algorithm == "rsa-sha256":
        key = generate_private_key(public_exponent=65537, key_size=RSA_BITS)
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    else:
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return private, base64.b64encode(public).decode()


def load(domain: str, selector: str, algorithm: Algorithm, private_der: bytes) -> Signer:
    """Make a signer of a key from `generate`. Raises ValueError when the key is not of that algorithm."""
    key = load_der_private_key(private_der, password=None)
    if not isinstance(key, RSAPrivateKey if algorithm == "rsa-sha256" else Ed25519PrivateKey):
        raise ValueError(f"The key is not one for {algorithm}.")
    return Signer(domain=domain, selector=selector, algorithm=algorithm, key=key)


def record(algorithm: Algorithm, public_key: str) -> str:
    """Return the TXT value to publish at `<selector>._domainkey.<domain>` (RFC 6376 section 3.6.1)."""
    return f"v=DKIM1; k={_KEY_TYPES[algorithm]}; p={public_key}"


def matches(found_txt: str, algorithm: Algorithm, public_key: str) -> bool:
    """Say whether a TXT value found in the DNS lets receivers verify our signatures with this key.

    Blanks, the order of tags and unknown tags do not matter (RFC 6376 section 3.2); a record that is revoked,
    excludes mail (s=) or SHA-256 (h=), or names a tag twice does not match.
    """
    tags: dict[str, str] = {}
    if len(found_txt) > _MAX_RECORD_CHARACTERS:
        return False
    for specification in found_txt.split(";"):
        name, equals, value = specification.partition("=")
        name = name.strip()
        if not name and not equals:
            continue
        if not name or not equals or name in tags:
            return False
        tags[name] = "".join(value.split())
    return (
        tags.get("v", "DKIM1") == "DKIM1"
        and tags.get("k", "rsa") == _KEY_TYPES[algorithm]
        and tags.get("p") == public_key
        and not {"*", "email"}.isdisjoint(tags.get("s", "*").split(":"))
        and "sha256" in tags.get("h", "sha256").split(":")
    )


def sign(content: bytes, signers: Sequence[Signer], *, timestamp: int) -> bytes:
    """Return one DKIM-Signature field per signer, each folded and ended by CRLF, to be put before `content`.

    `content` is a whole mail with CRLF line ends; `timestamp` (t=) is in seconds since 1970. Both parts are
    canonicalised "relaxed" (RFC 6376 section 3.4). Every field is signed but those of the mail's path; those
    that an attacker would add are named once more than they occur. Raises ValueError without From.
    """
    head, _, body = content.partition(b"\r\n\r\n")
    return sign_head(head, body_hash(body), signers, timestamp=timestamp)


def body_hash(body: bytes) -> bytes:
    """The hash of a mail's body, CRLF line ends, as bh= has it. Mails with one body share it."""
    return base64.b64encode(hashlib.sha256(_relaxed_body(body)).digest())


def sign_head(head: bytes, hashed_body: bytes, signers: Sequence[Signer], *, timestamp: int) -> bytes:
    """As `sign`, for a mail of this head (without the empty line after it) and a body of this `body_hash`."""
    names, signed = _select(_relaxed_fields(head))
    if b"from" not in names:
        raise ValueError("A mail without From cannot be signed.")
    common = [*_fold_names(tuple(names)), b"bh=" + hashed_body + b";"]
    return b"".join(_field(signer, signed, common, timestamp) for signer in signers)


def _field(signer: Signer, signed: bytes, common: list[bytes], timestamp: int) -> bytes:
    first = f"v=1; a={signer.algorithm}; c=relaxed/relaxed; t={timestamp};"
    lines = [first.encode(), f"d={signer.domain}; s={signer.selector};".encode(), *common, b"b="]
    # To the relaxed canonicalisation a fold is one blank: the hashed form is the lines joined by blanks.
    signature = signer.signature(signed + b"dkim-signature:" + b" ".join(lines))
    encoded = b"b=" + base64.b64encode(signature)
    lines[-1:] = [encoded[i : i + _LINE_CHARACTERS] for i in range(0, len(encoded), _LINE_CHARACTERS)]
    return b"DKIM-Signature: " + b"\r\n ".join(lines) + b"\r\n"


def _relaxed_fields(head: bytes) -> list[tuple[bytes, bytes]]:
    """(lower-case name, canonical value) of each field, top to bottom (RFC 6376 section 3.4.2)."""
    unfolded = head.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ")
    fields = []
    for line in unfolded.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if b"  " in value or b"\t" in value:
            value = _WSP_RUN.sub(b" ", value)
        fields.append((name.rstrip(b" \t").lower(), value.strip(b" ")))
    return fields


def _select(fields: list[tuple[bytes, bytes]]) -> tuple[list[bytes], bytes]:
    """The names for h=, and the fields in the order in which they are hashed.

    Of fields with one name the last is meant first (RFC 6376 section 5.4.2).
    """
    values: dict[bytes, list[bytes]] = defaultdict(list)
    for name, value in fields:
        values[name].append(value)
    names = [name for name, _ in fields if name and name not in _UNSIGNED]
    return names, b"".join([b"%b:%b\r\n" % (name, values[name].pop()) for name in names])


@lru_cache(maxsize=256)
def _fold_names(names: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The h= tag of fields with these names, and the oversigned ones, in lines of at most about 72 octets."""
    lines: list[bytes] = []
    line = b"h=" + names[0]
    for name in (*names[1:], *_OVERSIGNED):
        if len(line) + len(name) >= _LINE_CHARACTERS:
            lines.append(line + b":")
            line = name
        else:
            line += b":" + name
    return *lines, line + b";"


def _relaxed_body(body: bytes) -> bytes:
    """RFC 6376 section 3.4.4: blanks reduced, those at line ends and empty lines at the end gone."""
    if not body.endswith(b"\r\n"):
        body += b"\r\n"
    body = body.replace(b"\t", b" ")
    # Halving runs with replace is several times faster than a regular expression over all blanks.
    while b"  " in body:
        body = body.replace(b"  ", b" ")
    body = body.replace(b" \r\n", b"\r\n")
    end = len(body)
    while body.endswith(b"\r\n", 0, end):
        end -= 2
    return body[:end] + b"\r\n" if end else b""
