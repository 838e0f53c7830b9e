"""Tensors of zeros in memory of their own, which is there when it is written, and of several not all at once."""

import torch

from text_generation_server.device import PeakMemory
from text_generation_server.large_pages import PAGE, zeros, zeros_apart


def test_they_are_zeros_of_the_shape_and_type_asked_for() -> None:
    for shape, dtype in (((3, 5), torch.float32), ((2, 2, 70000), torch.bfloat16), ((0, 4), torch.int8), ((), torch.float32)):
        tensor = zeros(shape, dtype)
        assert tensor.shape == shape and tensor.dtype == dtype
        assert not tensor.float().any()
        assert tensor.data_ptr() % dtype.itemsize == 0


def test_tensors_do_not_overlap_and_begin_at_different_places_of_their_pages() -> None:
    shapes = [(1000, 300), (0, 3), (1000, 300), (7,), (1000, 300)]
    tensors = zeros_apart(shapes, torch.float32)
    for index, tensor in enumerate(tensors):
        tensor.fill_(index)
    assert [tensor.shape for tensor in tensors] == [torch.Size(shape) for shape in shapes]
    assert all((tensor == index).all() for index, tensor in enumerate(tensors))
    places = [tensor.data_ptr() % PAGE for tensor in tensors if tensor.numel()]
    assert len({place // (PAGE // 8) for place in places}) == len(places)


def test_what_is_not_written_takes_no_memory() -> None:
    peak = PeakMemory()
    tensors = zeros_apart([(64 * 2**20,)] * 4, torch.int8)
    for tensor in tensors:
        tensor[0] = 1
    assert peak.read_bytes() < 64 * 2**20
