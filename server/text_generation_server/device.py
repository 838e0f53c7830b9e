"""Which device and dtype this rank computes with, how much memory its process holds, and what a device's work takes.

In: what the flags say. Out: a torch device, a torch dtype, byte counts, microseconds. Knows nothing of models.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

SMALL_MODEL_BYTES = 64 * 2**20
M_MMAP_THRESHOLD = -3  # mallopt(3)
M_TRIM_THRESHOLD = -1
BFLOAT16_TILES = "amx_bf16"
BFLOAT16_UNITS = {"avx512_bf16", BFLOAT16_TILES}


def choose_device() -> torch.device:
    """The launcher shows each rank one GPU only; torchrun shows all of them and names ours in LOCAL_RANK."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    select(device)
    return device


def select(device: torch.device) -> None:
    """Makes `device` the current one of this thread; CUDA keeps that for each thread."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """`name`, or the fastest dtype that the device computes in hardware."""
    if name:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if has_bfloat16_units() else torch.float32


@functools.cache
def has_bfloat16_units() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; where our kernels do not run, PyTorch needs oneDNN for it."""
    return torch.backends.mkldnn.is_available() and bool(BFLOAT16_UNITS & cpu_flags())


def set_num_threads(num_threads: int | None, world_size: int, device: torch.device) -> int:
    """CPU ranks share the cores; a rank with a GPU needs one thread for its own small work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = 1 if device.type == "cuda" else max(1, cores // world_size)
    torch.set_num_threads(num_threads or default)
    return torch.get_num_threads()


def use_one_thread_for_small_models(weight_bytes: int) -> None:
    """What matrices that stay in a core's cache take is less than what threads take to meet."""
    if weight_bytes < SMALL_MODEL_BYTES:
        torch.set_num_threads(1)


def works(device: torch.device) -> bool:
    """Whether the device is still there for another step: some CUDA errors leave a context in which nothing succeeds."""
    if device.type == "cpu":
        return True
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Within it, glibc takes matrices from the system and gives them back one by one. Left alone it moves its threshold up
    with every one that is freed, keeps them on its heap, and the copies made while loading leave holes there for good."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)
    set_option(M_MMAP_THRESHOLD, 128 * 1024)
    try:
        yield
    finally:
        set_option(M_MMAP_THRESHOLD, 32 * 1024 * 1024)
        # What a layer frees, the next one takes again: given back to the system, every page would cost a fault.
        set_option(M_TRIM_THRESHOLD, 64 * 1024 * 1024)


def send(numbers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor on the device, in order with its other work. Nobody waits for it: CUDA reads pinned memory in its own time."""
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


class Laps:
    """How long the parts of a step took. Work on CUDA runs behind the calls that order it: the device itself notes the time
    there, so that nothing waits at a mark."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.seconds: list[float] = []
        self.events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """A part ends, and the next one begins."""
        if self.on_cuda:
            self.events.append(torch.cuda.Event(enable_timing=True))
            self.events[-1].record()
        else:
            self.seconds.append(time.perf_counter())

    def are_over(self) -> bool:
        """Whether the device has come to the last mark, or will never come there: `micros` says why."""
        try:
            return not self.events or self.events[-1].query()
        except RuntimeError:
            return True

    def micros(self) -> list[int]:
        """Of each part; waits until the device is done with the last one."""
        if self.events:
            self.events[-1].synchronize()
            return [int(start.elapsed_time(end) * 1e3) for start, end in itertools.pairwise(self.events)]
        return [int((end - start) * 1e6) for start, end in itertools.pairwise(self.seconds)]


def idle_micros(before: Laps, after: Laps) -> int:
    """On CUDA, from the last mark of `before` to the first one of `after`, both of which are over."""
    return int(before.events[-1].elapsed_time(after.events[0]) * 1e3) if before.events and after.events else 0


class PeakMemory:
    """The highest resident memory since construction, above what the process held then, in bytes. 0 where unknown."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (Linux, Documentation/filesystems/proc.rst)
        self.start_bytes = _status_bytes("VmRSS")

    def read_bytes(self) -> int:
        return max(0, _status_bytes("VmHWM") - self.start_bytes)


def _status_bytes(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


@functools.cache
def cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))
