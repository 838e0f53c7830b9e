"""The vocabulary, whole and split where it does not divide: vectors and logits are the table's."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from runner_steps import all_logits, generate, make_runner
from sampling_rows import VOCAB_SIZE
from text_generation_server.layers.embedding import VocabEmbedding, load_head
from text_generation_server.parallel import Parallel
from text_generation_server.weights import Weights
from two_ranks import PROMPT

TABLE = torch.randn(VOCAB_SIZE, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"table": TABLE}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_are_rows_of_the_table(folder: Path, dtype: torch.dtype) -> None:
    weights = Weights(folder, torch.device("cpu"), dtype)
    embedding = VocabEmbedding(weights, "table", VOCAB_SIZE, 16, Parallel())
    assert torch.equal(embedding(torch.tensor([0, 300, 7])), TABLE[[0, 300, 7]].to(dtype))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_parts_of_the_head_join_to_all_logits(folder: Path, world_size: int) -> None:
    hidden = torch.randn(4, 16)
    parts = []
    for rank in range(world_size):
        weights = Weights(folder, torch.device("cpu"), torch.float32)
        embedding = VocabEmbedding(weights, "table", VOCAB_SIZE, 16, Parallel(rank, world_size))
        parts.append(load_head(weights, "head", embedding, is_tied=True)(hidden))
        assert weights.bytes_read == parts[-1].shape[1] * 16 * 4
    torch.testing.assert_close(torch.cat(parts, dim=1), F.linear(hidden, TABLE))


def test_two_ranks_give_the_logits_and_tokens_of_one(uneven_bloom: Path, ranks: list[dict[str, Any]]) -> None:
    runner = make_runner(uneven_bloom)
    both = torch.cat([results["logits"] for results in ranks], dim=1)
    torch.testing.assert_close(both, all_logits(runner, PROMPT), rtol=1e-4, atol=1e-3)
    token_ids, logprobs = generate(runner, PROMPT, 8)
    for results in ranks:
        assert results["generated"][0] == token_ids
        assert results["generated"][1] == pytest.approx(logprobs, abs=1e-3)


def test_two_ranks_hold_about_half_each_and_take_the_smaller_kv_cache(
    uneven_bloom: Path, ranks: list[dict[str, Any]]
) -> None:
    whole = make_runner(uneven_bloom).model.weight_bytes
    assert ranks[0]["num_blocks"] == ranks[1]["num_blocks"]
    assert ranks[0]["weight_bytes"] + ranks[1]["weight_bytes"] == whole
    assert abs(ranks[0]["weight_bytes"] - ranks[1]["weight_bytes"]) < 0.01 * whole
