"""Errors that carry their own status and sentence, and their one rendering as problem+json (RFC 9457).

PostroadError
├── Unauthenticated        401
├── Forbidden              403
├── NotFound               404
├── Conflict               409
├── TooLarge               413
├── Invalid                422  (with pointers)
├── TooManyRequests        429
└── Unavailable            503
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing wrong with a request: where it stands and what is wrong with it."""

    pointer: str
    detail: str
    location: Literal["body", "query", "path", "header"] = "body"


class PostroadError(Exception):
    """Base of every error that a client is told about. `detail` is a sentence for its reader; `code` is stable."""

    status: ClassVar[int] = 500

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        flaws: Sequence[Flaw] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.flaws = tuple(flaws)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


class Unauthenticated(PostroadError):  # noqa: N818 - named for what the client is told
    """No credentials, or none that we accept."""

    status = 401

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(PostroadError):  # noqa: N818
    """Known, but not allowed."""

    status = 403


class NotFound(PostroadError):  # noqa: N818
    """There is no such thing in the caller's organization."""

    status = 404

    def __init__(self, noun: str) -> None:
        super().__init__(f"{noun.replace(' ', '_')}_not_found", f"There is no such {noun} in your organization.")


class Conflict(PostroadError):  # noqa: N818
    """Refused because of the present state of the thing."""

    status = 409


class TooLarge(PostroadError):  # noqa: N818
    """More than we take."""

    status = 413


class Invalid(PostroadError):  # noqa: N818
    """Understood, and wrong."""

    status = 422

    @classmethod
    def at(cls, pointer: str, detail: str, *, code: str = "invalid_request") -> "Invalid":
        """An error about one place of the body."""
        return cls(code, detail, flaws=[Flaw(pointer, detail)])


class TooManyRequests(PostroadError):  # noqa: N818
    """Over a rate limit."""

    status = 429


class Unavailable(PostroadError):  # noqa: N818
    """Something that this needs is not configured or not there at the moment."""

    status = 503


class ProblemFlaw(BaseModel):
    """One entry of a problem's `errors`."""

    pointer: str = Field(description="JSON Pointer (RFC 6901) to the offending value.")
    detail: str
    location: Literal["body", "query", "path", "header"] = "body"


class Problem(BaseModel):
    """An RFC 9457 problem document (`application/problem+json`)."""

    type: str = Field(examples=["urn:postroad:problem:domain_not_verified"])
    title: str = Field(examples=["Forbidden"])
    status: int = Field(examples=[403])
    detail: str = Field(description="A sentence for people.")
    code: str = Field(description="Stable and meant for programs.", examples=["domain_not_verified"])
    errors: list[ProblemFlaw] | None = None
    request_id: str | None = None


def problem(
    status: int, code: str, detail: str, *, request_id: str | None, flaws: Sequence[Flaw] = ()
) -> dict[str, Any]:
    """The problem document as a JSON-ready dict."""
    document: dict[str, Any] = {
        "type": f"urn:postroad:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if flaws:
        document["errors"] = [{"pointer": f.pointer, "detail": f.detail, "location": f.location} for f in flaws]
    document["request_id"] = request_id
    return document


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the problems that a route can answer with."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
