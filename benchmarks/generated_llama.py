"""GeneratedLlama: a checkpoint in Llama's shape with random weights, in several files with an index, where it is wanted.

In: how large, which type, safetensors or `.bin`. Out: a model folder. One file of it is in memory at a time.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

HIDDEN, INTERMEDIATE, VOCAB, HEAD_DIM = 2048, 5632, 32000, 64
INITIALIZER_RANGE = 0.02
MAX_FILE_BYTES = 500_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class GeneratedLlama:
    file_bytes: int  # about
    dtype: torch.dtype

    @property
    def num_parameters(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self._shapes().values())

    def save(self, folder: Path) -> None:
        self._save(folder, "model{}.safetensors", lambda tensors, path: save_file(tensors, path, metadata={"format": "pt"}))

    def save_bin(self, folder: Path) -> None:
        self._save(folder, "pytorch_model{}.bin", torch.save)

    def _save(self, folder: Path, name: str, write: Callable[[dict[str, torch.Tensor], Path], None]) -> None:
        parts, weight_map = list(self._parts()), {}
        for index, part in enumerate(parts, start=1):
            file = name.format(f"-{index:05}-of-{len(parts):05}")
            write({key: (torch.randn(shape) * INITIALIZER_RANGE).to(self.dtype) for key, shape in part.items()}, folder / file)
            weight_map |= dict.fromkeys(part, file)
        (folder / f"{name.format('')}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (folder / "config.json").write_text(json.dumps(self._config()))
        Tokenizer(models.BPE({"a": 0}, [])).save(str(folder / "tokenizer.json"))

    def _config(self) -> dict[str, object]:
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": self._num_layers,
            "num_attention_heads": HIDDEN // HEAD_DIM,
            "vocab_size": VOCAB,
            "tie_word_embeddings": False,
        }

    @property
    def _num_layers(self) -> int:
        layer = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * INTERMEDIATE
        return max(1, round((self.file_bytes / self.dtype.itemsize - 2 * VOCAB * HIDDEN) / layer))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        layer: dict[str, tuple[int, ...]] = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
        layer |= {"mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN)}
        layer |= {"mlp.down_proj": (HIDDEN, INTERMEDIATE)}
        layer |= {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
        whole: dict[str, tuple[int, ...]] = {"model.embed_tokens": (VOCAB, HIDDEN), "model.norm": (HIDDEN,)}
        for index in range(self._num_layers):
            whole |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
        return {f"{name}.weight": shape for name, shape in (whole | {"lm_head": (VOCAB, HIDDEN)}).items()}

    def _parts(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """What goes into each file."""
        part: dict[str, tuple[int, ...]] = {}
        size = 0
        for name, shape in self._shapes().items():
            nbytes = torch.Size(shape).numel() * self.dtype.itemsize
            if part and size + nbytes > MAX_FILE_BYTES:
                yield part
                part, size = {}, 0
            part[name] = shape
            size += nbytes
        yield part
