"""Limits: what one request may ask for.

In: the flags, and what the shards say of their model. Out: numbers of tokens that requests are checked against.
"""

import dataclasses
import logging

from text_generation_router.config import RouterConfig
from text_generation_router.shards import Model

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for, in tokens; their ids are below `vocab_size`."""

    max_input_tokens: int
    max_total_tokens: int
    vocab_size: int
    max_new_tokens: int | None = None  # None: what the prompt leaves
    decoder_start_token_id: int | None = None  # set where a prompt is read and not continued


def limits(config: RouterConfig, model: Model) -> Limits:
    """The flags, within what the model was made for and the KV cache can hold for one request."""
    most = min(model.max_positions, model.num_blocks * model.block_size)
    total = min(config.max_total_tokens or most, most)
    if config.max_total_tokens and config.max_total_tokens > total:
        logger.warning("max_total_tokens=%d is more than the shards hold; using %d", config.max_total_tokens, total)
    return Limits(
        max_input_tokens=min(config.max_input_tokens or total, total - 1),
        max_total_tokens=total,
        vocab_size=model.vocab_size,
        max_new_tokens=model.max_new_tokens,
        decoder_start_token_id=model.decoder_start_token_id,
    )
