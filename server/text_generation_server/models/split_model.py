"""SplitModel: a transformers model in two parts: its trunk maps tokens to hidden states, its head those to logits.

In: a loaded model. Out: the parts, so that a vocabulary is computed only for the rows that are wanted. The head is the model's
own forward with the trunk left out, so that scales and caps of logits hold. Knows nothing of caches.
"""

import copy
import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_outputs import BaseModelOutputWithPast

from text_generation_server.decoding import Decoding
from text_generation_server.models.decoder_config import DecoderConfig
from text_generation_server.models.transformers_loader import Loaded, TransformersLoader

# What trunks call it: by the first name since transformers 5.24, by the last one rwkv.
CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")


class SplitModel:
    decoding: Decoding | None = None
    fixed_launches = False

    def __init__(self, loaded: Loaded) -> None:
        model = loaded.model
        self.config = DecoderConfig.from_transformers(model.config, loaded.vocab_size)
        self.weight_bytes, self.bytes_read = loaded.weight_bytes, loaded.bytes_read
        name = model.base_model_prefix if hasattr(model, model.base_model_prefix) else "model"
        trunk = model.get_submodule(name)
        self._trunk = trunk.decoder if type(trunk).__name__.endswith("DecoderWrapper") else trunk
        self._trunk_takes = frozenset(inspect.signature(self._trunk.forward).parameters)
        self._head = without_trunk(model, name)
        self._head_takes = "inputs_embeds" if "inputs_embeds" in inspect.signature(model.forward).parameters else "input_ids"

    @staticmethod
    def make_loader(folder: Path) -> TransformersLoader:
        """
        Raises:
            ModelError: transformers does not know the model.
        """
        return TransformersLoader(folder, transformers.AutoModelForCausalLM, None)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [num_rows, hidden_size] → this rank's logits [num_rows, vocab_size_local] float32, with all that the model
        does to them."""
        logits: torch.Tensor = self._head(**{self._head_takes: hidden.unsqueeze(0), "use_cache": False}).logits
        return logits.squeeze(0).float()


class _Given(torch.nn.Module):
    """Stands where the trunk was: hands on the hidden states that it is given."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.__dict__["trunk"] = trunk  # past torch's book of submodules

    @property
    def decoder(self) -> "_Given":
        """Some models call a part of their trunk."""
        return self

    def forward(
        self, input_ids: torch.Tensor | None = None, *_: Any, inputs_embeds: torch.Tensor | None = None, **__: Any
    ) -> "GivenOutput":
        return GivenOutput(last_hidden_state=input_ids if inputs_embeds is None else inputs_embeds)

    def __getattr__(self, name: str) -> Any:
        """Some heads ask the trunk for a factor."""
        return getattr(self.__dict__["trunk"], name)


class GivenOutput(BaseModelOutputWithPast):
    """Has nothing else that a trunk may have to say."""

    def __getattr__(self, name: str) -> None:
        return None


def without_trunk(model: Any, name: str) -> Any:
    """The model, but its trunk hands on what it is given: its forward is then the way from hidden states to logits."""
    head = copy.copy(model)
    head._modules = dict(model._modules)
    head.set_submodule(name, _Given(model.get_submodule(name)))
    return head
