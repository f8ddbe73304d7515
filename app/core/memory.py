"""The garbage collector, set for processes that run long and allocate much."""

import gc

# Nearly everything is freed by its count of references; what is left in cycles is little and can wait.
_THRESHOLDS = (10_000, 20, 50)


def collect_rarely() -> None:
    """Take what has been imported out of the collector's sight, and have it look seldom.

    To be called once, when a process begins its work. Looking through everything again and again would cost a tenth of
    each request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
