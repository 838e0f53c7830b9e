"""Selective scan: how a Mamba layer takes in a prompt, on a CPU (Gu and Dao, arXiv 2312.00752, equation 2 and algorithm 2).

In: what such a layer computes of each token. Out: what it makes of the tokens before, and the state they leave. Takes the place
of transformers' function of the same arguments, whose innermost dimension is the short one: that costs a CPU four to six times
as much.
"""

from typing import Any

import torch
from torch.nn import functional

TOKENS_AT_ONCE = 16  # their states stay in the core's cache


def selective_scan(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    # A to D have the names of the paper, and of the callers.
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """hidden_states, dt, z [num_rows, width, length]; A [width, state_size]; B, C [num_rows, state_size, length]; D and
    delta_bias [width] → [num_rows, width, length], with the last state [num_rows, width, state_size] if it is wanted."""
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[:, None]
    if delta_softplus:
        dt = functional.softplus(dt)
    dt = dt.float()
    scanned, state = _scan(dt, dt * hidden_states.float(), A.float().t(), B.float(), C)
    if D is not None:
        scanned = scanned + hidden_states * D[:, None]
    if z is not None:
        scanned = scanned * functional.silu(z)
    return (scanned, state) if return_last_state else scanned


def _scan(
    dt: torch.Tensor, inputs: torch.Tensor, decay: torch.Tensor, write: torch.Tensor, read: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dt, inputs [num_rows, width, length], decay [state_size, width], write, read [num_rows, state_size, length] →
    [num_rows, width, length] and the state [num_rows, width, state_size]."""
    dt, inputs, write, read = (tensor.movedim(-1, 0).contiguous() for tensor in (dt, inputs, write, read))
    state, scanned = torch.zeros_like(decay), []
    for first in range(0, len(dt), TOKENS_AT_ONCE):
        some = slice(first, first + TOKENS_AT_ONCE)
        kept = torch.exp(dt[some, :, None] * decay)  # [TOKENS_AT_ONCE, num_rows, state_size, width]
        states = inputs[some, :, None] * write[some, :, :, None]
        for share, token_state in zip(kept, states, strict=True):
            state = token_state.addcmul_(share, state)
        scanned.append((read[some].unsqueeze(-2) @ states.to(read.dtype)).squeeze(-2))
    return torch.cat(scanned).movedim(0, -1), state.transpose(1, 2).contiguous()
