"""The parts of a mail as they come in, each checked where it stands, so that an error points at it."""

import binascii
import math
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema

from app.core.schemas import Text, check_storable
from app.mail import address, headers
from app.mail.address import Address

MAX_RECIPIENTS = 50
MAX_SUBJECT_CHARACTERS = 998
MAX_HEADER_CHARACTERS = 4_000
MAX_METADATA_CHARACTERS = 1000
MAX_HEADERS = 50
MAX_TAGS = 10
MAX_METADATA = 50
HTML_AND_TEXT: Final = "html_and_text"

_NAMED_KEYS = {"email", "name"}


def _read_address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    if isinstance(value, str):
        return address.parse(value)
    if not isinstance(value, dict) or not value.keys() <= _NAMED_KEYS or not isinstance(value.get("email"), str):
        raise ValueError('must be "a@b", "Name <a@b>" or {"email": "a@b", "name": "Name"}')
    name = value.get("name")
    if name is not None and not isinstance(name, str):
        raise ValueError("the name of an address must be a string")
    return address.build(value["email"], name or "")


def _listed(value: object) -> object:
    # A single address is read here, so that an error points at it and not at a list that the client never sent.
    return value if isinstance(value, list) else [_read_address(value)]


def _decode_base64(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("must be a base64 string")
    try:
        return binascii.a2b_base64(value.replace("\r", "").replace("\n", ""), strict_mode=True)
    except ValueError as error:
        raise ValueError("is not valid base64 (RFC 4648 section 4)") from error


def _check_subject(value: str) -> str:
    return headers.check_text(value, max_characters=MAX_SUBJECT_CHARACTERS)


def _check_content_id(value: str) -> str:
    return headers.check_content_id(value.removeprefix("<").removesuffix(">"))


def _check_header_text(value: str) -> str:
    return headers.check_text(value, max_characters=MAX_HEADER_CHARACTERS)


def _check_headers(value: dict[str, str]) -> dict[str, str]:
    seen = set()
    for name in value:
        if name.lower() in seen:
            raise ValueError(f"the header {name} is given twice")
        seen.add(name.lower())
    return value


def _check_metadata_value(value: object) -> str | bool | int | float:
    if isinstance(value, str):
        if len(value) > MAX_METADATA_CHARACTERS:
            raise ValueError(f"a string may have {MAX_METADATA_CHARACTERS} characters")
        return check_storable(value)
    if not isinstance(value, bool | int | float):
        raise ValueError("must be a string, a number or a boolean")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("numbers must be finite")
    if isinstance(value, int) and not -(2**53) < value < 2**53:
        raise ValueError("integers must fit in 53 bits, so that every JSON reader keeps them")
    return value


def _check_track_clicks(value: object) -> object:
    if not isinstance(value, bool) and value != HTML_AND_TEXT:
        raise ValueError(f'must be true, false or "{HTML_AND_TEXT}"')
    return value


# Plain: what is read once needs no second look by pydantic, and addresses are most of the work of a mail.
AddressField = Annotated[
    Address,
    PlainValidator(_read_address),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "maxLength": 800, "description": "`a@b` or `Name <a@b>`"},
                {
                    "type": "object",
                    "properties": {
                        "email": {"type": "string", "maxLength": 254},
                        "name": {"type": "string", "maxLength": 256},
                    },
                    "required": ["email"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
Recipients = Annotated[list[AddressField], BeforeValidator(_listed), Field(max_length=MAX_RECIPIENTS)]
Label = Annotated[Text, Field(min_length=1, max_length=128)]
# Checked by hand: a union of types would name its members in the pointers of its errors.
MetadataValue = Annotated[
    Any,
    PlainValidator(_check_metadata_value),
    WithJsonSchema({"type": ["string", "boolean", "number"], "maxLength": MAX_METADATA_CHARACTERS}),
]
TrackClicks = Annotated[
    bool | Literal["html_and_text"],
    PlainValidator(_check_track_clicks),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string", "const": HTML_AND_TEXT}]}),
]
Subject = Annotated[str, Field(max_length=MAX_SUBJECT_CHARACTERS), AfterValidator(_check_subject)]
Headers = Annotated[
    dict[Annotated[str, AfterValidator(headers.check_name)], Annotated[str, AfterValidator(_check_header_text)]],
    Field(max_length=MAX_HEADERS),
    AfterValidator(_check_headers),
]
Tags = Annotated[list[Label], Field(max_length=MAX_TAGS)]
Metadata = Annotated[dict[Label, MetadataValue], Field(max_length=MAX_METADATA)]
FileName = Annotated[str, Field(max_length=255), AfterValidator(headers.check_filename)]
ContentType = Annotated[str, Field(max_length=200), AfterValidator(headers.check_content_type)]
ContentId = Annotated[str, Field(max_length=257), AfterValidator(_check_content_id)]
Base64 = Annotated[
    bytes,
    BeforeValidator(_decode_base64),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "description": "The file in base64."}),
]
