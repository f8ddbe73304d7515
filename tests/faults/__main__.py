"""`make faults`: every kind of fault many times, in several houses at once, and a table of what came of it."""

import argparse
import asyncio
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.dnsd import DnsServer
from tests.faults import verdict as verdicts
from tests.faults.campaign import HOSTS, campaign
from tests.faults.house import House, free_port
from tests.faults.kinds import KINDS, Scene
from tests.faults.verdict import Verdict


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how often each fault strikes (%(default)s)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which faults: %(default)s")
    parser.add_argument("--houses", type=int, default=2, help="installations that are hurt at once (%(default)s)")
    parser.add_argument("--lease-seconds", type=float, default=5.0)
    parser.add_argument("--outage-seconds", type=float, default=10.0, help="the longest outage of Redis (%(default)s)")
    parser.add_argument("--long-outage-seconds", type=float, default=0.0, help="of its first outage, as 300")
    parser.add_argument("--keep", action="store_true", help="keep what the processes said, and print where it is")
    return parser


async def _house(options: argparse.Namespace, kinds: Sequence[str]) -> list[Verdict]:
    """One installation, which suffers these kinds one after the other."""
    directory = Path(tempfile.mkdtemp(prefix="postroad-faults-"))
    smtp_port = free_port(tuple(HOSTS))
    found = []
    async with DnsServer() as zone:
        settings = {
            "RETRY_FIRST_SECONDS": "1",
            "RETRY_MAX_SECONDS": "2",
            "DNS_TIMEOUT_SECONDS": "2",
            "DNS_NAMESERVERS": zone.setting,
            "OUTBOUND_SMTP_PORT": str(smtp_port),
        }
        house = await asyncio.to_thread(House, directory, settings)
        try:
            await asyncio.to_thread(house.migrate)
            await house.start_api()
            scene = Scene(
                house,
                options.lease_seconds,
                options.outage_seconds,
                long_outage_seconds=options.long_outage_seconds,
            )
            async with campaign(house, zone, smtp_port, scene) as under_way:
                for kind in kinds:
                    began = time.monotonic()
                    one = await under_way.run(kind, options.kills)
                    print(f"{kind} took {time.monotonic() - began:.0f} s", *one.wrong, sep="\n  ", flush=True)
                    found.append(one)
        finally:
            await asyncio.to_thread(house.close)
            if options.keep:
                print(f"kept {directory}", flush=True)
            else:
                shutil.rmtree(directory, ignore_errors=True)
    return found


async def _run(options: argparse.Namespace) -> int:
    kinds = options.kinds.split(",")
    shares = [kinds[first :: options.houses] for first in range(options.houses)]
    found = await asyncio.gather(*(_house(options, share) for share in shares if share))
    verdicts_found = sorted(itertools.chain(*found), key=lambda one: kinds.index(one.kind))
    print(verdicts.table(verdicts_found), flush=True)
    return 1 if any(one.wrong for one in verdicts_found) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_run(_parser().parse_args())))
