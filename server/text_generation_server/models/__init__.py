"""The registry: model types and the classes that serve them, and what a model folder says about itself.

In: a model folder. Out: its description, and the loaded model. Adding a model is one file and one line here.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from text_generation_server.errors import ConfigurationError, ModelError
from text_generation_server.models.bloom import Bloom, BloomConfig
from text_generation_server.parallel import Parallel
from text_generation_server.weights import Weights

if TYPE_CHECKING:
    from text_generation_server.models.transformers_decoder import TransformersDecoder

NATIVE = {"bloom": (BloomConfig, Bloom)}
# Served through transformers' own modules, each compared with transformers in tests/server/test_transformers_decoder.py.
ADAPTED = (
    *("apertus", "arcee", "biogpt", "cohere", "cohere2", "cwm", "ernie4_5", "ernie4_5_moe", "exaone4", "gemma", "gemma2"),
    *("gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_neox", "granite", "granitemoe", "granitemoeshared", "helium"),
    *("hunyuan_v1_dense", "internlm3", "llama", "ministral", "mistral", "mixtral", "nanochat", "olmo", "olmo2", "olmo3"),
    *("olmoe", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3"),
    *("starcoder2", "vaultgemma"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFolder:
    path: Path
    model_type: str
    config: dict[str, Any]
    eos_token_ids: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> "ModelFolder":
        """
        Raises:
            ModelError: no such folder, no config.json in it, or a model type that is not served.
        """
        if not path.is_dir():
            raise ModelError(f"there is no model folder {path}")
        config = _read_json(path / "config.json")
        model_type = config.get("model_type", "")
        if model_type not in NATIVE and model_type not in ADAPTED:
            served = ", ".join([*NATIVE, *ADAPTED])
            raise ModelError(f"model type {model_type!r} of {path} is not served; served are: {served}")
        generation = path / "generation_config.json"
        eos = config.get("eos_token_id")
        if generation.exists():
            eos = _read_json(generation).get("eos_token_id", eos)
        return cls(path, model_type, config, () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,))

    def check_world_size(self, world_size: int) -> None:
        """
        Raises:
            ConfigurationError: the model does not split over so many shards.
        """
        if self.model_type in ADAPTED:
            if world_size > 1:
                raise ConfigurationError(f"model type {self.model_type!r} runs on one shard only")
            return
        Parallel(0, world_size).split(self._model_config().num_heads, "attention heads")

    def load(
        self, device: torch.device, dtype: torch.dtype, parallel: Parallel, quantize: str | None
    ) -> tuple["Bloom | TransformersDecoder", int]:
        """This rank's part of the model, every tensor of the checkpoint accounted for, and how many bytes of it were read.

        Raises:
            ModelError, ConfigurationError: with one line that says what does not fit.
        """
        if self.model_type in ADAPTED:
            return self._load_adapted(device, dtype, quantize)
        _, model_class = NATIVE[self.model_type]
        weights = Weights(self.path, device, dtype, model_class.prefix)
        model = model_class(self._model_config(), weights, parallel, quantize)
        weights.check_all_used()
        return model, weights.bytes_read

    def _load_adapted(
        self, device: torch.device, dtype: torch.dtype, quantize: str | None
    ) -> tuple["TransformersDecoder", int]:
        # Here, because transformers takes seconds to import, and BLOOM does without.
        from text_generation_server.models.transformers_decoder import TransformersDecoder

        model = TransformersDecoder(self.path, device, dtype, quantize)
        return model, model.bytes_read

    def _model_config(self) -> BloomConfig:
        config_class, _ = NATIVE[self.model_type]
        try:
            return config_class.from_json(self.config)
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
