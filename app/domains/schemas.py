"""Shapes of the domains' routes."""

from typing import Annotated, Literal, Self
from uuid import UUID

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from app.core.pagination import Pagination
from app.core.schemas import Body, Text, Timestamp
from app.mail.address import parse_domain

_LABEL = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"
_MAX_URL_CHARACTERS = 1000


def _domain_name(value: str) -> str:
    return parse_domain(value.strip().removesuffix("."))


def _record_url(value: str) -> str:
    """An https URL as it can stand in a BIMI record: ASCII, its host in A-labels, no commas and semicolons."""
    try:
        url = httpx.URL(value)
        is_named = bool(url.host)
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError("must be a URL") from error
    if url.scheme != "https" or not is_named:
        raise ValueError("must be a URL that begins with https://")
    if url.userinfo or url.fragment:
        raise ValueError("must have neither credentials nor a fragment")
    text = str(url)
    if "," in text or ";" in text:
        raise ValueError("must have commas and semicolons percent-encoded, as %2C and %3B")
    if len(text) > _MAX_URL_CHARACTERS:
        raise ValueError(f"must be at most {_MAX_URL_CHARACTERS} characters, percent-encoded")
    return text


Selector = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,38}[A-Za-z0-9])?$"), AfterValidator(str.lower)]
RecordUrl = Annotated[Text, Field(min_length=1, max_length=_MAX_URL_CHARACTERS), AfterValidator(_record_url)]


class NewDomain(Body):
    """A domain to send from."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"domain": "example.com", "dkim_selector": "pmta"}]})

    domain: Annotated[Text, Field(min_length=1, max_length=254), AfterValidator(_domain_name)] = Field(
        description="At least two labels, in any script; kept as lower-case A-labels.",
        examples=["example.com"],
    )
    dkim_selector: Selector = Field(
        default="pmta",
        description="One label of letters, digits and hyphens. The Ed25519 key gets this selector with "
        "`-ed25519` behind it. Choose your own when another service already publishes under it.",
        examples=["pmta"],
    )


class Rotation(Body):
    """How to rotate keys; every field may be left out."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"dkim_selector": "pmta2027"}]})

    dkim_selector: Selector | None = Field(
        default=None,
        description="The new RSA key's selector; the new Ed25519 key gets it with `-ed25519` behind it. Without one "
        "the domain's first selector is used with the next free number: `pmta2`, `pmta3`.",
        examples=["pmta2027"],
    )


class BimiSettings(Body):
    """The logo to show beside the domain's mail, or none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "selector": "default",
                    "logo_url": "https://example.com/bimi/logo.svg",
                    "vmc_url": "https://example.com/bimi/vmc.pem",
                }
            ]
        }
    )

    enabled: bool = Field(default=True, description="`false` removes the BIMI record.")
    selector: Annotated[str, Field(pattern=_LABEL), AfterValidator(str.lower)] = Field(
        default="default", description="Receivers look for `default` unless a mail names another one."
    )
    logo_url: RecordUrl | None = Field(
        default=None,
        description="https; a square SVG Tiny Portable/Secure of at most 32 KiB, served as `image/svg+xml`. Needed "
        "unless `enabled` is false.",
        examples=["https://example.com/bimi/logo.svg"],
    )
    vmc_url: RecordUrl | None = Field(
        default=None,
        description="https; a Verified Mark Certificate for the domain in PEM, its issuers' certificates after it.",
        examples=["https://example.com/bimi/vmc.pem"],
    )

    @model_validator(mode="after")
    def _has_logo(self) -> Self:
        if self.enabled and self.logo_url is None:
            raise ValueError("needs a logo_url unless enabled is false")
        return self


class DnsRecord(BaseModel):
    """One DNS record to publish, and what was found in its place at the last check."""

    type: Literal["TXT", "CNAME", "MX"]
    name: str = Field(examples=["pmta._domainkey.example.com"])
    value: str = Field(description="What is expected, in one piece and unquoted; of an MX `preference host`.")
    zone_line: str = Field(description="The record as a line of a zone file, long text cut into quoted strings.")
    purpose: Literal["dkim", "spf", "return_path", "bounce_mx", "dmarc", "tracking", "tls_rpt", "bimi"]
    required: bool = Field(
        description="Whether the domain cannot be verified, or mail on its way not be verified, without it."
    )
    action: Literal["publish", "keep", "remove"] = Field(
        description="`keep`: belongs to a DKIM key that was replaced and stays published until `keep_until`. "
        "`remove`: belongs to a key that is no longer used, and may be removed."
    )
    keep_until: Timestamp | None = Field(description="Until when a replaced key's record has to stay published.")
    note: str | None = Field(description="A sentence for whoever publishes the record.")
    status: Literal["pending", "verified", "mismatch", "missing", "unknown"] = Field(
        description="`pending`: never looked up. `verified`: found and good. `mismatch`: something else is "
        "there. `missing`: nothing is there. `unknown`: the look-up failed."
    )
    found: list[str] = Field(description="What the DNS held under this name at the last look-up that worked.")
    error: str | None = Field(description="Why the latest look-up failed; null when it worked.")


class DkimKey(BaseModel):
    """One DKIM key of a domain. Each algorithm has one active key, which signs."""

    selector: str = Field(examples=["pmta"])
    algorithm: Literal["rsa-sha256", "ed25519-sha256"]
    status: Literal["pending", "active", "retiring", "retired"] = Field(
        description="`pending`: its record has not been seen. `active`: it signs. `retiring`: it was replaced, and "
        "its record stays published until `retire_at`. `retired`: its private part is wiped, its record may go."
    )
    created_at: Timestamp
    activated_at: Timestamp | None
    retire_at: Timestamp | None


class Bimi(BaseModel):
    """A domain's BIMI settings, and what was found at its URLs when they were set."""

    selector: str
    logo_url: str
    vmc_url: str | None
    logo_title: str
    logo_sha256: str
    vmc_subject: str | None
    vmc_expires_at: Timestamp | None
    checked_at: Timestamp


class Domain(BaseModel):
    """A sending domain."""

    id: UUID
    domain: str = Field(description="The name in A-labels.", examples=["xn--bcher-kva.example"])
    domain_unicode: str = Field(description="The name as people read it.", examples=["bücher.example"])
    status: Literal["pending", "verified"]
    verified: bool = Field(description="Whether mail may be sent from it: its RSA DKIM record has been seen.")
    dkim_selector: str = Field(description="The selector of the RSA key that signs; of the newest one before that.")
    return_path_domain: str = Field(
        description="The domain of envelope senders: its own once both records of the return path are verified."
    )
    dns_records: list[DnsRecord]
    dkim_keys: list[DkimKey] = Field(description="Oldest first.")
    bimi: Bimi | None
    created_at: Timestamp
    verified_at: Timestamp | None
    checked_at: Timestamp | None = Field(description="When its records were last looked up.")
    failing_since: Timestamp | None = Field(
        description="Since when the required record is known to be gone: two look-ups in a row have said so. Mail is "
        "still sent while the domain is verified."
    )


class DomainData(BaseModel):
    """`data` with one domain."""

    domain: Domain


class VerifyData(BaseModel):
    """`data` of a check."""

    domain: Domain
    verified: bool = Field(description="Same as `domain.verified`.")


class BimiData(BaseModel):
    """`data` of BIMI settings."""

    domain: Domain
    warnings: list[str] = Field(description="Sentences about what may keep receivers from showing the logo.")


class DomainsData(BaseModel):
    """`data` with a page of domains."""

    domains: list[Domain]
    pagination: Pagination
