"""Limits of a site are those of all workers together: seen by the hosts, which count."""

import asyncio
import time
from pathlib import Path

from app.core.ids import new_id
from tests.dnsd import DnsServer
from tests.faults.house import House, eventually
from tests.faults.traffic import Traffic
from tests.smtpd import SmtpServer, late

CONNECTIONS = 3
PER_SECOND = 20
MAILS = 160


def shaped(house: House, *lines: str) -> str:
    """A shaping file of these limits for all sites."""
    path: Path = house.path("shaping.toml")
    path.write_text("\n".join(["[default]", *lines]))
    return str(path)


def most_in_a_second(moments: list[float]) -> int:
    """Of any second, not of those of the clock."""
    most = first = 0
    for last, moment in enumerate(moments):
        while moment - moments[first] >= 1:
            first += 1
        most = max(most, last - first + 1)
    return most


def another_domain(dns: DnsServer, site: str) -> str:
    """A domain with the same mail host, so that it belongs to the same site."""
    name = f"alias-{new_id().hex}.test"
    dns.add(name, "MX", f"10 mx.{site}.")
    return name


async def send_all(traffic: Traffic, domains: list[str]) -> None:
    # What a killed worker of another test had in its hands would come to the same host.
    await traffic.house.query("DELETE FROM delivery_queue WHERE domain <> ALL(:domains) RETURNING 1", domains=domains)
    recipients = [f"{new_id().hex}@{domains[number % len(domains)]}" for number in range(MAILS)]
    for first in range(0, MAILS, 16):
        await asyncio.gather(*(traffic._send(one) for one in recipients[first : first + 16]))
    assert len(traffic.accepted) == MAILS


async def both_have_delivered(house: House) -> bool:
    rows = await house.query("SELECT outcomes FROM workers WHERE seen_at > now() - interval '10 seconds'")
    return len([1 for (outcomes,) in rows if outcomes.get("delivered", 0) > MAILS // 20]) >= 2


async def test_two_processes_share_the_connections_of_a_site(house: House, traffic: Traffic, dns: DnsServer) -> None:
    host, site = traffic.hosts[0], traffic.sites[0]
    host.replies.on_end_of_data = lambda _: late("250 2.0.0 taken", wait_seconds=0.05)
    file = shaped(house, f"connections = {CONNECTIONS}", "messages_per_connection = 10")
    await send_all(traffic, [site, another_domain(dns, site)])
    await house.worker(processes=2, SHAPING_FILE=file)
    await host.mails_expected(MAILS, timeout_seconds=60)
    # All of them were used, connections were made anew, and still there was never one more.
    assert host.max_connections_seen == CONNECTIONS
    assert host.connection_count >= MAILS // 10
    await eventually(lambda: both_have_delivered(house), timeout_seconds=15)


async def test_two_processes_share_the_rate_of_a_site(house: House, traffic: Traffic, dns: DnsServer) -> None:
    host, site = traffic.hosts[0], traffic.sites[0]
    moments = note_mails(host)
    file = shaped(house, f"connections = {CONNECTIONS}", f'rate = "{PER_SECOND}/s"')
    await send_all(traffic, [site, another_domain(dns, site)])
    await house.worker(processes=2, SHAPING_FILE=file)
    await host.mails_expected(MAILS, timeout_seconds=60)
    assert most_in_a_second(moments) <= PER_SECOND
    # Nor is it much slower than it may be.
    assert MAILS / (moments[-1] - moments[0]) > PER_SECOND * 0.6
    assert host.max_connections_seen <= CONNECTIONS


def note_mails(host: SmtpServer) -> list[float]:
    """The moments at which transactions begin."""
    moments: list[float] = []

    def note(_: str) -> None:
        moments.append(time.monotonic())

    host.replies.on_mail = note
    return moments
