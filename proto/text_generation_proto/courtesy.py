"""Courtesy: threads that wait for messages let those that compute go on.

On a CPU, a model's threads wait for each other many hundred times a step: one that loses its core to a waking router, even for
a moment, holds up all of them. Standard library only.
"""

import contextlib
import os


def be_courteous() -> None:
    """The calling thread, and those that it starts from now on, push nobody off a core when they wake up (SCHED_BATCH,
    sched(7)). Does nothing where there is no such thing, or it is not allowed."""
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def be_ordinary() -> None:
    """Takes it back for the calling thread, and those that it starts from now on."""
    if hasattr(os, "SCHED_OTHER"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
