"""Matrices in bitsandbytes' own formats: 8 bits on CUDA, 4 bits on CUDA and on CPU.

In: a rank's slice of a weight. Out: a module that multiplies by it. bitsandbytes is imported only when asked for. On GPUs our
own kernels multiply the few rows of a decode step, and bitsandbytes the many of a prompt.
"""

import importlib
import logging
from types import ModuleType

import torch

from text_generation_server import kernels
from text_generation_server.errors import ConfigurationError

# LLM.int8: activation columns with an entry beyond this stay in 16 bits (Dettmers et al. 2022, arXiv:2208.07339).
OUTLIER_THRESHOLD = 6.0
FEW_ROWS = 8


class Int8Linear(torch.nn.Module):
    """LLM.int8: rows of the weight and rows of the input in 8 bits, outlier columns in full. Few rows stay as they are."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        bnb = import_bitsandbytes()
        self.state = bnb.MatmulLtState()
        self.state.threshold = OUTLIER_THRESHOLD
        self.state.has_fp16_weights = False
        self.state.CB, self.state.SCB, _ = bnb.functional.int8_vectorwise_quant(weight.half())  # its kernel takes 16 bits only
        self.matmul = bnb.matmul
        self.matvec = _import_matvec(weight.device)
        self.bias = bias

    @property
    def weight_bytes(self) -> int:
        return self.state.CB.nbytes + self.state.SCB.nbytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.matvec and _has_few_rows(x):
            return self.matvec.multiply_int8(x, self.state.CB, self.state.SCB, self.bias)
        return self.matmul(x, self.state.CB, bias=self.bias, state=self.state)


class FourBitLinear(torch.nn.Module):
    """nf4 or fp4 (Dettmers et al. 2023, arXiv:2305.14314): blocks of 64 weights in 4 bits with one scale."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, quant_type: str) -> None:
        super().__init__()
        bnb = import_bitsandbytes()
        self.packed, self.state = bnb.functional.quantize_4bit(weight, quant_type=quant_type)
        self.matmul = bnb.matmul_4bit
        rows_are_blocks = weight.shape[1] % self.state.blocksize == 0
        self.matvec = _import_matvec(weight.device) if rows_are_blocks else None
        self.code = self.state.code.to(weight.dtype)
        self.bias = bias

    @property
    def weight_bytes(self) -> int:
        return self.packed.nbytes + self.state.absmax.nbytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.matvec and _has_few_rows(x):
            return self.matvec.multiply_4bit(x, self.packed, self.state.absmax, self.code, self.bias)
        return self.matmul(x, self.packed.t(), self.state, bias=self.bias)


def import_bitsandbytes() -> ModuleType:
    # It warns at every call that inputs in another type than float16 are cast, which they always are.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ConfigurationError("--quantize needs bitsandbytes: pip install bitsandbytes") from error


def _import_matvec(device: torch.device) -> ModuleType | None:
    """Our kernels for few rows, where they run."""
    if not kernels.run_on(device):
        return None
    from text_generation_server.layers import matvec

    return matvec


def _has_few_rows(x: torch.Tensor) -> bool:
    return x.numel() <= FEW_ROWS * x.shape[-1]
