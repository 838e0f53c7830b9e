"""What two ranks compute together, in two processes: one program, whose results several tests look at.

Rank 1 dies at the end without a word, so that rank 0 can tell what that looks like.
"""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import torch

HEADS = 12
PROMPT = [1, 300, 150, 151, 149, 20, 21]
GAMMA, DELTA = 0.25, 4.0
TIMEOUT_SECONDS = 30.0


def run(model: Path, folder: Path, port: int) -> list[dict[str, Any]]:
    """Each rank's results, by name."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=_rank, args=(rank, model, folder, port)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def sampler_input() -> tuple[torch.Tensor, list[Any]]:
    """Logits [9, VOCAB_SIZE] and a sequence for each: greedy, drawn, penalized, equal best tokens on both ranks, watermarked,
    biased; most of them with top tokens, one with more than one rank's share has."""
    from sampling_rows import make_logits, make_sampling
    from text_generation_server.sequences import SequenceState

    logits = make_logits(9, seed=3)
    logits[4, [200, 100]] = 50.0
    samplings = [
        make_sampling(do_sample=False),
        make_sampling(temperature=2.0, seed=11),
        make_sampling(do_sample=False, repetition_penalty=3.0),
        make_sampling(top_k=40, top_p=0.9, repetition_penalty=1.5, seed=12),
        make_sampling(do_sample=False),
        make_sampling(do_sample=False, watermark=True),
        make_sampling(typical_p=0.8, watermark=True, seed=13),
        make_sampling(do_sample=False, logit_bias={150: 100.0, 151: 105.0}),
        make_sampling(do_sample=False, frequency_penalty=1.5, presence_penalty=0.5),
    ]
    seen = [1, int(logits[2].argmax()), int(logits[3].argmax()), 300, *logits[8].topk(3).indices.tolist()]
    num_top = [0, 2, 3, 1, 2, 200, 5, 2, 4]
    rows = zip(samplings, num_top, strict=True)
    return logits, [SequenceState(0, seen, sampling, num_prompt_tokens=3, num_top_tokens=n) for sampling, n in rows]


def _large(rank: int) -> torch.Tensor:
    """More than ranks hand each other at once."""
    return torch.arange(700_000.0).view(7, -1) * (rank + 1)


def _rank(rank: int, model: Path, folder: Path, port: int) -> None:
    from runner_steps import all_logits, generate, make_runner, score_prompt
    from sampling_rows import VOCAB_SIZE
    from text_generation_server.errors import ShardLost
    from text_generation_server.logits import Watermark
    from text_generation_server.parallel import Parallel
    from text_generation_server.sampler import Sampler

    torch.set_num_threads(1)
    parallel = Parallel.connect(rank, 2, torch.device("cpu"), "127.0.0.1", port, TIMEOUT_SECONDS)
    mine = torch.arange(4.0) + 10 * rank
    logits, sequences = sampler_input()
    sampler = Sampler(VOCAB_SIZE, parallel, Watermark(GAMMA, DELTA))
    runner = make_runner(model, parallel, kv_cache_gib=0.01 * (rank + 1))
    results = {
        "all_reduce": parallel.all_reduce(mine.clone()),
        "all_reduce_large": parallel.all_reduce(_large(rank)),
        "all_gather": parallel.all_gather(mine),
        "all_gather_large": parallel.all_gather(_large(rank)),
        "broadcast": parallel.broadcast(mine.clone()),
        "minimum": parallel.minimum(7 - rank),
        "sampled": tuple(sampler.sample(logits[:, sampler.rows].clone(), sequences)),
        "logits": all_logits(runner, PROMPT),
        "generated": generate(runner, PROMPT, 8),
        "prompt_logprobs": score_prompt(runner, PROMPT, num_top_tokens=200, chunk=3),
        "bytes_read": runner.weight_bytes_read,
        "weight_bytes": runner.model.weight_bytes,
        "num_blocks": runner.num_blocks,
    }
    torch.save(results, folder / f"rank-{rank}.pt")
    parallel.broadcast(torch.zeros(1))  # both have saved
    if rank == 1:
        os._exit(9)
    start_seconds = time.monotonic()
    try:
        parallel.all_reduce(mine)
        parallel.all_reduce(mine)
    except ShardLost as error:
        results["loss"] = str(error)
    results["loss_seconds"] = time.monotonic() - start_seconds
    torch.save(results, folder / "rank-0.pt")
    os._exit(0)
