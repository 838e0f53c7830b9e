"""What continuous batching is worth to models other than BLOOM: the same requests, one after the other and 16 at a time.

In: nothing. Out: one Markdown table with a row for each shape: two decoders in transformers' own code (the fallback), two
models with an encoder, and a Llama for comparison, all with random weights and made in a temporary folder. The peer is
transformers' `generate` of the same prompts in padded batches of 16, after the server has stopped.
"""

import argparse
import asyncio
import dataclasses
import logging
import random
import string
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from generated_model import byte_tokenizer
from hardware import heading, num_cores
from load import Load
from served_model import ServedModel
from table import markdown, median
from tokenizers import Tokenizer
from transformers import BartConfig, GPTJConfig, LlamaConfig, MambaConfig, PreTrainedConfig, T5Config

NUM_CLIENTS = 16
PROMPT_TOKENS = 8, 128  # from, to
NEW_TOKENS = 16, 64
NO_END: dict[str, Any] = {"eos_token_id": None, "pad_token_id": 3}  # all answers are as long as they may be
LAUNCHER_FLAGS = ("--no-prefix-caching",)  # the same prompts come again and again
TITLES = (
    *("shape", "way", "parameters", "1 client", f"{NUM_CLIENTS} clients", "ratio", "in windows"),
    *("transformers", f"{NUM_CLIENTS} clients / transformers"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    way: str  # to it, in the server
    config: Callable[[], PreTrainedConfig]
    auto_class: Any = transformers.AutoModelForCausalLM


SHAPES = {
    "gptj": Shape("fallback", lambda: GPTJConfig(n_embd=768, n_layer=12, n_head=12, rotary_dim=64, **NO_END)),
    "mamba": Shape("fallback", lambda: MambaConfig(hidden_size=768, num_hidden_layers=24, **NO_END)),
    "t5": Shape("seq2seq", lambda: T5Config(decoder_start_token_id=0, **NO_END), transformers.AutoModelForSeq2SeqLM),
    "bart": Shape(
        "seq2seq",
        lambda: BartConfig(
            **dict.fromkeys(("encoder_layers", "decoder_layers"), 6),
            **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 12),
            **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 3072),
            d_model=768,
            forced_eos_token_id=None,
            **NO_END,
        ),
        transformers.AutoModelForSeq2SeqLM,
    ),
    "llama": Shape(
        "adapter",
        lambda: LlamaConfig(
            hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, **NO_END
        ),
    ),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    prompt: str  # of ASCII letters: as many tokens
    num_new_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Speeds in tokens per second, one a window."""

    name: str
    num_parameters: int
    alone: list[float]
    together: list[float]
    peer: list[float]

    def cells(self) -> list[str]:
        alone, together, peer = (median(speeds) for speeds in (self.alone, self.together, self.peer))
        ratios = [many / one for one, many in zip(self.alone, self.together, strict=True)]
        return [
            self.name,
            SHAPES[self.name].way,
            f"{self.num_parameters / 1e6:.0f} M",
            *(f"{speed:.1f}" for speed in (alone, together)),
            f"{together / alone:.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{peer:.1f}",
            f"{together / peer:.2f}",
        ]


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Serve models with random weights, one after the other, and send the same requests of mixed lengths "
        f"through HTTP twice: one after the other, and by {NUM_CLIENTS} clients at a time. Print a Markdown table of output "
        "tokens per second, with what transformers' generate makes of the same prompts in padded batches of "
        f"{NUM_CLIENTS}, each computed up to its longest answer; only tokens that were asked for count."
    )
    parser.add_argument(
        "--shapes", type=_names, default=list(SHAPES), metavar="NAME,…", help=f"default: all, {','.join(SHAPES)}"
    )
    parser.add_argument("--requests", type=int, default=32, metavar="N", help="in each window; default: 32")
    parser.add_argument("--windows", type=int, default=3, metavar="N", help="the median of so many counts; default: 3")
    parser.add_argument("--quick", action="store_true", help=f"one window of {NUM_CLIENTS} requests")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.requests, arguments.windows = NUM_CLIENTS, 1
    return arguments


def make_requests(num_requests: int) -> list[Request]:
    chance = random.Random(0)

    def text() -> str:
        return "".join(chance.choices(string.ascii_lowercase, k=chance.randint(*PROMPT_TOKENS)))

    return [Request(text(), chance.randint(*NEW_TOKENS)) for _ in range(num_requests)]


def measure(name: str, requests: list[Request], num_windows: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="text-generation-batching-") as temporary:
        folder = Path(temporary)
        num_parameters = _generate_model(SHAPES[name], folder)
        with ServedModel(folder, LAUNCHER_FLAGS) as server:
            info = server.info()
            _serve(server.url, requests, NUM_CLIENTS)  # first calls are not counted
            pairs = [[_serve(server.url, requests, number) for number in (1, NUM_CLIENTS)] for _ in range(num_windows)]
        alone, together = map(list, zip(*pairs, strict=True))
        peer = Peer(folder, SHAPES[name].auto_class, info)
        return Row(name, num_parameters, alone, together, [peer.speed(requests) for _ in range(1 + num_windows)][1:])


def _generate_model(shape: Shape, folder: Path) -> int:
    """Its number of parameters."""
    config = shape.config()
    torch.manual_seed(0)
    model = shape.auto_class.from_config(config)
    model.save_pretrained(folder)
    byte_tokenizer(config.vocab_size).save(str(folder / "tokenizer.json"))
    return int(model.num_parameters())


def _serve(url: str, requests: list[Request], num_clients: int) -> float:
    """Tokens per second of clients that take the next request as soon as their last one is answered."""
    pending = iter(requests)

    async def client() -> None:
        for request in pending:
            await Load(url, iter([request.prompt]), request.num_new_tokens).run(num_clients=1, num_rounds=1)

    async def clients() -> None:
        await asyncio.gather(*(client() for _ in range(num_clients)))

    start_seconds = time.perf_counter()
    asyncio.run(clients())
    return _num_tokens(requests) / (time.perf_counter() - start_seconds)


class Peer:
    def __init__(self, folder: Path, auto_class: Any, info: dict[str, Any]) -> None:
        torch.set_num_threads(num_cores())
        self._device = torch.device(info["model_device_type"])
        self._model = auto_class.from_pretrained(folder, dtype=getattr(torch, info["model_dtype"])).to(self._device).eval()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        direction = "right" if self._model.config.is_encoder_decoder else "left"
        self._tokenizer.enable_padding(direction=direction, pad_id=NO_END["pad_token_id"])

    def speed(self, requests: list[Request]) -> float:
        """Tokens per second that were asked for."""
        start_seconds = time.perf_counter()
        for start in range(0, len(requests), NUM_CLIENTS):
            self._generate(requests[start : start + NUM_CLIENTS])
        return _num_tokens(requests) / (time.perf_counter() - start_seconds)

    def _generate(self, batch: Sequence[Request]) -> None:
        encoded = self._tokenizer.encode_batch([request.prompt for request in batch])
        num_new_tokens = max(request.num_new_tokens for request in batch)
        output = self._model.generate(
            torch.tensor([row.ids for row in encoded], device=self._device),
            attention_mask=torch.tensor([row.attention_mask for row in encoded], device=self._device),
            max_new_tokens=num_new_tokens,
            do_sample=False,
        )
        begin = 1 if self._model.config.is_encoder_decoder else len(encoded[0].ids)
        assert output.shape[1] == begin + num_new_tokens, "the peer ended early: the ratio would be wrong"
        output.cpu()  # waits for a GPU


def report(arguments: argparse.Namespace, rows: list[Row]) -> str:
    lengths = "prompts of {} to {} tokens, answers of {} to {}".format(*PROMPT_TOKENS, *NEW_TOKENS)
    what = f"{arguments.requests} requests, {lengths}; output tokens/s, medians of {arguments.windows} window(s)."
    return "\n".join([heading(), "", what, "", markdown(TITLES, [row.cells() for row in rows])])


def _num_tokens(requests: list[Request]) -> int:
    return sum(request.num_new_tokens for request in requests)


def _names(text: str) -> list[str]:
    if unknown := set(text.split(",")) - SHAPES.keys():
        raise argparse.ArgumentTypeError(f"no such shape: {', '.join(sorted(unknown))}")
    return text.split(",")


def _measure_all(arguments: argparse.Namespace) -> Iterator[Row]:
    requests = make_requests(arguments.requests)
    for name in arguments.shapes:
        row = measure(name, requests, arguments.windows)
        print(" ".join(row.cells()), file=sys.stderr, flush=True)
        yield row


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    print(report(arguments, list(_measure_all(arguments))))


if __name__ == "__main__":
    main()
