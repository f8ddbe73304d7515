"""The zone file: pasted as it is into a nameserver, it proves the domain."""

import dns.rdatatype
import dns.zone

from tests.accounts.helpers import assert_problem
from tests.dnsd import DnsServer
from tests.domains.helpers import URL, publish, statuses, with_key


def load(zone: DnsServer, text: str, origin: str) -> dns.zone.Zone:
    """Read a master file as a nameserver does, and serve what is in it."""
    apex = f"$ORIGIN {origin}.\n@ 60 IN SOA ns.{origin}. h.{origin}. 1 1 1 1 1\n@ 60 IN NS ns.{origin}.\n"
    found = dns.zone.from_text(apex + text, origin=f"{origin}.", relativize=False)
    for name, ttl, rdata in found.iterate_rdatas():
        kind = dns.rdatatype.to_text(rdata.rdtype)
        if kind in {"TXT", "MX", "CNAME"}:
            assert ttl == 3600
            value = b"".join(rdata.strings).decode() if kind == "TXT" else rdata.to_text()
            zone.add(name.to_text(omit_final_dot=True), kind, value)
    return found


async def test_pasted_into_a_zone_it_verifies_everything(tenant, zone):
    domain = await tenant.create("pasted.example.com")
    load(zone, await tenant.zone(domain["id"]), "pasted.example.com")
    verified = await tenant.verify(domain["id"])
    assert statuses(verified) == {"verified"}
    assert verified["return_path_domain"] == "bounces.pasted.example.com"


async def test_international_names_are_in_a_labels(tenant, zone):
    domain = await tenant.create("bücher.例え.example")
    text = await tenant.zone(domain["id"])
    records = [line for line in text.splitlines() if line and not line.startswith(";")]
    assert all(line.isascii() for line in records)
    assert "$ORIGIN xn--bcher-kva.xn--r8jz45g.example." in records
    assert "; Unicode name: bücher.例え.example" in text
    load(zone, text, domain["domain"])
    assert statuses(await tenant.verify(domain["id"])) == {"verified"}


async def test_during_a_rotation_old_and_new_keys_stand_in_it_and_retired_ones_in_comments(tenant, zone):
    domain = await tenant.create("turning.example.com")
    publish(zone, domain)
    await tenant.verify(domain["id"])
    await tenant.rotated(domain["id"])
    await tenant.rotated(domain["id"], dkim_selector="third")
    text = await tenant.zone(domain["id"])
    listed = {line.split(".")[0] for line in text.splitlines() if "_domainkey" in line}
    assert listed == {"pmta", "pmta-ed25519", "third", "third-ed25519", "; pmta2", "; pmta2-ed25519"}


async def test_who_may_have_it(tenant, stranger):
    domain = await tenant.create("mine.example.com")
    url = f"{URL}/{domain['id']}/zone"
    assert_problem(await stranger.client.get(url, headers=stranger.headers), 404, "domain_not_found")
    limited = await with_key(tenant, scopes=["domains"], domains=["else.example.com"])
    assert_problem(await limited.client.get(url, headers=limited.headers), 404, "domain_not_found")
    sender = await with_key(tenant, scopes=["send"])
    assert_problem(await sender.client.get(url, headers=sender.headers), 403, "insufficient_scope")
