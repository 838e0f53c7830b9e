"""Which GPUs this launcher may give to its shards.

In: the environment, and where that says nothing the NVIDIA driver. Out: one CUDA_VISIBLE_DEVICES value per GPU.
Asks neither torch nor CUDA: a process that has asked CUDA holds memory on every GPU.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
NVIDIA_SMI_SECONDS = 20.0


def visible_devices(environment: Mapping[str, str]) -> list[str]:
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return _cuda_list(chosen)
    given = environment.get("NVIDIA_VISIBLE_DEVICES", "all").strip()
    if given == "none":
        return []
    if given in ("", "all", "void"):  # "void": the container got its GPUs in another way, or has none
        return _numbered(_count_driver_gpus())
    return _numbered(len(given.split(",")))


def _cuda_list(text: str) -> list[str]:
    """CUDA itself stops at the first entry that is no device: "0,-1,1" is GPU 0 alone."""
    devices: list[str] = []
    for entry in (entry.strip() for entry in text.split(",")):
        if not entry or entry.startswith("-"):
            break
        devices.append(entry)
    return devices


def _numbered(count: int) -> list[str]:
    """NVIDIA_VISIBLE_DEVICES names GPUs of the host; inside the container they count from 0."""
    return [str(index) for index in range(count)]


def _count_driver_gpus() -> int:
    if DRIVER_GPUS.is_dir():
        return len(list(DRIVER_GPUS.iterdir()))
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
