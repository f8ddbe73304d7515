"""Source addresses: how one is written, and whether it is this host's."""

import errno
import ipaddress
import socket
from typing import Final

from cachetools import TTLCache

MAX_ADDRESS_CHARACTERS: Final = 45

_CACHE_SECONDS = 30.0
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
# The address is not here, or its whole family is not (RFC 3493); any other error says nothing of the address.
_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL}

_known: TTLCache[str, bool] = TTLCache(10_000, _CACHE_SECONDS)


def parse(text: str) -> str:
    """An address that mail can leave from, in its one canonical spelling (RFC 5952 for IPv6).

    Raises ValueError for what is no address, and for unspecified, multicast, broadcast and reserved ones. IPv4 in the
    clothes of IPv6 and addresses with a zone are refused too, so that one address never goes by two names.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError("must be an IPv4 or IPv6 address") from error
    if address.is_unspecified or address.is_multicast:
        raise ValueError("must be the address of one host")
    if isinstance(address, ipaddress.IPv4Address):
        if address.is_reserved or address in _THIS_NETWORK:
            raise ValueError("must be the address of one host")
    elif address.ipv4_mapped is not None:
        raise ValueError(f"must be written as the IPv4 address that it is, {address.ipv4_mapped}")
    elif address.scope_id is not None or address.is_link_local:
        raise ValueError("must not be an address that is good on one link only")
    return str(address)


def can_bind(address: str) -> bool:
    """Whether a connection can leave this host from the address, as it was in the last 30 seconds.

    One that could not be tried counts as ours: then connecting says what is wrong.
    """
    found = _known.get(address)
    if found is None:
        found = _known[address] = _try(address)
    return found


def _try(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        return error.errno not in _NOT_HERE
    return True
