"""BlockManager: who owns which block of the KV cache, and which blocks hold a prefix that others can use.

In: sequences that start, grow and end. Out: block ids. A block with a known content keeps it when it is freed, until it is
needed for something else, least recently used first: that is the whole prefix cache. Ints only, no tensors, no I/O.
"""

import array
import hashlib

from text_generation_router.sequence import Sequence


class BlockManager:
    """Full blocks are found by a hash that chains over all tokens before them (SHA-256: strangers share this cache, so
    nobody may be able to make two prefixes collide)."""

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._free: dict[int, None] = dict.fromkeys(range(num_blocks))  # in the order of their last use
        self._num_owners = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_missing(self, sequence: Sequence, num_positions: int) -> int:
        """Blocks that `sequence` lacks to hold `num_positions`."""
        return max(0, -(-num_positions // self.block_size) - len(sequence.block_ids))

    def grow(self, sequence: Sequence, num_positions: int) -> list[int]:
        """Gives `sequence` the blocks that it lacks; the caller has seen that they are free. Returns the new ones."""
        if num_positions <= len(sequence.block_ids) * self.block_size:  # so it is for most tokens
            return []
        new = [self._take_oldest() for _ in range(self.num_missing(sequence, num_positions))]
        sequence.block_ids += new
        return new

    def take_prefix(self, sequence: Sequence) -> None:
        """Gives a sequence without blocks the longest cached prefix of its tokens, in full blocks, and marks those tokens as
        scheduled. One token at least is left to compute: its logits are wanted."""
        num_blocks = (len(sequence.token_ids) - 1) // self.block_size
        for block_hash in self._hashes(sequence, num_blocks):
            block = self._block_of.get(block_hash)
            if block is None:
                break
            self._free.pop(block, None)
            self._num_owners[block] += 1
            sequence.block_ids.append(block)
        sequence.num_scheduled = len(sequence.block_ids) * self.block_size
        sequence.num_registered_blocks = len(sequence.block_ids)

    def register(self, sequence: Sequence, num_computed: int) -> None:
        """Makes the full blocks of `sequence` whose keys and values are computed findable for others."""
        first = sequence.num_registered_blocks
        if num_computed < (first + 1) * self.block_size:  # so it is for most tokens
            return
        hashes = self._hashes(sequence, min(num_computed, len(sequence.token_ids)) // self.block_size)
        for block_hash, block in zip(hashes[first:], sequence.block_ids[first : len(hashes)], strict=True):
            if block_hash not in self._block_of:
                self._block_of[block_hash] = block
                self._hash_of[block] = block_hash
        sequence.num_registered_blocks = len(hashes)

    def release(self, sequence: Sequence) -> None:
        """Takes all blocks back. The last ones come first in the queue for reuse: a prefix is worth most at its front."""
        for block in reversed(sequence.block_ids):
            self._num_owners[block] -= 1
            if self._num_owners[block] == 0:
                self._free[block] = None
        sequence.block_ids = []
        sequence.num_registered_blocks = 0

    def check_integrity(self, sequences: list[Sequence]) -> None:
        """Asserts that every block is free or owned by exactly the sequences that name it. For tests."""
        owners = [0] * self.num_blocks
        for sequence in sequences:
            for block in sequence.block_ids:
                owners[block] += 1
        assert owners == self._num_owners, "a block's owners are miscounted: this is a bug"
        assert self._free.keys() == {block for block, count in enumerate(owners) if not count}, "a block leaked: a bug"
        assert all(self._block_of[known] == block for block, known in self._hash_of.items()), "a stale hash: a bug"

    def _take_oldest(self) -> int:
        block = next(iter(self._free))
        del self._free[block]
        self._num_owners[block] = 1
        if known := self._hash_of.pop(block, None):
            del self._block_of[known]
        return block

    def _hashes(self, sequence: Sequence, num_blocks: int) -> list[bytes]:
        """Of the first so many blocks' tokens, all of them known. The sequence keeps what it takes long to find: while it waits
        for room it is asked again with every step."""
        if not self.prefix_caching:
            return []
        hashes = sequence.block_hashes
        for index in range(len(hashes), num_blocks):
            tokens = sequence.token_ids[index * self.block_size : (index + 1) * self.block_size]
            parent = hashes[-1] if hashes else b""
            hashes.append(hashlib.sha256(parent + array.array("I", tokens).tobytes()).digest())
        return hashes[:num_blocks]
