"""Decoders of the transformers library, with our paged attention and our linears put into their own modules from outside.

In: a model folder. Out: the same contract as a native model: packed token ids to hidden states, hidden states to logits.
transformers' loader reads the weights, so names and formats are its business. Every attention layer calls the function that
is registered here, and finds the forward's cache in a keyword that the model hands down: no state outside the call.
Knows nothing of sequences.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from text_generation_server.attention import make_attention
from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import Attend, Attention, AttentionKind
from text_generation_server.errors import ModelError
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.models import temperature_tuning
from text_generation_server.models.contract import PagedModel
from text_generation_server.models.decoder_config import refuse_dynamic_rope
from text_generation_server.models.split_model import SplitModel
from text_generation_server.models.transformers_loader import TransformersLoader
from text_generation_server.parallel import Parallel

PAGED = "text_generation_paged"


class TransformersDecoder(SplitModel, PagedModel):
    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, parallel: Parallel, quantize: str | None
    ) -> None:
        """
        Raises:
            ModelError: transformers cannot load the folder, or its attention cannot be paged.
            ConfigurationError: it does not split over so many ranks.
        """
        super().__init__(self.make_loader(folder).load(device, dtype, parallel, quantize))
        self.dtype = dtype
        temperature_tuning.take_over(self._trunk)
        self.kv_shapes = self._find_kv_shapes(device)

    @staticmethod
    def make_loader(folder: Path) -> TransformersLoader:
        """
        Raises:
            ModelError: transformers does not know the model, or it cannot be paged.
        """
        ALL_ATTENTION_FUNCTIONS.register(PAGED, _attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(PAGED, _no_mask)  # what may be seen, the attention itself knows
        loader = TransformersLoader(folder, transformers.AutoModelForCausalLM, PAGED)
        refuse_dynamic_rope(loader.config)
        return loader

    def make_attention(self, cache: KVCache) -> Attention:
        return make_attention(cache)

    def forward(self, token_ids: torch.Tensor, context: ForwardContext, attention: Attention) -> torch.Tensor:
        """token_ids [num_tokens] → hidden states [num_wanted, hidden_size]."""
        return context.pick_wanted(self._run(token_ids, context.positions, attention.bind(context, self.dtype)))

    def _run(self, token_ids: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        output = self._trunk(
            input_ids=token_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            attend=attend,
            packed_positions=positions,
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden.squeeze(0)

    @torch.inference_mode()
    def _find_kv_shapes(self, device: torch.device) -> list[KVShape]:
        """What each layer asks to keep of a token: it is run once, with attention that only looks at what it is given."""
        shapes: dict[int, KVShape] = {}

        def look(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: AttentionKind
        ) -> torch.Tensor:
            shapes[layer] = KVShape(key.shape[1], key.shape[2], value.shape[2])
            return query.new_zeros(*query.shape[:2], value.shape[2])

        self._run(torch.zeros(1, dtype=torch.long, device=device), torch.zeros(1, dtype=torch.long, device=device), look)
        if sorted(shapes) != list(range(len(shapes))) or not shapes:
            raise ModelError(f"layers {sorted(shapes)} keep keys and values, which cannot be paged")
        return [shapes[layer] for layer in sorted(shapes)]


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
    packed_positions: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What every attention layer calls: query, key and value [1, heads, num_tokens, head_dim] → [1, num_tokens, heads,
    value_dim]."""
    if attend is None or attention_mask is not None:
        raise ModelError(f"{type(module).__name__} asks for attention that cannot be paged here")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = AttentionKind(float(scale), sliding_window or _window_of(module), _chunk_of(module), softcap, s_aux)
    query = temperature_tuning.tuned(module, query, packed_positions)
    query, key, value = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    return attend(int(module.layer_idx), query, key, value, kind).unsqueeze(0), None  # type: ignore[arg-type]


def _window_of(module: Any) -> int | None:
    """Qwen2-MoE says in its configuration alone which layers see only a window."""
    return getattr(module.config, "sliding_window", None) if _layer_type(module) == "sliding_attention" else None


def _chunk_of(module: Any) -> int | None:
    """Llama 4 says so of layers that see only a chunk."""
    return int(module.config.attention_chunk_size) if _layer_type(module) == "chunked_attention" else None


def _layer_type(module: Any) -> str:
    layer_types = getattr(module.config, "layer_types", None)
    return str(layer_types[module.layer_idx]) if layer_types else ""
