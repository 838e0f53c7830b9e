"""Weights: this rank's slices of a folder of safetensors.

In: a model folder (one file or an index of many) and, per call, a tensor's name and which rows or columns of it.
Out: tensors on the rank's device, matrices in one dtype and all else in another or the same. Only the bytes asked for are
read, and no mapping outlives its call, so that loading never holds more than the slices and one tensor beside them. Knows
nothing of models or layers.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from text_generation_server.cut import Cut
from text_generation_server.errors import ModelError


class Weights:
    """Names are the checkpoint's, without `prefix` where it has one: transformers saves `transformer.h.0…`, the
    published BLOOM checkpoints say `h.0…`."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        prefix: str = "",
        matrix_dtype: torch.dtype | None = None,
    ) -> None:
        """`matrix_dtype` None: matrices are in `dtype` as everything else."""
        self.device = device
        self.dtype = dtype
        self.matrix_dtype = matrix_dtype or dtype
        self._sizes: list[int] = []  # of what was read, in bytes
        self._location = self._locate(folder, prefix)
        self._unused = set(self._location)

    def load(self, name: str, shape: tuple[int, ...], rows: slice | None = None, columns: slice | None = None) -> torch.Tensor:
        """Rows and columns of `name`, whose whole shape must be `shape`, as a tensor of its own.

        Raises:
            ModelError: no such tensor, another shape, or a file that cannot be read.
        """
        return self._load(name, shape, rows, columns, self.dtype)

    def load_matrix(
        self, name: str, shape: tuple[int, ...], rows: slice | None = None, columns: slice | None = None
    ) -> torch.Tensor:
        """Like `load`, in the type that matrices are multiplied in."""
        return self._load(name, shape, rows, columns, self.matrix_dtype)

    @property
    def bytes_read(self) -> int:
        return sum(self._sizes)

    @property
    def names(self) -> list[str]:
        return list(self._location)

    def read(self, name: str, cut: Cut | None) -> torch.Tensor:
        """What `cut` leaves of `name`, of whatever shape it is, as precise as the file has it. Threads may read at once.

        Raises:
            ModelError: a file that cannot be read.
        """
        file, stored_name = self._location[name]
        with _opened(file) as handle:
            if cut is None:
                part = self._own(handle.get_tensor(stored_name))
            else:
                stored = handle.get_slice(stored_name)
                shape = stored.get_shape()
                dim = len(shape) + cut.dim
                before = [slice(None)] * dim
                part = torch.cat([stored[(*before, rows)] for rows in cut.ranges(shape[dim])], dim=dim)
        self._sizes.append(part.nbytes)
        return part

    def map(self, name: str, shape: tuple[int, ...], rows: slice | None = None) -> torch.Tensor:
        """Like `load`, but a view of the file in the file's dtype: on the CPU only rows that are used are ever read."""
        return self._part(name, shape, rows, None)

    def ignore(self, names: Iterable[str]) -> None:
        """Tensors that a checkpoint may carry and the model has no use for."""
        self._unused.difference_update(names)

    def check_all_used(self) -> None:
        """
        Raises:
            ModelError: the checkpoint holds tensors that nothing asked for: it is not the model it says it is.
        """
        if self._unused:
            some = ", ".join(sorted(self._unused)[:3])
            raise ModelError(f"the checkpoint has {len(self._unused)} tensors that the model does not know, such as {some}")

    def _locate(self, folder: Path, prefix: str) -> dict[str, tuple[Path, str]]:
        """Each tensor's file, and its name there."""
        return {name.removeprefix(prefix): (file, name) for file in _weight_files(folder) for name in _names_in(file)}

    def _load(
        self, name: str, shape: tuple[int, ...], rows: slice | None, columns: slice | None, dtype: torch.dtype
    ) -> torch.Tensor:
        part = self._part(name, shape, rows, columns)
        self._sizes.append(part.nbytes)
        return part.to(self.device, dtype, copy=True, memory_format=torch.contiguous_format)

    def _own(self, mapped: torch.Tensor) -> torch.Tensor:
        """In memory of its own, at once in our dtype where that is the wider one: some parts are wanted as they are stored."""
        is_wider = mapped.is_floating_point() and self.dtype.itemsize > mapped.dtype.itemsize
        return mapped.to(self.dtype) if is_wider else mapped.clone()

    def _part(self, name: str, shape: tuple[int, ...], rows: slice | None, columns: slice | None) -> torch.Tensor:
        if name not in self._location:
            raise ModelError(f"the checkpoint has no tensor {name}")
        file, stored_name = self._location[name]
        self._unused.discard(name)
        with _opened(file) as handle:
            stored = handle.get_slice(stored_name)
            if tuple(stored.get_shape()) != shape:
                raise ModelError(f"{name} in {file.name} has shape {stored.get_shape()}, expected {list(shape)}")
            every = slice(None)
            return stored[rows or every] if columns is None else stored[rows or every, columns]


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{folder} holds no .safetensors weights; `text-generation-server download-weights` makes them")
        return files
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        files = [folder / name for name in sorted(names)]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is no index of weight files: {error}") from error
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} of the files that its index names, such as {missing[0]}")
    return files


def _names_in(file: Path) -> list[str]:
    with _opened(file) as handle:
        return list(handle.keys())


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {file}: {error}; was it cut short?") from error
