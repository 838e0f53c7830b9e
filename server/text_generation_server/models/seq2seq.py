"""Seq2seq: models of transformers with an encoder and a decoder, with continuous batching.

In: a model folder. Out: the contract of models. A prompt is what the encoder reads, once; what is generated is the decoder's.
Both keep what they know in the sequence's blocks: the cross-attention's keys and values of prompt position i in slot i, in
layers of their own, and the decoder's own at the slots where the router takes the generated tokens to be, its start token at
that of the last prompt token. The decoding sequences of a step are one call, padded on the left.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from text_generation_server.attention.context import ForwardContext
from text_generation_server.decoding import Decoding
from text_generation_server.errors import StepError
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.models.call import Call
from text_generation_server.models.contract import PagedModel
from text_generation_server.models.row_positions import RowPositions
from text_generation_server.models.seq2seq_config import Seq2seqConfig, check_vocabularies, read_decoding
from text_generation_server.models.sequence_cache import PagedLayer, SequenceCache
from text_generation_server.models.split_model import CACHE_NAMES, GivenOutput, without_trunk
from text_generation_server.models.transformers_loader import TransformersLoader
from text_generation_server.parallel import Parallel

ALIKE = ("led",)  # their decoders take no notice of padding: only rows of equal length run together


class Seq2seq(PagedModel):
    chunked_prefill = False  # every token of a prompt sees those after it
    prefix_cache = False
    decoding: Decoding

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, parallel: Parallel, quantize: str | None
    ) -> None:
        """
        Raises:
            ModelError: transformers cannot load the folder.
            ConfigurationError: it does not split over so many ranks.
        """
        loaded = self.make_loader(folder).load(device, dtype, parallel, quantize)
        model = loaded.model
        self.weight_bytes, self.bytes_read = loaded.weight_bytes, loaded.bytes_read
        check_vocabularies(model.config, loaded.vocab_size)
        self.config = Seq2seqConfig.from_transformers(model.config, loaded.vocab_size)
        self.decoding = read_decoding(folder, model.config, self.config.decoder_positions)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias = model.final_logits_bias[:, parallel.split_padded(loaded.vocab_size)]
        self._encoder, self._decoder = model.get_encoder(), model.get_decoder().base_model
        self._decoder_takes = frozenset(inspect.signature(self._decoder.forward).parameters)
        self._head = without_trunk(model, _name_of(model, self._decoder))
        self._row_positions = RowPositions.take_over(self._decoder, self.config.decoder_positions or 0)
        self._mixes_lengths = model.config.model_type not in ALIKE
        self._own, self._cross = self._find_layers(device)
        self.kv_shapes = [layer.shape for layer in (*self._own, *self._cross)]

    @staticmethod
    def make_loader(folder: Path) -> TransformersLoader:
        """
        Raises:
            ModelError: transformers does not know the model.
        """
        return TransformersLoader(folder, transformers.AutoModelForSeq2SeqLM, None)

    def make_attention(self, cache: KVCache) -> KVCache:
        return cache

    def forward(self, token_ids: torch.Tensor, context: ForwardContext, attention: KVCache) -> torch.Tensor:
        """token_ids [num_tokens] → hidden states [num_wanted, hidden_size]. Those of prompt tokens are zeros, but for the last
        one, in whose place the decoder says its first token.

        Raises:
            StepError: a part of a prompt, more than one generated token at a time, or more than the decoder has positions.
        """
        tokens = token_ids.split(context.query_lengths)
        step = _Step(context, attention, self.config.encoder_positions)
        self._check(step)
        hidden: list[torch.Tensor] = [token_ids] * len(tokens)
        for rows in self._calls(step):
            call = self._begin if rows[0] in step.begun else self._go_on
            for row, states in zip(rows, call(step, rows, [tokens[row] for row in rows]), strict=True):
                hidden[row] = states
        return context.pick_wanted(torch.cat(hidden))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [num_rows, hidden_size] → this rank's logits [num_rows, vocab_size_local] float32, with all that the model
        does to them."""
        encoded = GivenOutput(last_hidden_state=hidden[:0].unsqueeze(0))  # else it would encode something
        output = self._head(encoder_outputs=encoded, decoder_inputs_embeds=hidden.unsqueeze(0), use_cache=False)
        logits: torch.Tensor = output.logits
        return logits.squeeze(0).float()

    def _check(self, step: "_Step") -> None:
        limit = self.config.decoder_positions
        for row, number in enumerate(step.context.sequence_ids):
            if step.own.context_lengths[row] < 1 or (row not in step.begun and step.context.query_lengths[row] > 1):
                raise StepError(f"sequence {number}: a prompt is encoded as a whole, and then come single tokens")
            if limit and step.own.context_lengths[row] > limit:
                raise StepError(f"sequence {number}: the decoder has {limit} positions")

    def _calls(self, step: "_Step") -> Iterator[list[int]]:
        """Rows that the decoder can compute together: of those that begin, which are as long, after prompts at most twice as
        long as others."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, length in enumerate(step.own.context_lengths):
            is_new = row in step.begun
            key = (length if is_new or not self._mixes_lengths else 0, step.encoder_lengths[row].bit_length() if is_new else 0)
            groups.setdefault(key, []).append(row)
        yield from groups.values()

    def _begin(self, step: "_Step", rows: list[int], tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        """Prompts, and what was generated already where one runs anew: tokens [length] and hidden states [length,
        hidden_size] of each row."""
        lengths = [step.context.prompt_lengths[row] for row in rows]
        limits = [step.encoder_lengths[row] for row in rows]
        pairs = list(zip(tokens, lengths, strict=True))
        encoded = [self._encode(ids[:length], limit) for (ids, length), limit in zip(pairs, limits, strict=True)]
        start = tokens[0].new_tensor([self.decoding.start_token_id])
        given = torch.stack([torch.cat([start, ids[length:]]) for ids, length in pairs])
        output = self._decode(step, rows, given, _padded(encoded))
        unsaid = output.new_zeros(max(lengths) - 1, output.shape[-1])
        return [torch.cat([unsaid[: length - 1], states]) for length, states in zip(lengths, output, strict=True)]

    def _go_on(self, step: "_Step", rows: list[int], tokens: list[torch.Tensor]) -> torch.Tensor:
        """One token [1] of each row → hidden states [num_rows, 1, hidden_size]."""
        return self._decode(step, rows, torch.stack(tokens), None)

    def _encode(self, token_ids: torch.Tensor, limit: int) -> torch.Tensor:
        """[prompt_length] → [at most limit, hidden_size]"""
        if limit < len(token_ids):
            token_ids = torch.cat([token_ids[: limit - 1], token_ids[-1:]])  # the last one says that the text is at its end
        token_ids = token_ids.unsqueeze(0)
        if hasattr(self._encoder, "set_attention_type"):  # a short text makes it look at everything, for good
            self._encoder.set_attention_type(self._encoder.config.attention_type)
        hidden: torch.Tensor = self._encoder(input_ids=token_ids, attention_mask=torch.ones_like(token_ids)).last_hidden_state
        return hidden.squeeze(0)

    def _decode(
        self, step: "_Step", rows: list[int], token_ids: torch.Tensor, encoded: torch.Tensor | None
    ) -> torch.Tensor:
        """token_ids [num_rows, length] → hidden states [num_rows, length, hidden_size]. `encoded` [num_rows, prompt_length,
        hidden_size] of rows that begin."""
        own, cross = step.own_call(rows), step.cross_call(rows)
        cache = EncoderDecoderCache(SequenceCache(self._own, own), SequenceCache(self._cross, cross))
        if encoded is None:  # their keys and values are known, and their number is all that is asked for
            encoded = torch.empty(*cross.positions.shape, 1, dtype=self._decoder.dtype, device=token_ids.device)
        return self._run(token_ids, own.query_positions, own.mask, encoded, cross.mask, cache)

    def _run(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        encoded: torch.Tensor,
        encoded_mask: torch.Tensor,
        cache: EncoderDecoderCache,
    ) -> torch.Tensor:
        """token_ids and positions [num_rows, length], mask [num_rows, past and length], encoded [num_rows, prompt_length, …],
        its mask [num_rows, prompt_length] → hidden states [num_rows, length, hidden_size]."""
        if self._row_positions is not None:
            self._row_positions.positions = positions
        given = {"position_ids": positions, "attention_mask": mask, "encoder_attention_mask": encoded_mask}
        cache_name = next(name for name in CACHE_NAMES if name in self._decoder_takes)
        output = self._decoder(
            input_ids=token_ids,
            encoder_hidden_states=encoded,
            use_cache=True,
            **{name: given[name] for name in given.keys() & self._decoder_takes},
            **{cache_name: cache},
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    @torch.inference_mode()
    def _find_layers(self, device: torch.device) -> tuple[list["_OwnLayer"], list["_CrossLayer"]]:
        """What the layers keep of a token: they are run once."""
        cache = EncoderDecoderCache(DynamicCache(config=self._decoder.config), DynamicCache())
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        encoded = self._encode(token.squeeze(0), 1).unsqueeze(0)
        self._run(token, token, token + 1, encoded, token + 1, cache)
        own, cross = cache.self_attention_cache.layers, cache.cross_attention_cache.layers
        return (
            [_OwnLayer(index, layer) for index, layer in enumerate(own)],
            [_CrossLayer(index, layer) for index, layer in enumerate(cross, start=len(own))],
        )


class _OwnLayer(PagedLayer):
    """What the decoder has said, as layer `index` of the KV cache."""

    def __init__(self, index: int, used: Any) -> None:
        """`used`: the model's own layer, with a token in it."""
        super().__init__()
        self.index = index
        self.is_sliding = used.is_sliding
        self.dtype = used.keys.dtype
        self.shape = KVShape(used.keys.shape[1], used.keys.shape[3], used.values.shape[3])


class _CrossLayer(_OwnLayer):
    """What the encoder has read: written once, and read where the model looks for it."""

    @property
    def keys(self) -> torch.Tensor:
        """[num_rows, num_heads, prompt_length, head_dim]"""
        return self.call.gather(self.call.cache.keys[self.index], "keys").to(self.dtype)

    @keys.setter
    def keys(self, _: torch.Tensor | None) -> None:
        """They are not kept here."""

    @property
    def values(self) -> torch.Tensor:
        """[num_rows, num_heads, prompt_length, head_dim]"""
        return self.call.gather(self.call.cache.values[self.index], "values").to(self.dtype)

    @values.setter
    def values(self, _: torch.Tensor | None) -> None:
        """They are not kept here."""


class _Step:
    """A step as the decoder sees it: its own tokens, and the prompts that it attends to."""

    def __init__(self, context: ForwardContext, cache: KVCache, encoder_positions: int | None) -> None:
        self.context = context
        self.cache = cache
        self.reuses_memory = context.block_tables.device.type == "cpu"  # a layer is done with what it was given
        lengths = zip(context.query_lengths, context.context_lengths, strict=True)
        self.begun = {row for row, (query_length, length) in enumerate(lengths) if query_length == length}
        self.encoder_lengths = [min(length, encoder_positions or length) for length in context.prompt_lengths]
        pairs = zip(context.context_lengths, context.prompt_lengths, strict=True)
        own_lengths = [length - prompt_length + 1 for length, prompt_length in pairs]  # with the start token
        self.own = self._of_decoder(own_lengths, 1)
        self.cross = self._of_decoder(self.encoder_lengths, 0)

    def own_call(self, rows: list[int]) -> Call:
        offsets = [self.context.prompt_lengths[row] - 1 for row in rows]
        return Call(self.own, rows, self.cache, offsets, self.reuses_memory)

    def cross_call(self, rows: list[int]) -> Call:
        return Call(self.cross, rows, self.cache, None, self.reuses_memory)

    def _of_decoder(self, lengths: list[int], num_new: int) -> ForwardContext:
        """Rows of these lengths, all of which is new in those that begin, and `num_new` tokens of it in the others."""
        new = [length if row in self.begun else num_new for row, length in enumerate(lengths)]
        return dataclasses.replace(self.context, query_lengths=new, context_lengths=lengths)


def _padded(encoded: list[torch.Tensor]) -> torch.Tensor:
    """[prompt_length, hidden_size] of each row → [num_rows, the longest prompt_length, hidden_size]"""
    longest = max(map(len, encoded))
    return torch.stack([torch.nn.functional.pad(states, (0, 0, longest - len(states), 0)) for states in encoded])


def _name_of(model: Any, wanted: torch.nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)
