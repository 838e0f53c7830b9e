"""Tensors of zeros in memory of their own, which is there when it is written."""

from collections.abc import Callable

import pytest
import torch

from text_generation_server import pages
from text_generation_server.device import PeakMemory

each_kind = pytest.mark.parametrize("zeros", [pages.large, pages.small])


@each_kind
def test_they_are_zeros_of_the_shape_and_type_asked_for(zeros: Callable[..., torch.Tensor]) -> None:
    for shape, dtype in (((3, 5), torch.float32), ((2, 2, 70000), torch.bfloat16), ((0, 4), torch.int8), ((), torch.float32)):
        tensor = zeros(shape, dtype)
        assert tensor.shape == shape and tensor.dtype == dtype
        assert not tensor.float().any()
        tensor.fill_(1)
        assert tensor.float().sum() == tensor.numel()


@each_kind
def test_what_is_not_written_takes_no_memory(zeros: Callable[..., torch.Tensor]) -> None:
    peak = PeakMemory()
    tensor = zeros((256 * 2**20,), torch.int8)
    tensor[0] = 1
    assert peak.read_bytes() < 64 * 2**20
