"""Hardware: what a figure was measured on, as the heading of every table.

In: the machine. Out: one Markdown line with processor, cores, GPU, library versions and date. Linux is where it knows most.
"""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

LIBRARIES = ("torch", "transformers", "bitsandbytes")


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def heading() -> str:
    """For example: AMD EPYC, 2 cores, no GPU; Python 3.11.9, torch 2.13.0, transformers 5.23.0; 2026-11-22."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    machine = f"{_processor()}, {num_cores()} cores, {_gpu()}"
    return f"{machine}; Python {platform.python_version()}, {', '.join(versions)}; {datetime.date.today()}."


def used_gpu_memory() -> int:
    """Bytes, by all processes, of all GPUs that this one sees."""
    readings = (torch.cuda.mem_get_info(device) for device in range(torch.cuda.device_count()))
    return sum(total - free for free, total in readings)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "no GPU"
    properties = torch.cuda.get_device_properties(0)
    return f"{torch.cuda.device_count()} x {properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
