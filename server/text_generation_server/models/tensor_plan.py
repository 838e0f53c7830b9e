"""TensorPlan: which part of each parameter of a transformers model a rank holds, and what its modules do with the parts.

In: a model without weights, and this rank's place. Out: the cuts of its parameters by name, after which the model has this
rank's shapes. Most types say in transformers how they split (`tp_plan`, a style for each module name); what they do not say,
or say wastefully, is in `plans`.
"""

import copy
import dataclasses
import re
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from text_generation_server.cut import Cut
from text_generation_server.errors import ConfigurationError
from text_generation_server.layers.in_place import Style
from text_generation_server.models.plans import ASK_CONFIG, HEAD_WIDTHS, ONE_SHARD_ONLY, PLANS, UNSPLITTABLE
from text_generation_server.parallel import Parallel

LINEAR_STYLES = {
    "colwise": Style.COLUMN,
    "packed_colwise": Style.COLUMN,
    "fused_qkv": Style.COLUMN,
    "colwise_gather_output": Style.COLUMN_GATHERED,
    "rowwise": Style.ROW,
    "rowwise_split_input": Style.ROW_SPLIT,
}
SUMMED = {"moe_tp_experts", "all_reduce"}
KEY_VALUE = ("k_proj", "v_proj")
# What attention modules call their number of heads, or the width of all of them, which is this rank's once they are cut.
HEAD_COUNTS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "num_key_value_heads", "num_kv_heads")
HEAD_TOTALS = (  # and their configurations
    *("num_attention_heads", "num_key_value_heads", "num_kv_heads", "encoder_attention_heads", "decoder_attention_heads"),
)


class TensorPlan:
    def __init__(self, model: Any, parallel: Parallel) -> None:
        """Gives `model`, which is on the meta device, this rank's shapes.

        Raises:
            ConfigurationError: it does not split over so many ranks.
        """
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.parallel = parallel
        self.cuts: dict[str, Cut] = {}
        self.styles: dict[str, Style] = {}
        self.summed: set[str] = set()
        self.zeroed: set[str] = set()  # what rank 0 alone adds
        self.embedding_names: list[str] = []  # an encoder and a decoder may have the same in two places
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        self.num_embeddings = model.get_input_embeddings().weight.shape[0]
        self._counted: set[str] = set()
        if parallel.world_size > 1:
            plan = self._plan()
            self._cut_vocabulary()
            self._follow(plan)

    def _plan(self) -> list[tuple[re.Pattern[str], str]]:
        model_type = self.config.model_type
        attribute, value = UNSPLITTABLE.get(model_type, ("", None))
        if attribute and getattr(self.config, attribute, None) == value:
            raise ConfigurationError(f"model type {model_type!r} with {attribute} runs on one shard only")
        own = [(r"(.*\.)?" + _regex(name), style) for name, style in PLANS.get(model_type, {}).items()]
        theirs = [(_regex(name), style) for name, style in (self.model.tp_plan or {}).items() if name != "lm_head"]
        if model_type in ONE_SHARD_ONLY or not any(style in LINEAR_STYLES for _, style in own + theirs):
            raise ConfigurationError(f"model type {model_type!r} runs on one shard only")
        return [(re.compile(pattern), style) for pattern, style in own + theirs]

    def _cut_vocabulary(self) -> None:
        head, table = self.model.get_output_embeddings(), self.model.get_input_embeddings().weight
        for name, module in list(self.model.named_modules()):
            if isinstance(module, torch.nn.Embedding) and module.weight is table:
                self.embedding_names.append(name)
                module.padding_idx = None  # may be another rank's row; it only matters to training
            elif module is not head:
                continue
            for parameter in [parameter for parameter, _ in module.named_parameters(recurse=False)]:
                dim = -1 if parameter == "bias" else -2
                self._cut(f"{name}.{parameter}", Cut(dim, self.parallel.rank, self.parallel.world_size, padded=True))
            self.styles[name] = Style.COLUMN

    def _follow(self, plan: list[tuple[re.Pattern[str], str]]) -> None:
        for name, module in list(self.model.named_modules()):
            style = _style_of(name, plan)
            if isinstance(module, torch.nn.Linear | Conv1D):
                if name not in self.styles and style in LINEAR_STYLES:
                    self._cut_linear(name, module, style)
            elif style in SUMMED:
                self.summed.add(name)
        for name, _ in list(self.model.named_parameters()):
            if name not in self.cuts:
                self._cut_parameter(name, _style_of(name, plan))

    def _cut_linear(self, name: str, module: Any, style: str) -> None:
        if style == "fused_qkv" and self._fuses_by_heads:
            self._check_groups()
            style = "colwise"
        self.styles[name] = LINEAR_STYLES[style]
        is_row = self.styles[name] in (Style.ROW, Style.ROW_SPLIT)
        is_transposed = isinstance(module, Conv1D)
        cut = self._share(name, module, style, -1 if is_row != is_transposed else -2)
        self._cut(f"{name}.weight", cut)
        if module.bias is not None and not is_row:
            self._cut(f"{name}.bias", dataclasses.replace(cut, dim=-1))
        if self.styles[name] is Style.COLUMN:
            self._check_heads(name)
            self._count_heads(name.rpartition(".")[0])

    def _check_heads(self, name: str) -> None:
        """Of a fused projection, rows may divide where heads do not.

        Raises:
            ConfigurationError: they do not.
        """
        heads, world_size = self.config.num_attention_heads, self.parallel.world_size
        if "att" in name.lower() and heads % world_size:
            raise ConfigurationError(f"{heads} attention heads cannot be split over {world_size} shards")

    def _check_groups(self) -> None:
        """Of heads, each with its queries, key and value in a row.

        Raises:
            ConfigurationError: they do not divide.
        """
        groups = getattr(self.config, "num_kv_heads", None) or self.config.num_attention_heads
        if groups % self.parallel.world_size:
            raise ConfigurationError(f"{groups} groups of heads cannot be split over {self.parallel.world_size} shards")

    def _share(self, name: str, module: Any, style: str, dim: int) -> Cut:
        rank, world_size = self.parallel.rank, self.parallel.world_size
        if style == "packed_colwise":
            return Cut(dim, rank, world_size, (1, 1))
        if style == "fused_qkv":
            return self._fused_share(dim)
        parent_name, _, own_name = name.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        head_dim = getattr(parent, "head_dim", None)
        if own_name == "v_proj":
            head_dim = getattr(parent, "v_head_dim", head_dim)
        if style == "colwise" and own_name in ("q_proj", *KEY_VALUE) and isinstance(head_dim, int):
            num_heads = module.weight.shape[0] // head_dim
            if own_name in KEY_VALUE and num_heads < world_size and world_size % num_heads == 0:
                parent.num_key_value_groups = max(1, self.config.num_attention_heads // world_size)
                return Cut(dim, rank * num_heads // world_size, num_heads)  # neighbouring ranks have the same one
            if num_heads % world_size:
                raise ConfigurationError(f"{num_heads} heads of {name} cannot be split over {world_size} shards")
        return Cut(dim, rank, world_size)

    @property
    def _fuses_by_heads(self) -> bool:
        """GPTBigCode and Falcon do, unless all of their queries share a key: then there are the queries, the key, the value."""
        grouped = getattr(self.config, "new_decoder_architecture", False)
        return grouped or not getattr(self.config, "multi_query", True)

    def _fused_share(self, dim: int) -> Cut:
        """Of queries, keys and values in one matrix. A single key-value head goes to every rank."""
        heads = self.config.num_attention_heads
        is_multi_query = getattr(self.config, "multi_query", False)
        kv_heads = 1 if is_multi_query else getattr(self.config, "num_key_value_heads", None) or heads
        world_size = self.parallel.world_size
        if heads % world_size or (kv_heads > 1 and kv_heads % world_size):
            raise ConfigurationError(f"{heads} and {kv_heads} fused heads cannot be split over {world_size} shards")
        return Cut(dim, self.parallel.rank, world_size, (heads, kv_heads, kv_heads), 2 if kv_heads == 1 else 0)

    def _cut_parameter(self, name: str, style: str | None) -> None:
        rank, world_size = self.parallel.rank, self.parallel.world_size
        is_vector = self.model.get_parameter(name).dim() == 1
        pieces = (1, 1) if style in ("packed_colwise", "packed_rowwise") else (1,)
        if style in ("colwise", "packed_colwise"):
            self._cut(name, Cut(-1 if is_vector else -2, rank, world_size, pieces))
        elif style in ("rowwise", "packed_rowwise") and not is_vector:
            self._cut(name, Cut(-1, rank, world_size, pieces))
        elif style == "first_rank" and rank > 0:
            self.zeroed.add(name)

    def _cut(self, name: str, cut: Cut) -> None:
        parameter = self.model.get_parameter(name)
        if not cut.divides(parameter.shape[cut.dim]):
            size = parameter.shape[cut.dim]
            raise ConfigurationError(f"{size} rows or columns of {name} cannot be split over {cut.count} shards")
        self.cuts[name] = cut
        module_name, _, own_name = name.rpartition(".")
        local = torch.empty(cut.local_shape(parameter.shape), dtype=parameter.dtype, device="meta")
        setattr(self.model.get_submodule(module_name), own_name, torch.nn.Parameter(local, parameter.requires_grad))

    def _count_heads(self, name: str) -> None:
        """Of a module whose forward counts them."""
        if name in self._counted:
            return
        self._counted.add(name)
        module, world_size = self.model.get_submodule(name), self.parallel.world_size
        totals = {getattr(self.config, kind, None) for kind in HEAD_TOTALS} - {None}
        for attribute in HEAD_COUNTS:
            if (count := getattr(module, attribute, 0)) in totals:
                if count % world_size and world_size % count:
                    raise ConfigurationError(f"{count} heads of {name} cannot be split over {world_size} shards")
                setattr(module, attribute, max(1, count // world_size))
        if hasattr(module, width := HEAD_WIDTHS.get(self.config.model_type, "")):
            setattr(module, width, getattr(module, width) // world_size)
        if self.config.model_type in ASK_CONFIG and hasattr(module, "config"):
            module.config = copy.copy(module.config)
            module.config.num_attention_heads //= world_size


def _regex(name: str) -> str:
    return name.replace(".", r"\.").replace("*", r"[^.]+")


def _style_of(name: str, plan: list[tuple[re.Pattern[str], str]]) -> str | None:
    return next((style for pattern, style in plan if pattern.fullmatch(name)), None)
