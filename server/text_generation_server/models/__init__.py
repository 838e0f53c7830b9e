"""What a model folder says about itself, and the way from it to a loaded model.

In: a model folder. Out: its description, and the loaded model. Which types are served, and how, the registry knows.
"""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import torch

from text_generation_server import cpu_kernels
from text_generation_server.device import has_bfloat16_units
from text_generation_server.errors import ConfigurationError, ModelError
from text_generation_server.models.contract import Model
from text_generation_server.models.registry import Way, find_way
from text_generation_server.parallel import Parallel
from text_generation_server.random_weights import RandomWeights
from text_generation_server.weights import Weights


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFolder:
    path: Path
    model_type: str
    config: dict[str, Any]
    eos_token_ids: tuple[int, ...]
    way: Way

    @classmethod
    def read(cls, path: Path, trust_remote_code: bool = False) -> "ModelFolder":
        """
        Raises:
            ModelError: no such folder, no config.json in it, or a model type that is not served.
        """
        if not path.is_dir():
            raise ModelError(f"there is no model folder {path}")
        config = _read_json(path / "config.json")
        try:
            way = find_way(config, trust_remote_code)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        generation = path / "generation_config.json"
        eos = config.get("eos_token_id")
        if generation.exists():
            eos = _read_json(generation).get("eos_token_id", eos)
        eos_token_ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
        return cls(path, config.get("model_type", ""), config, eos_token_ids, way)

    def check_world_size(self, world_size: int) -> None:
        """
        Raises:
            ConfigurationError: the model does not split over so many shards.
        """
        if world_size > 1 and self.way is Way.OWN_CODE:
            raise ConfigurationError(f"{self.path} runs code of its own, and that on one shard only: --num-shard 1")
        if world_size > 1 and self.config.get("quantization_config") is not None:
            raise ConfigurationError(f"{self.path} is quantized already, and runs on one shard only: --num-shard 1")
        model_class = self._model_class()  # also for one shard: a library that takes seconds, or is missing, comes first
        if self.way.is_native:
            self._native_config(model_class).check_split(Parallel(0, world_size))
        elif world_size > 1:
            model_class.make_loader(self.path).plan(Parallel(0, world_size))

    def load(
        self, device: torch.device, dtype: torch.dtype, parallel: Parallel, quantize: str | None, random_weights: bool = False
    ) -> tuple[Model, int]:
        """This rank's part of the model, every tensor of the checkpoint accounted for, and how many bytes of it were read.
        With `random_weights` no checkpoint is looked at.

        Raises:
            ModelError, ConfigurationError: with one line that says what does not fit.
        """
        model_class = self._model_class()
        if not self.way.is_native:
            if random_weights:
                raise ConfigurationError(f"{self.path}: only BLOOM, Llama, Mistral and Qwen2 run with --random-weights")
            model = model_class(self.path, device, dtype, parallel, quantize)
            return model, model.bytes_read
        read = RandomWeights if random_weights else Weights
        weights = read(self.path, device, self.hidden_dtype(dtype, device), model_class.prefix, matrix_dtype=dtype)
        model = model_class(self._native_config(model_class), weights, parallel, quantize)
        weights.check_all_used()
        return model, weights.bytes_read

    def hidden_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """Of hidden states and all else that is no matrix, where matrices are `dtype`. CPUs multiply matrices in 16 bits, in
        units of their own or widened as they are read; the rest is as fast in float32, and loses nothing there."""
        if not self.way.is_native or device.type != "cpu":
            return dtype
        multiplies = cpu_kernels.library() or (dtype == torch.bfloat16 and has_bfloat16_units())
        return torch.float32 if multiplies else dtype

    def _model_class(self) -> Any:
        """Imported here, because transformers takes seconds to import, and our own models do without."""
        module, name = self.way.value
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)

    def _native_config(self, model_class: Any) -> Any:
        try:
            return model_class.config_class.from_json(self.config)
        except KeyError as error:
            raise ModelError(f"config.json of {self.path} lacks {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is no JSON object")
    return content
