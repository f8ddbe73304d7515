"""Mail addresses: reading what people write, and the one form in which Postroad keeps them."""

import re
from dataclasses import dataclass
from typing import Final

import email_validator

from app.mail.headers import HeaderError, check_text

MAX_LOCAL_OCTETS: Final = 64
MAX_EMAIL_OCTETS: Final = 254
MAX_NAME_CHARACTERS: Final = 256
# A quoted name may double in length by its backslashes; anything longer is not worth a regular expression.
_MAX_TEXT_CHARACTERS: Final = 2 * MAX_NAME_CHARACTERS + MAX_EMAIL_OCTETS + 16

# email-validator refuses special-use domains (RFC 6761) unless they leave this list, its documented switch.
# Mail systems are run on private networks and tested on .test: whether a domain exists is for the DNS to say.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_PLAIN_LOCAL = re.compile(rf"{_ATEXT}(?:\.{_ATEXT})*")
_PLAIN_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+[A-Za-z]{{2,63}}")
_BRACKETED = re.compile(r'(?:"((?:[^"\\]|\\.)*)" *|([^"<>@,;\\]*))<([^<>]*)>')
_QUOTED_PAIR = re.compile(r"\\(.)")


class AddressError(ValueError):
    """The text is not one mail address (or domain name); its message is a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Address:
    """One mailbox (RFC 5322 section 3.4).

    `local` is the local part as given (NFC), `domain` the lower-case IDNA A-label form, `name` the display
    name, empty when there is none. Made by `parse` and `build`, which are what checks it.
    """

    local: str
    domain: str
    name: str = ""

    @property
    def email(self) -> str:
        """The addr-spec, `local@domain`."""
        return f"{self.local}@{self.domain}"

    @property
    def needs_smtputf8(self) -> bool:
        """Whether only a server with SMTPUTF8 (RFC 6531) can be told of this mailbox."""
        return not self.local.isascii()

    @property
    def key(self) -> str:
        """The form under which two spellings of one mailbox are taken for the same."""
        return self.email.casefold()


def parse(text: str) -> Address:
    """Read one address: `a@b`, `Name <a@b>`, `"Name, X" <a@b>` or `<a@b>`.

    Raises AddressError for anything else, for two addresses in one text, and for whatever `build` refuses.
    """
    text = text.strip(" ")
    if len(text) > _MAX_TEXT_CHARACTERS:
        raise AddressError("The address is too long.")
    if not text.endswith(">"):
        return build(text)
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed is None:
        raise AddressError(
            "The address could not be read: give one address only, and put a name with special characters"
            " in double quotes."
        )
    quoted, plain, email = bracketed.groups()
    return build(email, plain if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted))


def build(email: str, name: str = "") -> Address:
    """Make an address of an addr-spec and a display name that came apart.

    The local part may be non-ASCII (RFC 6531) and the domain in any script; quoted local parts, address
    literals and single-label domains are refused. Raises AddressError: also for more than 64 octets of local
    part, 254 octets in all or 256 characters of name, and for control characters or lone surrogates, even
    when an encoded word hides them in the name.
    """
    local, at, domain = email.rpartition("@")
    if not at:
        raise AddressError("An address must have an @-sign.")
    if _PLAIN_LOCAL.fullmatch(local) is None:
        local = _internationalized_local(local)
    domain = parse_domain(domain)
    local_octets = len(local.encode())
    if local_octets > MAX_LOCAL_OCTETS:
        raise AddressError(f"The part before the @-sign is longer than {MAX_LOCAL_OCTETS} octets.")
    if local_octets + 1 + len(domain) > MAX_EMAIL_OCTETS:
        raise AddressError(f"The address is longer than {MAX_EMAIL_OCTETS} octets.")
    return Address(local, domain, _checked_name(name) if name else "")


def parse_domain(text: str) -> str:
    """Read a domain name in any script and give it in lower-case A-labels (RFC 5890).

    Raises AddressError unless it has at least two labels of letters, digits and hyphens (after IDNA), none
    over 63 octets, no more than 253 in all, and does not end like an IP address.
    """
    if len(text) > 253:
        raise AddressError("The domain name is longer than 253 characters.")
    # A label with hyphens in its third and fourth place may be an A-label, which has to decode.
    if _PLAIN_DOMAIN.fullmatch(text) is not None and "--" not in text:
        return text.lower()
    try:
        domain = email_validator.validate_email(f"a@{text}", check_deliverability=False).ascii_domain
    except email_validator.EmailNotValidError as error:
        # An address says it all of "a@" + text; the length of the whole is the caller's business.
        raise AddressError("The domain name is not valid.") from error
    return domain.lower()


def _internationalized_local(local: str) -> str:
    if len(local) > MAX_LOCAL_OCTETS:
        raise AddressError(f"The part before the @-sign is longer than {MAX_LOCAL_OCTETS} octets.")
    try:
        valid = email_validator.validate_email(f"{local}@example.com", check_deliverability=False)
    except email_validator.EmailNotValidError as error:
        raise AddressError(f"The address is not valid: {error}") from error
    return valid.local_part


def _checked_name(name: str) -> str:
    try:
        return check_text(name.strip(" "), max_characters=MAX_NAME_CHARACTERS)
    except HeaderError as error:
        raise AddressError(f"The name of the address is not valid: {error}") from error
