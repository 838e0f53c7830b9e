"""Experts of another library's model, each one's matrices in our storage.

In: a loaded module that holds the matrices of all experts in one. Out: a module that is called alike and multiplies by one
expert after the other, as their storage in 8 or 4 bits asks for. Knows nothing of who is sent to which expert.
"""

from collections.abc import Callable
from typing import Any

import torch

from text_generation_server.layers.linear import Linear


def are_experts(module: torch.nn.Module) -> bool:
    """Whether it is of the kind that transformers marks as experts (`use_experts_implementation`)."""
    return hasattr(module, "has_gate") and hasattr(module, "is_transposed") and hasattr(module, "down_proj")


class ExpertsInPlace(torch.nn.Module):
    def __init__(self, experts: Any, make: Callable[[torch.Tensor, torch.Tensor | None], Linear]) -> None:
        """`make` puts a matrix [out, in] and its bias into their storage. Takes the matrices out of `experts`, which still
        says what lies between them."""
        super().__init__()
        up = "gate_up_proj" if experts.has_gate else "up_proj"
        self.up, self.down = _make_linears(experts, up, make), _make_linears(experts, "down_proj", make)
        self.activate = experts._apply_gate if experts.has_gate else experts.act_fn
        self.finish = experts.post_expert_norm if getattr(experts, "has_post_expert_norm", False) else None

    @property
    def weight_bytes(self) -> int:
        return sum(linear.weight_bytes for linear in (*self.up, *self.down))

    def forward(self, hidden: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """hidden [num_tokens, hidden_size]; the experts of each token and their weights [num_tokens, num_chosen] → [num_tokens,
        hidden_size]."""
        output = torch.zeros_like(hidden)
        for expert in expert_ids.unique().tolist():
            rows, places = torch.where(expert_ids == expert)
            answer = self.down[expert](self.activate(self.up[expert](hidden[rows])))
            if self.finish is not None:
                answer = self.finish(answer)
            output.index_add_(0, rows, (answer * weights[rows, places, None]).to(output.dtype))
        return output


def _make_linears(
    experts: Any, name: str, make: Callable[[torch.Tensor, torch.Tensor | None], Linear]
) -> list[Linear]:
    matrices, biases = experts._parameters.pop(name), experts._parameters.pop(f"{name}_bias", None)
    return [
        make(
            (matrix.t() if experts.is_transposed else matrix).detach().contiguous(),
            None if biases is None else biases[index].detach(),
        )
        for index, matrix in enumerate(matrices)
    ]
