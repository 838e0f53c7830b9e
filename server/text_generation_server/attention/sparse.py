"""Attention of decoding sequences on a CPU without gathering keys and values: their blocks are read where they lie.

In: where each sequence's keys and values are, and one query a sequence. Out: attended values. Scores are a sampled
dense-dense product (only the query-key pairs that belong together are computed), and the sum of weighted values is an
embedding bag over the value cache: both read each row of the cache once and write only what they return.
"""

import warnings

import torch
import torch.nn.functional as F

from text_generation_server.kv_cache import KVCache


def is_supported(dtype: torch.dtype, device: torch.device) -> bool:
    """PyTorch has the sampled product in float32, and on CPUs with MKL."""
    return device.type == "cpu" and dtype == torch.float32 and torch.backends.mkl.is_available()


class SparseDecode:
    """One step's decoding sequences, for one layer after the other. Row r of the scores is head r % num_heads of sequence
    r // num_heads; its columns are rows of the cache seen as [num_blocks * num_heads * block_size, head_dim]."""

    def __init__(self, rows: torch.Tensor, bias: torch.Tensor, num_heads: int, cache: KVCache) -> None:
        """rows [num_sequences, padded_length, num_kv_heads] int64; bias [num_sequences, num_heads or 1, 1, padded_length],
        -inf where padded. Neighbouring query heads share a key-value head where there are fewer of these."""
        num_kv_heads = rows.shape[2]
        rows = rows.transpose(1, 2).repeat_interleave(num_heads // num_kv_heads, dim=1)
        bias = bias.expand(-1, num_heads, -1, -1)
        num_pairs = bias.shape[0] * num_heads
        num_rows = cache.num_blocks * num_kv_heads * cache.block_size
        self.cache = cache
        self.columns = rows.flatten()
        self.row_ends = torch.arange(0, len(self.columns) + 1, bias.shape[-1])
        self.bias = bias.reshape(num_pairs, -1)
        self.scores = _csr(self.row_ends, self.columns, torch.empty_like(self.bias).flatten(), (num_pairs, num_rows))

    def attend(self, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        """query [num_sequences, num_heads, key_dim] → [num_sequences, num_heads, value_dim]."""
        keys, values = self.cache.keys[layer].flatten(0, 2), self.cache.values[layer].flatten(0, 2)
        scores = self.scores.values().view_as(self.bias).copy_(self.bias)
        # Added in place: a new tensor for every layer would have all columns copied.
        torch.sparse.sampled_addmm(self.scores, query.flatten(0, 1), keys.t(), alpha=scale, out=self.scores)
        weights = scores.softmax(dim=1)
        output = F.embedding_bag(
            self.columns, values, self.row_ends, mode="sum", per_sample_weights=weights.flatten(), include_last_offset=True
        )
        return output.view(*query.shape[:2], -1)


def _csr(row_ends: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "sparse CSR is in beta", once a process
        return torch.sparse_csr_tensor(row_ends, columns, values, size, check_invariants=False)
