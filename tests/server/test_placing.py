"""Which linears of a model become ours: all but those whose module multiplies by the weight itself when it answers."""

import pytest
import torch

from text_generation_server.models.placing import _multiplies_itself


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.called, self.read, self.moved, self.in_training, self.otherwise = (torch.nn.Linear(4, 4) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and x.shape[0] > 1:
            return x @ self.in_training.weight
        elif self.training:
            return x
        else:
            x = x @ self.otherwise.weight
        if isinstance(self.called.weight, torch.Tensor):
            x = x.to(self.called.weight.dtype)
        return self.moved.to(x.device)(self.called(x) + x @ self.read.weight)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("called", False), ("read", True), ("moved", True), ("in_training", False), ("otherwise", True)],
)
def test_whoever_multiplies_by_a_weight_itself_keeps_its_linear(name: str, expected: bool) -> None:
    assert _multiplies_itself(Layer, name) == expected
