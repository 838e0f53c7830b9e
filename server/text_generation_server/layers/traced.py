"""Traced: a part of a model recorded once, and played without Python: between a decode step's small products on a CPU, Python
takes as long as they do.

In: a module. Out: a function that does the same. GPUs have their own way to play operations again.
"""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch

from text_generation_server.layers.quantized import FourBitLinear

logger = logging.getLogger(__name__)

UNRECORDED = (FourBitLinear,)  # its kernels are chosen by the number of rows
REFUSALS = (RuntimeError, TypeError, ValueError, AttributeError)  # of whatever else it cannot, and of Pythons too new for it


@torch.inference_mode()
def traced(module: torch.nn.Module, world_size: int, *examples: torch.Tensor) -> Callable[..., Any]:
    """`module` calls the same operations for any number of rows, and is recorded with `examples` of two. It stays as it is
    where it cannot be: ranks that meet within it, for one."""
    on_cpu = all(example.device.type == "cpu" for example in examples)
    if world_size > 1 or not on_cpu or any(isinstance(part, UNRECORDED) for part in module.modules()):
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is to take its place needs a compiler, and minutes
        try:
            return torch.jit.trace(module, examples, check_trace=False)
        except REFUSALS as error:
            logger.info("%s is not recorded: %s", type(module).__name__, str(error).splitlines()[0])
            return module
