"""A program: copies a model folder with its weights rounded to bfloat16, as most checkpoints are published.

In: a folder of safetensors, a folder to make. What a GGUF file has become here is float32, for exactness; a benchmark of a
model as it was published wants it in the type that it was published in.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: round_weights.py SOURCE-FOLDER NEW-FOLDER")
    source, target = map(Path, sys.argv[1:])
    shutil.copytree(source, target)
    for file in target.glob("*.safetensors"):
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}, indent=2))


if __name__ == "__main__":
    main()
