"""IP addresses: which are public, so that a tenant may have Postroad connect there, and which are one subscriber's."""

import ipaddress

# What `ipaddress` counts as global, and yet is not somebody's public host: the relays of 6to4 (RFC 7526) and the
# metadata service of a large cloud, which lives on a public address.
_NOT_PUBLIC_V4 = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
# IPv6 is allowed, not forbidden, by list: outside of global unicast there are only mapped, translated (NAT64), local
# and reserved addresses, and each of the translated ones is a private IPv4 address in disguise.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Protocol assignments (Teredo, ORCHID), documentation, 6to4.
_NOT_PUBLIC_V6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
# One subscriber holds a whole /64 (RFC 6177), so counting single IPv6 addresses would count nothing.
_SUBSCRIBER_BITS = 64

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: str) -> bool:
    """Whether `address` is an ordinary host's on the public internet (IANA's special-purpose registries, RFC 6890).

    Not public: private, loopback, link-local (and with it cloud metadata), shared (RFC 6598), multicast, reserved
    and documentation addresses, every IPv6 form of an IPv4 address, scoped addresses, and what is no IP address in
    its one plain spelling.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC_V4)
    if ip.scope_id is not None or ip not in _GLOBAL_UNICAST:
        return False
    return ip.is_global and not any(ip in network for network in _NOT_PUBLIC_V6)


def client_address(text: str) -> IpAddress | None:
    """The address of who has connected, an IPv4 address in IPv6 form as what it is; None for what is no address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def subscriber(text: str) -> str:
    """The client at an address as limits count it: an IPv4 address, an IPv6 subscriber's /64, or `unknown`."""
    address = client_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address), _SUBSCRIBER_BITS), strict=False))
    return str(address) if address else "unknown"
