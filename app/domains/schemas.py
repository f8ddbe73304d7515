"""Shapes of the domains' routes."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.core.pagination import Pagination
from app.core.schemas import Body, Text, Timestamp
from app.mail.address import parse_domain


def _domain_name(value: str) -> str:
    return parse_domain(value.strip().removesuffix("."))


class NewDomain(Body):
    """A domain to send from."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"domain": "example.com", "dkim_selector": "pmta"}]})

    domain: Annotated[Text, Field(min_length=1, max_length=254), AfterValidator(_domain_name)] = Field(
        description="At least two labels, in any script; kept as lower-case A-labels.",
        examples=["example.com"],
    )
    dkim_selector: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,38}[A-Za-z0-9])?$")] = Field(
        default="pmta",
        description="One label of letters, digits and hyphens. The Ed25519 key gets this selector with "
        "`-ed25519` behind it. Choose your own when another service already publishes under it.",
        examples=["pmta"],
    )


class DnsRecord(BaseModel):
    """One DNS record to publish, and what was found in its place at the last check."""

    type: Literal["TXT", "CNAME"]
    name: str = Field(examples=["pmta._domainkey.example.com"])
    value: str = Field(description="What is expected, in one piece and unquoted.")
    zone_line: str = Field(description="The record as a line of a zone file, long text cut into quoted strings.")
    purpose: Literal["dkim", "spf", "return_path", "dmarc", "tracking", "tls_rpt"]
    required: bool = Field(description="Whether the domain cannot be verified without it.")
    status: Literal["pending", "verified", "mismatch", "missing", "unknown"] = Field(
        description="`pending`: never looked up. `verified`: found and good. `mismatch`: something else is "
        "there. `missing`: nothing is there. `unknown`: the look-up failed."
    )
    found: list[str] = Field(description="What the DNS held under this name at the last look-up that worked.")
    error: str | None = Field(description="Why the latest look-up failed; null when it worked.")


class Domain(BaseModel):
    """A sending domain."""

    id: UUID
    domain: str = Field(description="The name in A-labels.", examples=["xn--bcher-kva.example"])
    domain_unicode: str = Field(description="The name as people read it.", examples=["bücher.example"])
    status: Literal["pending", "verified"]
    verified: bool = Field(description="Whether mail may be sent from it: its RSA DKIM record has been seen.")
    dkim_selector: str
    return_path_domain: str = Field(
        description="The domain of envelope senders: its own once the return-path record is verified."
    )
    dns_records: list[DnsRecord]
    created_at: Timestamp
    verified_at: Timestamp | None
    checked_at: Timestamp | None = Field(description="When its records were last looked up.")


class DomainData(BaseModel):
    """`data` with one domain."""

    domain: Domain


class VerifyData(BaseModel):
    """`data` of a check."""

    domain: Domain
    verified: bool = Field(description="Same as `domain.verified`.")


class DomainsData(BaseModel):
    """`data` with a page of domains."""

    domains: list[Domain]
    pagination: Pagination
