"""What the local mailbox's nameserver answers: all mail leads here, all records are published."""

from collections.abc import Awaitable, Callable

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from app.core.db import Database
from app.domains import service as domains

MAIL_HOST = "mx.mailbox.test"
ADDRESS = "127.0.0.1"

_MX_PREFERENCE = 10
_STRING_OCTETS = 255
_INVALID = dns.name.from_text("invalid.")
_MAIL_HOST = dns.name.from_text(MAIL_HOST)
_HOST_TTL_SECONDS = 60

Answerer = Callable[[dns.message.Message], Awaitable[dns.message.Message]]


def answerer(database: Database) -> Answerer:
    """The answer function for `app.local.nameserver.Nameserver`.

    Every name has the address 127.0.0.1, so all hosts are the mailbox, and the TXT, MX and CNAME records that
    Postroad asks its users to publish; without one the mailbox is its MX. Names under `invalid` do not exist
    (RFC 6761 §6.4): try hard bounces there.
    """

    async def answer(query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA | dns.flags.RA
        question = query.question[0]
        if question.name.is_subdomain(_INVALID):
            response.set_rcode(dns.rcode.NXDOMAIN)
            return response
        if question.rdtype == dns.rdatatype.TXT:
            values = [_txt(value) for value in await _published(database, question.name, "TXT")]
        elif question.rdtype == dns.rdatatype.MX and (hosts := await _published(database, question.name, "MX")):
            values = [f"{host}." for host in hosts]
        elif question.name.is_subdomain(_MAIL_HOST):
            values = [ADDRESS] if question.rdtype == dns.rdatatype.A else []
        else:
            values = await _host_records(database, response, question)
        _add(response, question.name, question.rdtype, values)
        return response

    return answer


async def _host_records(database: Database, response: dns.message.Message, question: dns.rrset.RRset) -> list[str]:
    """MX, A and CNAME data of a name; where it is an alias, the CNAME goes into the response instead."""
    alias = await _published(database, question.name, "CNAME")
    if alias:
        target = dns.name.from_text(alias[0])
        _add(response, question.name, dns.rdatatype.CNAME, [target.to_text()])
        if question.rdtype in (dns.rdatatype.MX, dns.rdatatype.A):
            _add(response, target, question.rdtype, _data(question.rdtype))
        return []
    return _data(question.rdtype)


def _data(kind: dns.rdatatype.RdataType) -> list[str]:
    if kind == dns.rdatatype.MX:
        return [f"{_MX_PREFERENCE} {MAIL_HOST}."]
    return [ADDRESS] if kind == dns.rdatatype.A else []


async def _published(database: Database, name: dns.name.Name, kind: str) -> list[str]:
    async with database.transaction() as session:
        return await domains.published(session, name.to_text(omit_final_dot=True).lower(), kind)


def _add(response: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType, values: list[str]) -> None:
    # What users publish may not be remembered: a rotated key, or a domain added, counts at once.
    ttl = _HOST_TTL_SECONDS if kind in (dns.rdatatype.MX, dns.rdatatype.A) else 0
    if values:
        response.answer.append(dns.rrset.from_text_list(name, ttl, dns.rdataclass.IN, kind, values))


def _txt(value: str) -> str:
    """TXT data in master-file form: quoted strings of up to 255 octets (RFC 1035 §3.3.14)."""
    pieces = (value[at : at + _STRING_OCTETS] for at in range(0, len(value), _STRING_OCTETS))
    return " ".join('"' + piece.replace("\\", "\\\\").replace('"', '\\"') + '"' for piece in pieces)
