"""A checkpoint that was quantized before it was saved, read by transformers and the library that quantized it.

In: a folder whose config.json has a `quantization_config`. Out: the model with that library's own linears in it. One rank
only: these libraries' formats know no slices.
"""

from pathlib import Path
from typing import Any

import torch

from text_generation_server.errors import ModelError

READING_ERRORS = (ImportError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, AssertionError)


def method_of(config: Any) -> str | None:
    """What the checkpoint is quantized with; None for one in plain numbers."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method) or "bitsandbytes")  # old files of bitsandbytes do not say


def read_quantized(
    folder: Path, method: str, model_class: Any, config: Any, device: torch.device, dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    """The model on its device, and what transformers says about the tensors that it found.

    Raises:
        ModelError: a package or a GPU is missing that the format needs, or the files do not hold what they should.
    """
    try:
        model, info = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map={"": device},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # then it names them
        )
    except READING_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{folder} is quantized with {method} and cannot be read: {reason}") from error
    return model, info


def size_in_bytes(model: Any) -> int:
    """What a step reads of it beside our own linears: everything but the rows of the embedding."""
    modules = [module for module in model.modules() if not hasattr(module, "weight_bytes")]
    theirs = [module for module in modules if not isinstance(module, torch.nn.Embedding)]
    tensors = [tensor for module in theirs for tensor in (*module._parameters.values(), *module._buffers.values())]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def file_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
