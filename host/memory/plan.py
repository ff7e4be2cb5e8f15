"""The way that fits the device, and the next one if memory runs out all the same."""

from collections.abc import Callable, Hashable, Sequence
from weakref import WeakKeyDictionary

from torch import nn

from ..gradient.ways import Way

# Beyond what is counted: kernels' workspaces, fragments, and results that are kept for a moment.
_MARGIN = 1.1
_WORKSPACE = 256 << 20
# After a failure the next way is expected to take at most this share of what failed: no second failure follows.
_AFTER_FAILURE = 0.7

# What failed before: {network: {size and way of a run: the least that was expected and did not fit}}. A restart forgets it.
_failed: WeakKeyDictionary[nn.Module, dict[Hashable, float]] = WeakKeyDictionary()


class MemoryPlan:
    """Chooses among the ways of a run.

    Args:
        ways: from the one that was asked for to the one with least memory.
        needs: bytes that each takes beyond the weights.
        free: bytes that the host can free for each, beside the weights that it needs in place.
        network, key: what a failure is remembered for.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        needs: Callable[[Way], int],
        free: Callable[[Way], int],
        network: nn.Module,
        key: Hashable,
    ) -> None:
        self._ways = ways
        self._needs = needs
        self._free = free
        self._known = _failed.setdefault(network, {})
        self._key = key
        self._tried: set[Way] = set()

    def best(self) -> Way:
        """The first way that fits; the one with least memory if none does."""
        known = _AFTER_FAILURE * self._known.get(self._key, float("inf"))
        return next(
            (way for way in self._ways if self.reserve(way) <= min(known, self._free(way))), self._ways[-1]
        )

    def reserve(self, way: Way) -> int:
        """Bytes to keep free for a way."""
        return int(_MARGIN * self._needs(way)) + _WORKSPACE

    def after_failure(self, way: Way) -> Way | None:
        """The way to continue with when this one ran out of memory, now and in later runs; None if nothing is left."""
        failed = self.reserve(way)
        self._known[self._key] = min(failed, self._known.get(self._key, float("inf")))
        # a chain may return to an earlier way by itself, if images depend on the rest of their batch
        self._tried.add(way)
        later = self._ways[self._ways.index(way) + 1 :] if way in self._ways else []
        left = [one for one in later if one not in self._tried]
        if not left:
            return None
        return next((one for one in left if self.reserve(one) <= _AFTER_FAILURE * failed), left[-1])
