"""Tensors of zeros in memory of their own, which is there when it is written."""

import torch

from text_generation_server import pages
from text_generation_server.device import PeakMemory


def test_they_are_zeros_of_the_shape_and_type_asked_for() -> None:
    for shape, dtype in (((3, 5), torch.float32), ((2, 2, 70000), torch.bfloat16), ((0, 4), torch.int8), ((), torch.float32)):
        tensor = pages.large(shape, dtype)
        assert tensor.shape == shape and tensor.dtype == dtype
        assert not tensor.float().any()
        tensor.fill_(1)
        assert tensor.float().sum() == tensor.numel()


def test_what_is_not_written_takes_no_memory() -> None:
    peak = PeakMemory()
    tensor = pages.large((256 * 2**20,), torch.int8)
    tensor[0] = 1
    assert peak.read_bytes() < 64 * 2**20
