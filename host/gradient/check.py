"""A check that a vector-Jacobian product is the derivative of what was computed, by two more evaluations of it.

What runs inside a host cannot all be known beforehand: kernels without a backward, steps taken from a cache, buffers that
are used again. Each of them gives a wrong gradient and no error. So before a network is trusted, its product is
compared with a central difference, once for each network with its patches, size and dtype in a process.
"""

import logging
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..comfy.memory import is_out_of_memory
from .random_state import random_state_kept

Function = Callable[[Tensor], Tensor]

DENOISER = "denoiser"
DECODER = "decoder"

# Half the distance between the two evaluations, as a share of the input's root mean square: wide enough for a rounded
# difference to say something, near enough for the function to be a line between them.
STEPS = {torch.float64: 1e-4, torch.float32: 3e-3, torch.float16: 0.03}
COARSE_STEP = 0.1  # bfloat16, and whatever has fewer bits
# How far the ratio may lie from 1 where nothing is rounded and nothing bends.
TOLERANCE = 0.005


class Comparison(NamedTuple):
    """A vector-Jacobian product beside the central difference.

    Attributes:
        ratio: the change that the product predicts, divided by the change that was seen; 1 where it is right.
        noise: how much of the change is rounding or curvature, by the second difference.
        numbers: how many there are in the change, over which rounding averages.
    """

    ratio: float
    noise: float
    numbers: int

    @property
    def falls_short(self) -> bool:
        """Whether the product lacks more than rounding can hide.

        Rounding adds to the square of the change, which is the ratio's denominator: a third of the squared noise where it is
        independent, the whole of it in networks that choose between branches. Its scatter averages out.
        """
        scatter = 4 * self.noise / math.sqrt(3 * self.numbers)
        return not self.ratio >= 1 - TOLERANCE - self.noise**2 - scatter

    @property
    def goes_beyond(self) -> bool:
        """Whether the product says more than a bend of the function can explain: away from a point it often flattens out."""
        return not self.ratio <= 1 + TOLERANCE + 4 * self.noise**2


class WrongGradientError(Exception):
    """A network's gradient is not the derivative of what it computes. The message says what was found.

    Attributes:
        part: DENOISER or DECODER.
    """

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part


def compare(
    function: Function,
    x: Tensor,
    value: Tensor,
    pull: Function,
    along: Tensor,
    step: float,
    skip: float | Tensor | None = None,
) -> Comparison:
    """Compare `pull`, the vector-Jacobian product of `function` at x, with a central difference.

    The change D = J d along a direction d is itself the cotangent: <J^T D, d> is |D|^2 where pull is right. A part B of
    the Jacobian that pull lacks lowers that by <D, B d>, also where B acts on other inputs and outputs than the rest;
    along the gradient, or with the cotangent of the run, such a part would not show.

    Args:
        x: where. value: function(x).
        along: a direction that matters, in the shape of x. Noise of the same size is added to it.
        step: how far to go either way, as a share of the root mean square of x.
        skip: how much of x is known to be in the function's value, and is left out of the comparison. Beside the noise that
            a denoiser subtracts from x, a wrong network might not show.
    """
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    direction = along.to(x) / _rms(along).to(x) + noise
    direction = direction * (step * _rms(x) / _rms(direction)).to(x)
    with torch.no_grad():
        above, below = (function(x + sign * direction).double() for sign in (1, -1))
    change = (above - below) / 2
    if skip is not None:
        change -= skip * direction.double()
    size = float(change.norm())
    if not size:
        # a network that answers from memory: right only if the product, too, finds no change
        unmoved = not bool(pull(torch.ones_like(value)).any())
        return Comparison(1.0 if unmoved else math.inf, 0.0, change.numel())
    unit = change.abs().max()  # half precision holds no small cotangents
    cotangent = (change / unit).to(value)
    pulled = pull(cotangent).double()
    if skip is not None:
        pulled -= skip * cotangent.double()
    predicted = (pulled * direction.double()).sum() * unit
    error = (above + below) / 2 - value.double()
    return Comparison(float(predicted) / size**2, float(error.norm()) / size, change.numel())


def _rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt().clamp(min=1e-30)


# What was found of each network, as long as it lives: {what was patched, its size, ...: None or what was wrong}.
_verdicts: WeakKeyDictionary[nn.Module, dict[Hashable, str | None]] = WeakKeyDictionary()


class GradientCheck:
    """Checks the parts of one run that nobody has checked before.

    Args:
        networks: part -> (the network, what else its gradient depends on, the dtype that it computes in).

    Attributes:
        mask: which share of its answers the denoiser gives at this step, where it does not give all.
    """

    def __init__(self, networks: dict[str, tuple[nn.Module, Hashable, torch.dtype]]) -> None:
        self._networks = networks
        self.mask: Tensor | None = None

    def due(self, part: str, x: Tensor) -> bool:
        """Whether this part is still to be compared at inputs like x.

        Raises:
            WrongGradientError: it was found wrong in an earlier run.
        """
        verdicts, key, _ = self._known(part, x)
        if verdicts.get(key):
            raise WrongGradientError(part, str(verdicts[key]))
        return key not in verdicts

    def __call__(
        self,
        part: str,
        function: Function,
        x: Tensor,
        value: Tensor,
        pull: Callable[..., Tensor],
        along: Tensor,
        skip: float | None = None,
    ) -> None:
        """Compare a part (see compare) and remember what was found; `pull` is that of latent_gradient.linearised.

        Raises:
            WrongGradientError: they differ.
        """
        if not (value.isfinite().all() and along.isfinite().all()):
            return  # another run may show it; this one counts what is not finite
        verdicts, key, dtype = self._known(part, x)
        try:
            found = self._compared(function, x, value, pull, along, STEPS.get(dtype, COARSE_STEP), skip)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # the gradient itself had room; it stays unchecked in this run
            logging.info("JEPA guidance: no memory to check the gradient of the %s", part)
            return
        wrong = found.falls_short or found.goes_beyond
        why = f"the gradient of the {part} says {found.ratio:.2f} of the change that was measured"
        verdicts[key] = why if wrong else None
        if wrong:
            raise WrongGradientError(part, why)

    def _compared(
        self,
        function: Function,
        x: Tensor,
        value: Tensor,
        pull: Callable[..., Tensor],
        along: Tensor,
        step: float,
        skip: float | None,
    ) -> Comparison:
        share = skip if skip is None or self.mask is None else skip * self.mask.double() ** 2
        with random_state_kept(x.device):  # some decoders draw noise
            found = compare(
                function, x, value, lambda cotangent: pull(cotangent, keep=True), along, step, share
            )
            if found.goes_beyond:  # a function that bends so much is rare
                found = compare(function, x, value, pull, along, step / 5, share)
        return found

    def _known(self, part: str, x: Tensor) -> tuple[dict[Hashable, str | None], Hashable, torch.dtype]:
        network, what, dtype = self._networks[part]
        masked = part == DENOISER and self.mask is not None
        return _verdicts.setdefault(network, {}), (what, masked, tuple(x.shape), dtype), dtype


def kinds(value: Any, depth: int = 8) -> Hashable:
    """The names of the functions and classes in nested options: the same for the same graph that is queued again."""
    if isinstance(value, dict) and depth:
        return tuple(sorted((str(key), repr(kinds(part, depth - 1))) for key, part in value.items()))
    if isinstance(value, (list, tuple)) and depth:
        return tuple(kinds(part, depth - 1) for part in value)
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return ""
    return getattr(value, "__qualname__", type(value).__qualname__)
