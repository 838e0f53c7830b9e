"""Keys and values land in the slots they are written to, and a block costs what it is said to cost."""

import mmap
import resource

import torch

from text_generation_server.kv_cache import KVCache, KVShape, block_bytes

CPU = torch.device("cpu")
SHAPES = [KVShape(3, 5, 5), KVShape(3, 5, 4)]


def test_tokens_land_in_their_slots_of_their_layer() -> None:
    cache = KVCache(SHAPES, 4, 8, torch.float32, CPU)
    key, value = torch.randn(2, 3, 5), torch.randn(2, 3, 4)
    cache.write(1, cache.rows(torch.tensor([17, 31]), 3).flatten(), key, value)
    assert torch.equal(cache.keys[1][2, :, 1], key[0])
    assert torch.equal(cache.values[1][3, :, 7], value[1])
    assert cache.keys[1].count_nonzero() == key.numel()
    assert cache.keys[0].count_nonzero() == 0


def test_a_block_costs_what_the_tensors_hold() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        cache = KVCache(SHAPES, 4, 8, dtype, CPU)
        held = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
        assert held == 4 * block_bytes(SHAPES, 8, dtype)


def test_all_memory_is_taken_at_once() -> None:
    """A step that came to a new block would wait for it, or end the process where there is none left."""
    cache = KVCache([KVShape(4, 64, 64)] * 2, 2**12, 16, torch.float32, CPU)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(1)
    num_pages = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values)) // mmap.PAGESIZE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 0.1 * num_pages
