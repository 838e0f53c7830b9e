"""The vocabulary split over ranks: token ids to vectors, and hidden states to logits.

In: the checkpoint's [vocab_size, hidden_size] table. Out: modules that hold this rank's rows of it.
"""

import logging

import torch
import torch.nn.functional as F

from text_generation_server.layers.linear import head_storage, load_matrix, make_linear
from text_generation_server.parallel import Parallel
from text_generation_server.weights import Weights

logger = logging.getLogger(__name__)


class VocabEmbedding(torch.nn.Module):
    """Token ids [num_tokens] → vectors [num_tokens, hidden_size].

    On CPU the table stays in its file, mapped: only the rows of tokens that occur are ever in memory, and the head can keep
    its own copy in the order it multiplies fastest in.
    """

    def __init__(self, weights: Weights, name: str, vocab_size: int, hidden_size: int, parallel: Parallel) -> None:
        super().__init__()
        self.rows = parallel.split_padded(vocab_size)
        on_cpu = weights.device.type == "cpu"
        read = weights.map if on_cpu else weights.load
        self.table = read(name, (vocab_size, hidden_size), rows=self.rows)
        self.dtype = weights.dtype
        self.parallel = parallel

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        if self.parallel.world_size == 1:
            return F.embedding(token_ids, self.table).to(self.dtype)
        local = token_ids - self.rows.start
        absent = (local < 0) | (local >= self.table.shape[0])
        vectors = F.embedding(local.masked_fill(absent, 0), self.table).to(self.dtype)
        return self.parallel.all_reduce(vectors.masked_fill_(absent.unsqueeze(-1), 0))


def is_tied(weights: Weights, head: str, table: str, vocab_size: int, hidden_size: int, parallel: Parallel) -> bool:
    """Whether the head is the table, as the configuration says. Where the checkpoint brings another one all the same, that is
    the one that was trained, and transformers takes it too."""
    if head not in weights.names:
        return True
    shape, rows = (vocab_size, hidden_size), parallel.split_padded(vocab_size)
    own, tied = weights.map(head, shape, rows), weights.map(table, shape, rows)
    if own.dtype != tied.dtype or not torch.equal(own, tied):
        logger.warning("the head is not the embedding, though config.json says tie_word_embeddings: it is taken as it is")
        return False
    return True


class VocabHead(torch.nn.Module):
    """Hidden states [num_rows, hidden_size] → this rank's logits [num_rows, vocab_size_local], in float32.

    `tied_table` is the embedding's where both can share memory (CUDA); else the head reads its own rows.
    """

    def __init__(
        self,
        weights: Weights,
        name: str,
        vocab_size: int,
        hidden_size: int,
        parallel: Parallel,
        tied_table: torch.Tensor | None,
        quantize: str | None = None,
    ) -> None:
        super().__init__()
        storage = head_storage(quantize)
        if tied_table is None:
            rows = parallel.split_padded(vocab_size)
            tied_table = load_matrix(weights, name, (vocab_size, hidden_size), storage, rows=rows)
        self.linear = make_linear(tied_table, None, storage)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden).float()
