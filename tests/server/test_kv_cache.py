"""Keys and values land in the slots they are written to, and a block costs what it is said to cost."""

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


def test_layers_together_have_the_same_shapes_and_each_its_own_place() -> None:
    cache, apart = KVCache(SHAPES, 4, 8, torch.float32, CPU), KVCache(SHAPES, 4, 8, torch.float32, CPU)
    cache.put_layers_together()
    tensors, others = [*cache.keys, *cache.values], [*apart.keys, *apart.values]
    assert [tensor.shape for tensor in tensors] == [tensor.shape for tensor in others]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(tensors))
    places = [tensor.data_ptr() - cache.keys[0].data_ptr() for tensor in tensors]
    assert max(places) < block_bytes(SHAPES, 8, torch.float32) == cache.keys[0].stride(0) * cache.dtype.itemsize
