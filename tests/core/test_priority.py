"""Whether the processors are full, as one process that lets others go first sees it."""

import subprocess
import sys

# The others end by themselves too, should this process be killed.
_LOOK = r"""
import os, subprocess, sys, time
from app.core.priority import Processors, be_nice

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
processors = Processors()
time.sleep(0.3)
print(processors.were_full())
busy = "import time; until = time.monotonic() + 20\nwhile time.monotonic() < until: pass"
hogs = [subprocess.Popen([sys.executable, "-c", busy], start_new_session=True) for _ in range(2)]
be_nice(19)
time.sleep(0.5)
processors.were_full()
until = time.monotonic() + 1.5
while time.monotonic() < until:
    pass
print(processors.were_full())
for hog in hogs:
    hog.kill()
"""


def test_who_waits_for_a_processor_sees_that_all_are_full() -> None:
    command = [sys.executable, "-c", _LOOK]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, start_new_session=True)
    assert said.stdout.split() == ["False", "True"]
