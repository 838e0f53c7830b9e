"""Placing: our modules take the places of a loaded transformers model's own, as the plan says, on the model's device.

In: a model with this rank's weights on the CPU. Out: the same model, ready to run. One matrix after the other is moved and
stored anew, so that no more than one is there twice.
"""

import ast
import functools
import inspect
import re
import textwrap
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from text_generation_server.errors import ConfigurationError
from text_generation_server.layers.experts import ExpertsInPlace, are_experts
from text_generation_server.layers.in_place import EmbeddingInPlace, LinearInPlace, Style, SummedInPlace
from text_generation_server.layers.joined import Joined, JoinedPart, find_joined
from text_generation_server.layers.linear import head_storage, make_linear
from text_generation_server.layers.rms_norm import replacement
from text_generation_server.models.tensor_plan import TensorPlan


def put_in_place(model: Any, plan: TensorPlan, device: torch.device, quantize: str | None) -> int:
    """Returns what the matrices that were placed occupy."""
    for name in plan.zeroed:
        model.get_parameter(name).data.zero_()
    _move_embedding(model, device)
    head = _name_of(model, model.get_output_embeddings())
    names = [name for name, _ in model.named_modules()]
    weight_bytes = sum(_place_joined(model, group, plan, device, quantize) for group in find_joined(names))
    kinds = {name: head_storage(quantize) if name == head else quantize for name in names}
    weight_bytes += sum(_place_linear(model, name, plan, device, kinds[name]) for name in names)
    experts = [name for name in names if are_experts(model.get_submodule(name))]
    if quantize:  # unless they are, transformers' own way is the better one: all of them in one call
        weight_bytes += sum(_place_experts(model, name, device, quantize) for name in experts)
    for name in plan.summed:
        model.set_submodule(name, SummedInPlace(model.get_submodule(name), plan.parallel))
    start = plan.parallel.split_padded(plan.num_embeddings).start
    for name in plan.embedding_names:
        model.set_submodule(name, EmbeddingInPlace(model.get_submodule(name), start, plan.parallel))
    model.to(device)
    norms = {name: norm for name, module in model.named_modules() if (norm := replacement(module))}
    for name, norm in norms.items():
        model.set_submodule(name, norm)
    return weight_bytes


def _move_embedding(model: Any, device: torch.device) -> None:
    """With the head, where they are one: moved one by one they would be two."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = getattr(head, "weight", None) is embedding.weight
    embedding.to(device)
    if is_tied:
        head.weight = embedding.weight


def _place_linear(model: Any, name: str, plan: TensorPlan, device: torch.device, quantize: str | None) -> int:
    module: Any = model.get_submodule(name)
    style = plan.styles.get(name, Style.WHOLE)
    if not _is_plain_linear(module) or (style is Style.WHOLE and _reads_weight(model, name)):
        if style is not Style.WHOLE and isinstance(module, torch.nn.Linear):
            raise ConfigurationError(f"{name} is a {type(module).__name__}, which cannot be split over shards")
        return 0
    is_row = style in (Style.ROW, Style.ROW_SPLIT)
    weight = (module.weight.t().contiguous() if isinstance(module, Conv1D) else module.weight).detach().to(device)
    has_bias = module.bias is not None and (plan.parallel.is_first or not is_row)
    linear = make_linear(weight, module.bias.detach().to(device) if has_bias else None, quantize)
    model.set_submodule(name, LinearInPlace(linear, style, plan.parallel, weight))
    return linear.weight_bytes


def _place_joined(model: Any, names: tuple[str, ...], plan: TensorPlan, device: torch.device, quantize: str | None) -> int:
    """One multiplication for linears that read the same, where they are plain and alike. Otherwise each keeps to itself."""
    modules: list[Any] = [model.get_submodule(name) for name in names]
    styles = {plan.styles.get(name, Style.WHOLE) for name in names}
    has_bias = {module.bias is not None for module in modules if _is_plain_linear(module)}
    if not all(map(_is_plain_linear, modules)) or any(isinstance(module, Conv1D) for module in modules):
        return 0
    if not styles <= {Style.WHOLE, Style.COLUMN} or len(styles) > 1 or len(has_bias) > 1:
        return 0
    if any(_reads_weight(model, name) for name in names):
        return 0
    weight = torch.cat([module.weight.detach() for module in modules]).to(device)
    bias = torch.cat([module.bias.detach() for module in modules]).to(device) if True in has_bias else None
    joined = Joined(make_linear(weight, bias, quantize), [len(module.weight) for module in modules])
    for index, name in enumerate(names):
        like = modules[index].weight
        model.set_submodule(name, LinearInPlace(JoinedPart(joined, index), Style.WHOLE, plan.parallel, like))
    return joined.linear.weight_bytes


def _place_experts(model: Any, name: str, device: torch.device, quantize: str) -> int:
    module = model.get_submodule(name)
    experts = ExpertsInPlace(module.to(device), lambda weight, bias: make_linear(weight, bias, quantize))
    model.set_submodule(name, experts)
    return experts.weight_bytes


def _is_plain_linear(module: torch.nn.Module) -> bool:
    """Routers of experts may inherit from it, and do more; Falcon's does the same in other words."""
    kind = type(module)
    if "forward" in vars(module):  # another library has wrapped it
        return False
    return isinstance(module, Conv1D) or kind.forward is torch.nn.Linear.forward or kind.__name__ == "FalconLinear"


def _reads_weight(model: Any, name: str) -> bool:
    parent_name, _, own_name = name.rpartition(".")
    kind: Any = type(model.get_submodule(parent_name))
    return _multiplies_itself(kind, own_name)


@functools.cache
def _multiplies_itself(kind: Any, name: str) -> bool:
    """Whether a module multiplies by the weight of its linear `name` itself, or moves it: then that must stay what it is."""
    source = _source(kind)
    if re.search(rf"self\.{name}\.(weight|to\()", source) is None:
        return False
    return _uses_weight(ast.parse(textwrap.dedent(source)), f"self.{name}")


@functools.cache
def _source(kind: Any) -> str:
    return inspect.getsource(kind)  # it parses the whole file


def _uses_weight(node: ast.AST, linear: str) -> bool:
    """Other than for asking what it is. What is for training only does not count."""
    match node:
        case ast.If(test=test, orelse=rest) if "self.training" in ast.unparse(test).split(" and "):
            return any(_uses_weight(child, linear) for child in rest)
        case ast.Attribute(value=value, attr="dtype" | "device" | "shape") if ast.unparse(value) == f"{linear}.weight":
            return False
        case ast.Call(func=ast.Name(id="isinstance")):
            return False
        case ast.Attribute(attr="weight" | "to") if ast.unparse(node) in (f"{linear}.weight", f"{linear}.to"):
            return True
    return any(_uses_weight(child, linear) for child in ast.iter_child_nodes(node))


def _name_of(model: Any, wanted: torch.nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)
