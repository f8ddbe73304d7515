"""Whether the processors are full, as one process that lets others go first sees it."""

import subprocess
import sys

_LOOK = """
import os, subprocess, sys, time
from app.core.priority import Crowding, be_nice

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
crowding = Crowding()
time.sleep(0.3)
print(crowding.look())
hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(2)]
be_nice(19)
time.sleep(0.5)
crowding.look()
until = time.monotonic() + 1.5
while time.monotonic() < until:
    pass
print(crowding.look())
for hog in hogs:
    hog.kill()
"""


def test_who_waits_for_a_processor_sees_that_all_are_full() -> None:
    command = [sys.executable, "-c", _LOOK]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, start_new_session=True)
    assert said.stdout.split() == ["False", "True"]
