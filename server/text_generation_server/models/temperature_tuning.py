"""Temperature tuning: queries that grow with their position, in Llama 4's layers without rotary positions (Nakanishi 2025,
arXiv:2501.19399).

In: a loaded model. Out: its queries, tuned. transformers counts positions from the first token that a forward is given, which
are those of one sequence with a cache of its own only.
"""

from typing import Any

import torch


def take_over(model: torch.nn.Module) -> None:
    """From transformers' modules, for good."""
    modules: list[Any] = list(model.modules())
    for module in modules:
        if getattr(module, "attn_temperature_tuning", False) and not module.use_rope:
            module.attn_temperature_tuning, module.is_tuned_outside = False, True


def tuned(module: Any, query: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """query [1, num_heads, num_tokens, head_dim], positions [num_tokens]. As it is where nothing was taken from the module."""
    if positions is None or not getattr(module, "is_tuned_outside", False):
        return query
    scales = torch.log1p(torch.floor((positions.float() + 1) / module.floor_scale)) * module.attn_scale + 1
    return (query * scales[:, None]).to(query.dtype)
