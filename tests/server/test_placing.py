"""Which linears of a model become ours: all but those whose module multiplies by the weight itself when it answers."""

from types import SimpleNamespace

import pytest
import torch

from text_generation_server.layers.joined import find_joined
from text_generation_server.layers.rms_norm import replacement
from text_generation_server.models.placing import _multiplies_itself, _place_joined
from text_generation_server.parallel import Parallel


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


class Attention(torch.nn.Module):
    """Reads the same three times, or other states for keys and values, and looks at the outputs in shapes of its own."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(8, 8, bias=bias)
        self.k_proj = torch.nn.Linear(8, 4, bias=bias)
        self.v_proj = torch.nn.Linear(8, 4, bias=bias)

    def forward(self, x: torch.Tensor, states: torch.Tensor | None = None) -> torch.Tensor:
        states = x if states is None else states
        return torch.cat([self.q_proj(x).view(-1), self.k_proj(states).view(-1), self.v_proj(states).view(-1)])


class Model(torch.nn.Module):
    """Reads other states in `cross_attention` only."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.cross_attention = Attention(), Attention(bias=False)


def join(model: torch.nn.Module, quantize: str | None = None) -> list[int]:
    names = find_joined([name for name, _ in model.named_modules()])
    plan = SimpleNamespace(styles={}, parallel=Parallel())
    return [_place_joined(model, group, plan, torch.device("cpu"), quantize) for group in names]


@torch.inference_mode()
def test_linears_that_read_the_same_are_one_and_give_what_they_gave() -> None:
    model, x, y = Model(), torch.randn(3, 8), torch.randn(3, 8)
    expected = [model.attention(x), model.attention(y), model.attention(x, y), model.cross_attention(x, y)]
    assert join(model) == [16 * 8 * 4], "all of the one attention, in float32"
    found = [model.attention(x), model.attention(y), model.attention(x, y), model.cross_attention(x, y)]
    torch.testing.assert_close(found, expected)
    assert type(model.cross_attention.q_proj) is torch.nn.Linear, "whose queries come from elsewhere"


@torch.inference_mode()
def test_one_product_serves_all_that_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Model(), torch.randn(3, 8)
    join(model)
    joined, calls = model.attention.q_proj.linear.joined, []
    multiply = joined.linear.forward
    monkeypatch.setattr(joined.linear, "forward", lambda x: (calls.append(1), multiply(x))[1])
    model.attention(x)
    model.attention(x)
    assert len(calls) == 2


def test_linears_that_are_not_alike_keep_to_themselves() -> None:
    model = Model()
    model.attention.k_proj = torch.nn.Linear(8, 4, bias=False)
    assert join(model) == [0] and type(model.attention.q_proj) is torch.nn.Linear


class LlamaRMSNorm(torch.nn.Module):
    def __init__(self, offset: float = 0.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(16) + 0.5)
        self.variance_epsilon = eps
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.offset + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class WeightlessRMSNorm(LlamaRMSNorm):
    """As Falcon Mamba's, whose weight says nothing of the width that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


@torch.inference_mode()
def test_a_norm_is_replaced_where_the_replacement_says_the_same() -> None:
    norm, x = LlamaRMSNorm(), torch.randn(2, 5, 16)
    found = replacement(norm)
    assert found is not None
    torch.testing.assert_close(found(x), norm(x))


@pytest.mark.parametrize(
    "module",
    [
        LlamaRMSNorm(offset=1.0),  # as Gemma's
        LlamaRMSNorm(eps=1e-6),  # says one thing and does another
        LlamaRMSNorm().bfloat16(),
        WeightlessRMSNorm(),
        torch.nn.LayerNorm(16),
        torch.nn.Linear(16, 16),
    ],
)
def test_other_norms_stay(module: torch.nn.Module) -> None:
    assert replacement(module) is None
