"""The way that fits the device, and the next one if memory runs out all the same."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from ..gradient.ways import Way

# Beyond what is counted: kernels' workspaces, fragments, and results that are kept for a moment.
_MARGIN = 1.1
_WORKSPACE = 256 << 20
# After a failure the next way is expected to take at most this share of what failed, so that it does not fail again.
_AFTER_FAILURE = 0.7
# A device that has this much more free than when a way failed is another case: something else held its memory then.
_FREER = 1.1


class Failure(NamedTuple):
    """What a way that failed was expected to take, and what was free then, in bytes."""

    expected: int
    free: int


# {network: {size and way of a run: its worst failure}}. A restart forgets it.
_failures: WeakKeyDictionary[nn.Module, dict[Hashable, Failure]] = WeakKeyDictionary()


class MemoryPlan:
    """Chooses among the ways of a run.

    Args:
        ways: from the one that was asked for to the one with least memory.
        needs: bytes that each takes beyond the weights.
        free: bytes that the host can free, beside the weights that the run needs.
        network, key: what a failure is remembered for.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        needs: Callable[[Way], int],
        free: Callable[[], int],
        network: nn.Module,
        key: Hashable,
    ) -> None:
        self._ways = ways
        self._needs = needs
        self._free = free
        self._known = _failures.setdefault(network, {})
        self._key = key
        self._tried: set[Way] = set()

    def best(self) -> Way:
        """The first way that fits and is not known to fail; the one with least memory if there is none."""
        return next((way for way in self._ways if self._fits(way)), self._ways[-1])

    def _fits(self, way: Way) -> bool:
        free = self._free()
        failure = self._known.get(self._key)
        if failure and free < _FREER * failure.free and self._needs(way) > _AFTER_FAILURE * failure.expected:
            return False
        return self.reserve(way) <= free

    def reserve(self, way: Way) -> int:
        """Bytes to keep free for a way."""
        return int(_MARGIN * self._needs(way)) + _WORKSPACE

    def after_failure(self, way: Way) -> Way | None:
        """The way to continue with when this one ran out of memory, now and in later runs; None if nothing is left.

        The first that takes enough less. If none is expected to, the last one with the same effect, or else the last one.
        """
        failure = Failure(self._needs(way), self._free())
        self._known[self._key] = min(failure, self._known.get(self._key, failure))
        # a chain may return to an earlier way by itself, if images depend on the rest of their batch
        self._tried.add(way)
        later = self._ways[self._ways.index(way) + 1 :] if way in self._ways else []
        left = [one for one in later if one not in self._tried]
        if not left:
            return None
        same = [one for one in left if one.same_effect(way)]
        enough = (one for one in left if self._needs(one) <= _AFTER_FAILURE * failure.expected)
        return next(enough, (same or left)[-1])
