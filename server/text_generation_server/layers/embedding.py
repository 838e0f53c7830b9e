"""The vocabulary split over ranks: token ids to vectors, and hidden states to logits.

In: the checkpoint's [vocab_size, hidden_size] table. Out: modules that hold this rank's rows of it.
"""

import logging

import torch
import torch.nn.functional as F

from text_generation_server.layers.linear import Linear, head_storage, load_matrix, make_linear
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
        self.name = name
        self.shape = vocab_size, hidden_size
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


def load_head(weights: Weights, name: str, embedding: VocabEmbedding, is_tied: bool, quantize: str | None = None) -> Linear:
    """Hidden states [num_rows, hidden_size] → this rank's logits [num_rows, vocab_size_local]. A tied head shares the
    embedding's memory on CUDA; elsewhere it reads the same rows."""
    storage = head_storage(quantize)
    if is_tied and _is_same(weights, name, embedding):
        if weights.device.type == "cuda":
            return make_linear(embedding.table, None, storage)
        name = embedding.name
    return make_linear(load_matrix(weights, name, embedding.shape, storage, rows=embedding.rows), None, storage)


def _is_same(weights: Weights, name: str, embedding: VocabEmbedding) -> bool:
    """Whether the head is the embedding's table, as the configuration says. Where the checkpoint brings another one all the
    same, that is the one that was trained, and transformers takes it too."""
    if name not in weights.names:
        return True
    own, table = (weights.map(matrix, embedding.shape, embedding.rows) for matrix in (name, embedding.name))
    if own.dtype != table.dtype or not torch.equal(own, table):
        logger.warning("the head is not the embedding, though config.json says tie_word_embeddings: it is taken as it is")
        return False
    return True
