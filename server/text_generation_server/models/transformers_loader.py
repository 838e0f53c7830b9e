"""A model folder becomes a transformers model with this rank's part of the weights, and our linears in it.

In: a folder, this rank's place, how to store the weights. Out: the model on its device. Names and formats of checkpoints are
the business of transformers' own loader: it is given tensors that read only this rank's slice, for a model that has this
rank's shapes.
"""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.auto_factory import _get_model_class
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from text_generation_server.cut import Cut
from text_generation_server.errors import ConfigurationError, ModelError
from text_generation_server.models import own_quantization
from text_generation_server.models.placing import put_in_place
from text_generation_server.models.tensor_plan import TensorPlan
from text_generation_server.parallel import Parallel
from text_generation_server.weights import Weights

logger = logging.getLogger(__name__)

LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError),
    StrictDataclassError,  # a configuration with a value of another type
)
OWN_CODE_ERRORS = (*LOADING_ERRORS, ImportError, NameError, SyntaxError)


class TransformersLoader:
    """One model of a folder, `auto_class` being the kind of model that is wanted of it."""

    def __init__(self, folder: Path, auto_class: Any, attention: str | None, trust_remote_code: bool = False) -> None:
        """`attention` None: the fastest of the model's own. `trust_remote_code`: the folder's Python files are run.

        Raises:
            ModelError: transformers does not know what the folder holds.
        """
        logging.getLogger("transformers").setLevel(logging.ERROR)
        self.folder = folder
        try:
            self.config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            own_code = getattr(self.config, "auto_map", {}) if trust_remote_code else {}
            if auto_class.__name__ in own_code:
                self.model_class: Any = get_class_from_dynamic_module(own_code[auto_class.__name__], folder)
            else:
                self.model_class = _get_model_class(self.config, auto_class._model_mapping)
        except OWN_CODE_ERRORS as error:
            raise ModelError(f"transformers does not know the model of {folder}: {_first_line(error)}") from error
        if self.model_class.config_class is self.config.sub_configs.get("text_config"):  # the text part of something larger
            self.config = _text_config(self.config)
        self.config._attn_implementation = attention

    def plan(self, parallel: Parallel) -> tuple[Any, TensorPlan]:
        """The model without weights, in this rank's shapes.

        Raises:
            ModelError: there is no model of this configuration.
            ConfigurationError: it does not split over so many ranks.
        """
        try:
            with torch.device("meta"):
                model = self.model_class(self.config)
        except LOADING_ERRORS as error:
            raise ModelError(f"config.json of {self.folder} describes no model: {_first_line(error)}") from error
        return model, TensorPlan(model, parallel)

    def load(self, device: torch.device, dtype: torch.dtype, parallel: Parallel, quantize: str | None) -> "Loaded":
        """
        Raises:
            ModelError: the checkpoint is not what the configuration says, or cannot be read.
        """
        if method := own_quantization.method_of(self.config):
            if quantize:
                raise ConfigurationError(f"{self.folder} is quantized already ({method}): leave out --quantize {quantize}")
            return self._load_quantized(method, device, dtype, parallel)
        outline, plan = self.plan(parallel)
        (enable_progress_bar if parallel.is_first else disable_progress_bar)()
        weights = Weights(self.folder, torch.device("cpu"), dtype)
        tensors = {name: _Slice(weights, name, cut) for name, cut in _cuts_of_sources(outline, plan, weights)}
        try:
            model, info = _in_local_shapes(self.model_class, parallel).from_pretrained(
                None,
                config=self.config,
                state_dict=tensors,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are said below
            )
        except LOADING_ERRORS as error:
            raise ModelError(f"transformers cannot load {self.folder}: {_first_line(error)}") from error
        _check_complete(info)
        weight_bytes = put_in_place(model.eval(), plan, device, quantize) + _expert_bytes(model, quantize)
        return Loaded(model, plan.vocab_size, weight_bytes, weights.bytes_read)

    def _load_quantized(self, method: str, device: torch.device, dtype: torch.dtype, parallel: Parallel) -> "Loaded":
        _, plan = self.plan(parallel)
        model, info = own_quantization.read_quantized(self.folder, method, self.model_class, self.config, device, dtype)
        _check_complete(info)
        weight_bytes = put_in_place(model.eval(), plan, device, None) + own_quantization.size_in_bytes(model)
        return Loaded(model, plan.vocab_size, weight_bytes, own_quantization.file_bytes(self.folder))


def _text_config(whole: Any) -> Any:
    """How the checkpoint is quantized, only the whole says."""
    config, quantization = whole.get_text_config(), getattr(whole, "quantization_config", None)
    if quantization is not None:
        config.quantization_config = quantization
    return config


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    model: Any
    vocab_size: int  # of the whole head
    weight_bytes: int  # what the matrices that every step reads occupy on this rank
    bytes_read: int


def _expert_bytes(model: Any, quantize: str | None) -> int:
    """Of experts that stay what they are: all without `quantize`, else those that transformers does not mark as such."""
    size = sum(parameter.nbytes for name, parameter in model.named_parameters() if parameter.dim() == 3 and "expert" in name)
    if quantize and size:
        logger.warning("experts stay unquantized bytes=%d: transformers multiplies by them in a way of this model's own", size)
    return size


class _Slice:
    """What the loader takes for a tensor of the checkpoint: it is read when it is indexed."""

    def __init__(self, weights: Weights, name: str, cut: Cut | None) -> None:
        self.weights = weights
        self.name = name
        self.cut = cut

    def __getitem__(self, _: Any) -> torch.Tensor:
        return self.weights.read(self.name, self.cut)


def _cuts_of_sources(model: Any, plan: TensorPlan, weights: Weights) -> Iterator[tuple[str, Cut | None]]:
    """The checkpoint's names and how each is cut, from how the parameter is cut that it becomes."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    targets = model.state_dict()
    for name in weights.names:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, targets)
        if target not in targets and name in targets:  # as the loader does, too
            target, pattern = rename_source_key(name, [], [], model.base_model_prefix, targets)
        cut = plan.cuts.get(target)
        yield name, cut if cut is None or pattern is None else _before(cut, by_pattern[pattern])


def _before(cut: Cut, converter: WeightConverter) -> Cut:
    """The cut of a converter's sources that has `cut` of its target as the outcome. Dimensions count from the end, so that
    stacking changes nothing.

    Raises:
        ConfigurationError: there is none.
    """
    dim, pieces = cut.dim, cut.pieces
    for operation in reversed(converter.operations):
        if isinstance(operation, Transpose):
            dim = {-1: -2, -2: -1}[dim]
        elif isinstance(operation, Concatenate):
            pieces = (1,)  # what is put together lies in a file of its own each
        elif not isinstance(operation, MergeModulelist):
            name = converter.target_patterns[0]
            raise ConfigurationError(f"{name} is made by {type(operation).__name__}, which cannot be split over shards")
    return dataclasses.replace(cut, dim=dim, pieces=pieces)


def _in_local_shapes(model_class: Any, parallel: Parallel) -> Any:
    """The class, but a new model has this rank's shapes from the start."""

    def __init__(self: Any, config: Any, *args: Any, **options: Any) -> None:
        model_class.__init__(self, config, *args, **options)
        TensorPlan(self, parallel)

    members = {"__init__": __init__, "__module__": model_class.__module__}
    return type(model_class.__name__, (model_class,), members)


def _check_complete(info: dict[str, Any]) -> None:
    """
    Raises:
        ModelError: tensors are missing or of another shape.
    """
    if found := sorted(map(str, info["unexpected_keys"])):  # old files have buffers that nothing needs any more
        logger.warning("the checkpoint has tensors that the model does not know count=%d such_as=%s", len(found), found[0])
    if found := sorted(map(str, info["missing_keys"])):
        raise ModelError(f"the checkpoint has {len(found)} missing keys, such as {found[0]}")
    for name, shape, expected in sorted(info["mismatched_keys"]):
        raise ModelError(f"{name} of the checkpoint has shape {list(shape)}, expected {list(expected)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
