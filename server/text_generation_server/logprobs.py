"""Logprobs: how likely given tokens are, and which are the most likely, from logits that are split over the ranks.

In: this rank's part of the logits and a token for each row, or hidden states and the prompts they belong to. Out: the same
log-probabilities on every rank. A few numbers of each row are gathered, never the vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from text_generation_server import cpu_kernels
from text_generation_server.batch import PromptRows
from text_generation_server.parallel import Parallel

PROMPT_LOGITS_BYTES = 64 * 2**20  # of one slice of a prompt's logits on a rank; with top tokens the peak is four times that
ID_BITS = 32
ID_MASK = 2**ID_BITS - 1


class TokenLogprobs(NamedTuple):
    logprobs: torch.Tensor  # [num_rows] float32
    top_ids: torch.Tensor  # [num_rows, num_top] int64, the most likely first, of equals the lowest id
    top_logprobs: torch.Tensor  # [num_rows, num_top] float32

    def cut(self, rows: slice, num_top: int) -> "TokenLogprobs":
        return TokenLogprobs(self.logprobs[rows], self.top_ids[rows, :num_top], self.top_logprobs[rows, :num_top])


class Logprobs:
    """Every method must be called by all ranks in the same order."""

    def __init__(self, vocab_size: int, parallel: Parallel, prompt_logits_bytes: int = PROMPT_LOGITS_BYTES) -> None:
        self.rows = parallel.split_padded(vocab_size)
        self.num_prompt_rows = max(1, prompt_logits_bytes // (4 * parallel.padded_share(vocab_size)))
        self.parallel = parallel

    def of_tokens(self, logits: torch.Tensor, token_ids: torch.Tensor, num_top: int) -> TokenLogprobs:
        """logits [num_rows, vocab_size_local] float32 and a token for each row [num_rows]; num_top may be 0, and must not be
        more than the whole vocabulary."""
        local_ids = token_ids - self.rows.start
        is_elsewhere = (local_ids < 0) | (local_ids >= logits.shape[1])
        scores = logits.gather(1, local_ids.masked_fill(is_elsewhere, 0).unsqueeze(1)).squeeze(1)
        scores = scores.masked_fill(is_elsewhere, -torch.inf)
        *_, total = likeliest(logits)
        local = torch.stack([scores.double(), total.double()])
        scores, totals = self.parallel.all_gather(local).unbind(1)  # [world_size, num_rows] each
        total = torch.logsumexp(totals, dim=0)
        top_ids, top_scores = self._top(logits, num_top)
        return TokenLogprobs(
            logprobs=(scores.max(dim=0).values - total).float(),
            top_ids=top_ids,
            top_logprobs=(top_scores - total.unsqueeze(1)).float(),
        )

    def of_prompts(
        self, hidden: torch.Tensor, prompts: list[PromptRows], head: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[TokenLogprobs]:
        """hidden [num_tokens, hidden_size] of the whole packed batch. The head is applied to slices of the rows: with a large
        vocabulary, the logits of a whole chunk would take more memory than all else."""
        rows = torch.tensor([row for prompt in prompts for row in prompt.rows], device=hidden.device)
        target_ids = torch.tensor([token_id for prompt in prompts for token_id in prompt.target_ids], device=hidden.device)
        num_top = max(prompt.sequence.num_top_tokens for prompt in prompts)
        slices = zip(rows.split(self.num_prompt_rows), target_ids.split(self.num_prompt_rows), strict=True)
        parts = [self.of_tokens(head(hidden[some]), targets, num_top) for some, targets in slices]
        whole = TokenLogprobs(*map(torch.cat, zip(*parts, strict=True)))
        found, start = [], 0
        for prompt in prompts:
            end = start + len(prompt.rows)
            found.append(whole.cut(slice(start, end), prompt.sequence.num_top_tokens))
            start = end
        return found

    def _top(self, logits: torch.Tensor, num_top: int) -> tuple[torch.Tensor, torch.Tensor]:
        """→ ids [num_rows, num_top] and their logits, in float64."""
        if num_top == 0:
            return logits.new_empty(logits.shape[0], 0, dtype=torch.long), logits.new_empty(logits.shape[0], 0)
        num_local = min(num_top, logits.shape[1])
        keys = _sort_keys(logits, self.rows.start).topk(num_local).values
        # A share of the vocabulary may be smaller than what is asked for.
        keys = torch.nn.functional.pad(keys, (0, num_top - num_local), value=torch.iinfo(torch.long).min)
        keys = torch.cat(self.parallel.all_gather(keys).unbind(0), dim=1).topk(num_top).values
        ids = -keys & ID_MASK
        return ids, _from_ordered((keys + ids) >> ID_BITS).double()


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[num_rows, n] float32 → each row's largest entry, the first place of it, and the log of the sum of all exponentials."""
    library = cpu_kernels.library() if logits.device.type == "cpu" and logits.numel() else None
    if library is None:
        value, index = logits.max(dim=1)
        # PyTorch's softmax goes over a row once where its logsumexp makes several operations of it.
        return value, index, logits.amax(dim=1) - logits.log_softmax(dim=1).amax(dim=1)
    rows, (num_rows, size) = logits.contiguous(), logits.shape
    value, index = torch.empty(num_rows, dtype=torch.float32), torch.empty(num_rows, dtype=torch.long)
    total = torch.empty(num_rows, dtype=torch.float64)
    found = value.data_ptr(), index.data_ptr(), total.data_ptr()
    library.find_likeliest(rows.data_ptr(), num_rows, size, *found)
    return value, index, total


def _sort_keys(logits: torch.Tensor, first_id: int) -> torch.Tensor:
    """Integers that stand in the order of the logits, and among equals in falling order of token ids, so that neither the
    device nor the number of ranks decides a tie. With bfloat16 weights ties are common."""
    bits = logits.view(torch.int32)
    keys = _flip_negative(bits).long()
    keys <<= ID_BITS
    keys -= torch.arange(first_id, first_id + logits.shape[1], device=logits.device)
    return keys


def _from_ordered(ordered: torch.Tensor) -> torch.Tensor:
    return _flip_negative(ordered.int()).view(torch.float32)


def _flip_negative(bits: torch.Tensor) -> torch.Tensor:
    """int32, its own inverse: between a float's bits and an integer that is ordered like the float."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
