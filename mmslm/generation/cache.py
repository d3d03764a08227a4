"""The keys and values that generation keeps: one block of memory per slot, filled from the front.

transformers' caches concatenate for every token or mask their whole length; here a token is written in place and
attention sees a view. It refuses to be overfilled. Models with linear attention keep sums instead (`SumCache`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class SlotCache:
    """Keys and values of a batch, per slot [B, G, capacity, d], of which the first `length` positions are filled.

    `update` writes behind `length` and returns everything up to there; `advance` moves `length` once all slots have
    written.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], length: int) -> None:
        self.keys = keys
        self.values = values
        self.length = length

    @classmethod
    def empty(cls, slots: int, batch: int, heads: int, capacity: int, width: int, like: Tensor) -> "SlotCache":
        """A cache for `capacity` positions with the type and device of `like`."""

        def blocks() -> list[Tensor]:
            shape = (batch, heads, capacity, width)
            return [torch.empty(shape, dtype=like.dtype, device=like.device) for _ in range(slots)]

        return cls(blocks(), blocks(), 0)

    @classmethod
    def from_prefixes(cls, prefixes: Sequence["SlotCache"], capacity: int) -> "SlotCache":
        """One batch whose rows start with these filled caches (each of batch 1 and one length); they stay untouched.

        Raises ValueError for prefixes of different lengths.
        """
        first = prefixes[0]
        lengths = {prefix.length for prefix in prefixes}
        if len(lengths) != 1:
            raise ValueError(f"Prefixes of lengths {sorted(lengths)} cannot share a batch; group them by length.")
        _, heads, _, width = first.keys[0].shape
        cache = cls.empty(len(first.keys), len(prefixes), heads, capacity, width, first.keys[0])
        size = cache.length = first.length
        for slot in range(len(first.keys)):
            for row, prefix in enumerate(prefixes):
                cache.keys[slot][row, :, :size] = prefix.keys[slot][0, :, :size]
                cache.values[slot][row, :, :size] = prefix.values[slot][0, :, :size]
        return cache

    def rows(self) -> list["SlotCache"]:
        """The batch's rows as caches of their own, cut to what is filled (copies, so that memory is not held)."""
        size = self.length
        return [
            SlotCache(
                [block[row : row + 1, :, :size].clone() for block in self.keys],
                [block[row : row + 1, :, :size].clone() for block in self.values],
                size,
            )
            for row in range(self.keys[0].shape[0])
        ]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write [B, G, T, d] behind what is filled; returns views [B, G, length + T, d]. Raises IndexError when full."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        stop = self.length + key_states.shape[2]
        if stop > keys.shape[2]:
            raise IndexError(f"The cache holds {keys.shape[2]} positions, but {stop} are needed; make it larger.")
        keys[:, :, self.length : stop] = key_states
        values[:, :, self.length : stop] = value_states
        return keys[:, :, :stop], values[:, :, :stop]

    def advance(self, count: int) -> None:
        """`count` positions were written in every slot."""
        self.length += count

    def keep(self, rows: Tensor) -> None:
        """Only these rows of the batch stay, in this order."""
        self.keys = [block[rows] for block in self.keys]
        self.values = [block[rows] for block in self.values]

    @property
    def bytes(self) -> int:
        """Memory that is held, in bytes."""
        return sum(block.numel() * block.element_size() for block in (*self.keys, *self.values))


class SumCache(SlotCache):
    """The sums of linear attention, per slot [B, G, d, d] and [B, G, d] in fp32, whatever the number of tokens."""

    @classmethod
    def empty(cls, slots: int, batch: int, heads: int, capacity: int, width: int, like: Tensor) -> "SumCache":
        """Sums of nothing; any number of tokens fits."""
        keys = [torch.zeros(batch, heads, width, width, device=like.device) for _ in range(slots)]
        return cls(keys, [torch.zeros(batch, heads, width, device=like.device) for _ in range(slots)], 0)

    @classmethod
    def from_prefixes(cls, prefixes: Sequence[SlotCache], capacity: int) -> "SumCache":
        """One batch whose rows start from these sums; they stay untouched. Raises ValueError for different lengths."""
        lengths = {prefix.length for prefix in prefixes}
        if len(lengths) != 1:
            raise ValueError(f"Prefixes of lengths {sorted(lengths)} cannot share a batch; group them by length.")
        slots = range(len(prefixes[0].keys))
        return cls(
            [torch.cat([prefix.keys[slot] for prefix in prefixes]) for slot in slots],
            [torch.cat([prefix.values[slot] for prefix in prefixes]) for slot in slots],
            lengths.pop(),
        )

    def rows(self) -> list[SlotCache]:
        """The batch's rows as sums of their own."""
        return [
            SumCache([k[row : row + 1] for k in self.keys], [v[row : row + 1] for v in self.values], self.length)
            for row in range(self.keys[0].shape[0])
        ]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, count: int = 0) -> tuple[Tensor, Tensor]:
        """Add the sums of new tokens; returns the sums of those before. `advance` counts the tokens."""
        before = self.keys[layer_idx], self.values[layer_idx]
        self.keys[layer_idx], self.values[layer_idx] = before[0] + key_states, before[1] + value_states
        return before


__all__ = ["SlotCache", "SumCache"]
