"""What a process and all its descendants have used, as /proc tells it."""

import os
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor time of a process with all its descendants, dead ones included; the largest one's resident memory."""

    cpu_seconds: float
    resident_megabytes: float


def of(root: int) -> Usage:
    """What the process of this id and its descendants have used until now."""
    parents: dict[int, int] = {}
    cpu: dict[int, float] = {}
    resident: dict[int, float] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(directory.name)
        parents[pid] = int(fields[1])
        # Its own user and system time, and those of the children it has waited for.
        cpu[pid] = sum(map(int, fields[11:15])) / TICKS_PER_SECOND
        resident[pid] = int(fields[21]) * PAGE_BYTES / 2**20
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return Usage(sum(cpu.get(pid, 0) for pid in family), max(resident.get(pid, 0) for pid in family))
