"""Decoders of the transformers library, with our paged attention and our linears put into their own modules from outside.

In: a model folder. Out: the same contract as a native model: packed token ids to hidden states, hidden states to logits.
transformers' loader reads the weights, so names and formats are its business. Every attention layer calls the function that
is registered here, and finds the forward's cache in a keyword that the model hands down: no state outside the call.
One rank only. Knows nothing of sequences.
"""

import copy
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.sdpa import Attend, AttentionKind, PagedAttention
from text_generation_server.errors import ModelError
from text_generation_server.kv_cache import KVCache
from text_generation_server.layers.linear import Linear, make_linear
from text_generation_server.models.decoder_config import DecoderConfig

PAGED = "text_generation_paged"


class TransformersDecoder:
    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, quantize: str | None) -> None:
        """
        Raises:
            ModelError: transformers cannot load the folder.
        """
        ALL_ATTENTION_FUNCTIONS.register(PAGED, _attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(PAGED, _no_mask)  # what may be seen, the attention itself knows
        model = _load(folder, dtype).to(device).eval()
        self.config = DecoderConfig.from_transformers(model.config, model.get_output_embeddings().weight.shape[0])
        self.num_kv_heads = self.config.num_kv_heads
        self.weight_bytes = _replace_linears(model, quantize)
        self.bytes_read = sum(parameter.nbytes for parameter in model.parameters()) + self.weight_bytes
        self._trunk = model.get_submodule(model.base_model_prefix)
        self._head = _without_trunk(model)

    def make_attention(self, cache: KVCache) -> PagedAttention:
        return PagedAttention(cache, self.config.num_heads)

    def forward(self, token_ids: torch.Tensor, context: ForwardContext, attention: PagedAttention) -> torch.Tensor:
        """token_ids [num_tokens] → hidden states [num_tokens, hidden_size]."""
        output = self._trunk(
            input_ids=token_ids.unsqueeze(0),
            position_ids=context.positions.unsqueeze(0),
            use_cache=False,
            attend=attention.bind(context, attention.cache.keys[0].dtype),
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden.squeeze(0)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [num_rows, hidden_size] → logits [num_rows, vocab_size] float32, with all that the model does to them."""
        logits: torch.Tensor = self._head(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits
        return logits.squeeze(0).float()


class _LinearInPlace(torch.nn.Module):
    """One of our linears where transformers had one of its own."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class _Given(torch.nn.Module):
    """Stands where the trunk was: hands on the hidden states that it is given."""

    @property
    def decoder(self) -> "_Given":
        """Some models call a part of their trunk."""
        return self

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> "_Output":
        return _Output(last_hidden_state=inputs_embeds)


class _Output(BaseModelOutputWithPast):
    """Has nothing else that a trunk may have to say."""

    def __getattr__(self, name: str) -> None:
        return None


def _load(folder: Path, dtype: torch.dtype) -> Any:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=PAGED, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"transformers cannot load {folder}: {str(error).splitlines()[0]}") from error
    model, info = loaded
    _refuse_what_depends_on_the_batch(model.config)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := sorted(map(str, info[kind])):
            raise ModelError(f"the checkpoint has {len(found)} {kind.replace('_', ' ')}, such as {found[0]}")
    return model


def _refuse_what_depends_on_the_batch(config: Any) -> None:
    """Some rotary positions are scaled by the longest sequence of the batch: here a batch has sequences of all lengths."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if found := kinds & {"dynamic", "longrope"}:
        raise ModelError(f"rotary positions of type {found.pop()!r} change with the length of the text, which cannot be paged")


def _replace_linears(model: Any, quantize: str | None) -> int:
    """Puts our linears in the place of the model's, one after the other so that no more than one is there twice. The head is
    not quantized. Returns what they occupy."""
    weight_bytes, head = 0, model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear | Conv1D):
            weight = module.weight.t().contiguous() if isinstance(module, Conv1D) else module.weight
            linear = make_linear(weight.detach(), _detached(module.bias), None if module is head else quantize)
            weight_bytes += linear.weight_bytes
            model.set_submodule(name, _LinearInPlace(linear))
    return weight_bytes


def _detached(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.detach()


def _without_trunk(model: Any) -> Any:
    """The model, but its trunk hands on what it is given: its forward is then the way from hidden states to logits."""
    head = copy.copy(model)
    head._modules = dict(model._modules)
    head.set_submodule(model.base_model_prefix, _Given())
    return head


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    attend: Attend | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What every attention layer calls: query, key and value [1, heads, num_tokens, head_dim] → [1, num_tokens, heads,
    head_dim]."""
    if attend is None or attention_mask is not None or s_aux is not None:
        raise ModelError(f"{type(module).__name__} asks for attention that cannot be paged here")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = AttentionKind(float(scale), sliding_window, softcap)
    query, key, value = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    return attend(int(module.layer_idx), query, key, value, kind).unsqueeze(0), None  # type: ignore[arg-type]
