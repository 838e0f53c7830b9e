"""Where our Triton kernels run. Modules that have some are imported there and nowhere else: a CPU has no use for Triton.

In: a device. Out: yes or no; where it is no, PyTorch's own operations do the same.
"""

import functools
import importlib
import logging
import subprocess

import torch

logger = logging.getLogger(__name__)

MIN_CAPABILITY = (8, 0)  # the first with bfloat16
FLOAT8_CAPABILITY = (8, 9)  # Triton has no float8_e4m3fn for those before


@functools.cache
def run_on(device: torch.device) -> bool:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return False
    try:  # it builds the loader of its kernels on the spot: a C compiler, Python's headers, libcuda, a folder for its cache
        importlib.import_module("triton.runtime").driver.active.get_current_target()
    except (ImportError, OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        logger.warning("no kernels of our own on %s, answers will come slower: %s", device, error)
        return False
    return True


def read_float8_on(device: torch.device) -> bool:
    return run_on(device) and torch.cuda.get_device_capability(device) >= FLOAT8_CAPABILITY
