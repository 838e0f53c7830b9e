"""GeneratedModel: a checkpoint in the shape of a published BLOOM, with random weights, made without a hub.

In: a shape's name and a cache folder outside the repository. Out: a model folder in the published layout (config.json,
model.safetensors with names like `h.0…`, tokenizer.json), made once. No token ends a text, so all answers are equally long.
The weights are drawn as at the start of a training: the arithmetic costs what it costs with trained ones, the text is noise.
"""

import argparse
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm

EMBEDDED = Path(__file__).parent.parent / "models" / "tiny-bloom"
DEFAULT_CACHE = Path.home() / ".cache" / "text-generation-inference" / "benchmarks"
INITIALIZER_RANGE = 0.02  # BLOOM's own; with layer norms of ones and biases of zeros nothing overflows
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    dtype: torch.dtype


SHAPES = {
    "560m": Shape(1024, 24, 16, 250880, torch.float16),  # as it was published
    "560m-float32": Shape(1024, 24, 16, 250880, torch.float32),
    "7b1": Shape(4096, 30, 32, 250880, torch.bfloat16),
    # What one rank of eight reads of BLOOM-176B (70 layers, 44 GB in bfloat16, an eighth of the vocabulary), as a model of
    # its own: a BLOOM's heads make up its width, so the slice is squared off, 5120 x 5120 for 14336 x 1792.
    "176b-eighth": Shape(5120, 70, 40, 31360, torch.bfloat16),
    "176b": Shape(14336, 70, 112, 250880, torch.bfloat16),
}
WITHOUT_WEIGHTS = ("176b",)  # of 352 GB: a server draws them, see --random-weights


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache",
        type=Path,
        default=DEFAULT_CACHE,
        metavar="DIR",
        help="where generated checkpoints are kept between runs (560m: 2.2 GB, 7b1: 14 GB, 176b-eighth: 44 GB); "
        "default: ~/.cache/text-generation-inference/benchmarks",
    )


def model_folder(name: str, cache: Path, with_weights: bool = True) -> Path:
    """The folder of "embedded", of a shape's name, or of any model: then `name` is its path and it is used as it is. Without
    weights, a shape's folder has what --random-weights needs."""
    if name == "embedded":
        return _without_end(EMBEDDED, cache / "embedded")
    if name not in SHAPES:
        return Path(name)
    if not with_weights or name in WITHOUT_WEIGHTS:
        return _write_shape(SHAPES[name], cache / f"bloom-{name}-without-weights")
    folder = cache / f"bloom-{name}"
    return folder if (folder / "config.json").exists() else _generate(SHAPES[name], folder)


def _without_end(source: Path, folder: Path) -> Path:
    """The same model, but no token ends a text. Written anew each time: the model may have been trained again."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    return folder


def _generate(shape: Shape, folder: Path) -> Path:
    """config.json is written last: where it is, everything is."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(shape, folder / "model.safetensors")
    return _write_shape(shape, folder)


def _write_shape(shape: Shape, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    byte_tokenizer(shape.vocab_size).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2))
    return folder


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "n_embed": shape.hidden_size,
        "hidden_size": shape.hidden_size,
        "n_layer": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "n_head": shape.num_heads,
        "vocab_size": shape.vocab_size,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": INITIALIZER_RANGE,
        "apply_residual_connection_post_layernorm": False,
        "seq_length": 2048,
        "torch_dtype": str(shape.dtype).removeprefix("torch."),
        "unk_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 3,
    }


def byte_tokenizer(vocab_size: int) -> Tokenizer:
    """Reads one token a byte; every further token of the vocabulary is a number, so that any answer is a text."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"Ġ{index}" for index in range(len(tokens), vocab_size)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _write_weights(shape: Shape, path: Path) -> None:
    """One tensor in memory at a time; the file gets its name when it is whole."""
    shapes = dict(_tensor_shapes(shape))
    partial = path.with_suffix(".partial")
    draw = _drawer(shape.dtype)
    with partial.open("wb") as file:
        _write_header(file, shapes, shape.dtype)
        for name, tensor_shape in tqdm(shapes.items(), desc=f"generating {path.parent.name}", disable=None):
            tensor = draw(name, tensor_shape).flatten().view(torch.uint8)
            tensor.cpu().numpy().tofile(file)
    os.replace(partial, path)


def _tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = shape.hidden_size
    yield "word_embeddings.weight", (shape.vocab_size, hidden)
    yield from _pair("word_embeddings_layernorm", hidden)
    for layer in range(shape.num_layers):
        yield from _pair(f"h.{layer}.input_layernorm", hidden)
        yield from _pair(f"h.{layer}.self_attention.query_key_value", 3 * hidden, hidden)
        yield from _pair(f"h.{layer}.self_attention.dense", hidden, hidden)
        yield from _pair(f"h.{layer}.post_attention_layernorm", hidden)
        yield from _pair(f"h.{layer}.mlp.dense_h_to_4h", 4 * hidden, hidden)
        yield from _pair(f"h.{layer}.mlp.dense_4h_to_h", hidden, 4 * hidden)
    yield from _pair("ln_f", hidden)


def _pair(name: str, *weight_shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", weight_shape
    yield f"{name}.bias", weight_shape[:1]


def _write_header(file: BinaryIO, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """The safetensors format: eight bytes of length, JSON with every tensor's offsets, then the tensors."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def _drawer(dtype: torch.dtype) -> Callable[[str, tuple[int, ...]], torch.Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith(".bias"):
            return torch.zeros(shape, dtype=dtype)
        if len(shape) == 1:
            return torch.ones(shape, dtype=dtype)
        drawn = torch.empty(shape, dtype=dtype, device=device)
        return drawn.normal_(0, INITIALIZER_RANGE, generator=generator)

    return draw
