"""A check of a vector-Jacobian product against a central difference, at the cost of two more evaluations.

Not everything that runs in a host is known beforehand: kernels without a backward pass, cached steps, buffers that are
reused. Each of these gives a wrong gradient without an error. So the gradient of a network is checked before it is
used, once per process for each network, with its patches, input size and dtype.
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
from .rows import row_of_attributes

Function = Callable[[Tensor], Tensor]

DENOISER = "denoiser"
DECODER = "decoder"

# Half the distance between the two evaluations, as a share of the input's root mean square: large enough for the change
# to exceed rounding, small enough for the function to be nearly linear.
STEPS = {torch.float64: 1e-4, torch.float32: 3e-3, torch.float16: 0.03}
COARSE_STEP = 0.1  # for bfloat16, and dtypes of fewer bits
# How far the ratio may be from 1 without any rounding or curvature.
TOLERANCE = 0.005


class Comparison(NamedTuple):
    """A vector-Jacobian product compared with a central difference.

    Attributes:
        ratio: the change that the product predicts, divided by the measured change; 1 if the product is right.
        noise: the share of the change that is rounding or curvature, from the second difference.
        numbers: the number of entries in the change, over which rounding averages out.
    """

    ratio: float
    noise: float
    numbers: int

    @property
    def falls_short(self) -> bool:
        """Whether the predicted change is too small for rounding to explain.

        Rounding adds to the squared change, the denominator of the ratio: a third of the squared noise if errors are
        independent, all of it in networks that choose between branches. The scatter averages out over the entries.
        """
        scatter = 4 * self.noise / math.sqrt(3 * self.numbers)
        return not self.ratio >= 1 - TOLERANCE - self.noise**2 - scatter

    @property
    def goes_beyond(self) -> bool:
        """Whether the predicted change is too large for curvature to explain: functions often flatten out nearby."""
        return not self.ratio <= 1 + TOLERANCE + 4 * self.noise**2


class WrongGradientError(Exception):
    """A network's gradient is not the derivative of its output. The message says what was found.

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

    The change D = J d along a direction d is also used as the cotangent: if pull is right, <J^T D, d> is |D|^2. A part B
    of the Jacobian that pull lacks lowers this by <D, B d>, even if B connects other inputs and outputs than the rest.
    With the gradient as the direction, or the run's own cotangent, such a part could go unnoticed.

    Args:
        x: the point. value: function(x).
        along: a direction that matters, in the shape of x. Noise of the same size is added to it.
        step: how far to go in both directions, as a share of the root mean square of x.
        skip: the known factor of x in the function's value, which is left out of the comparison. A denoiser subtracts the
            noise from x, which could otherwise hide an error of the network.
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
        # a cached output: correct only if the product is zero as well
        unmoved = not bool(pull(torch.ones_like(value)).any())
        return Comparison(1.0 if unmoved else math.inf, 0.0, change.numel())
    unit = change.abs().max()  # small cotangents underflow in half precision
    cotangent = (change / unit).to(value)
    pulled = pull(cotangent).double()
    if skip is not None:
        pulled -= skip * cotangent.double()
    predicted = (pulled * direction.double()).sum() * unit
    error = (above + below) / 2 - value.double()
    return Comparison(float(predicted) / size**2, float(error.norm()) / size, change.numel())


def _rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt().clamp(min=1e-30)


# The result for each network, as long as it lives: {(patches, size, ...): None, or what is wrong}.
_verdicts: WeakKeyDictionary[nn.Module, dict[Hashable, str | None]] = WeakKeyDictionary()


class GradientCheck:
    """Checks the networks of one run that were not checked before.

    Args:
        networks: part -> (the network, a key of what else its gradient depends on, the dtype that it computes in).

    Attributes:
        mask: the inpainting mask at this step, the denoiser's share of the clean estimate; None if that is all of it.
    """

    def __init__(self, networks: dict[str, tuple[nn.Module, Hashable, torch.dtype]]) -> None:
        self._networks = networks
        self.mask: Tensor | None = None

    def of_row(self, index: int, batch: int) -> "GradientCheck":
        """The check for one image of the batch."""
        return row_of_attributes(self, ["mask"], index, batch)  # type: ignore[no-any-return]

    def due(self, part: str, x: Tensor) -> bool:
        """Whether this part has not been compared yet at inputs like x.

        Raises:
            WrongGradientError: an earlier run found it wrong.
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
        """Compare a part (see compare) and remember the result; `pull` comes from linearise.linearised.

        Raises:
            WrongGradientError: the gradient is wrong.
        """
        if not (value.isfinite().all() and along.isfinite().all()):
            return  # nothing to compare; the run reports gradients that are not finite
        verdicts, key, dtype = self._known(part, x)
        try:
            found = self._compared(function, x, value, pull, along, STEPS.get(dtype, COARSE_STEP), skip)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # the gradient itself fitted; it stays unchecked in this run
            logging.info("JEPA guidance: not enough memory to check the gradient of the %s", part)
            return
        wrong = found.falls_short or found.goes_beyond
        why = f"the gradient of the {part} predicts {found.ratio:.2f} of the change that was measured"
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
            if found.goes_beyond:  # rarely, curvature is too strong for the larger step
                found = compare(function, x, value, pull, along, step / 5, share)
        return found

    def _known(self, part: str, x: Tensor) -> tuple[dict[Hashable, str | None], Hashable, torch.dtype]:
        network, what, dtype = self._networks[part]
        masked = part == DENOISER and self.mask is not None
        return _verdicts.setdefault(network, {}), (what, masked, tuple(x.shape), dtype), dtype


def kinds(value: Any, depth: int = 8) -> Hashable:
    """The names of functions and classes in nested options: equal when the same graph is queued again."""
    if isinstance(value, dict) and depth:
        return tuple(sorted((str(key), repr(kinds(part, depth - 1))) for key, part in value.items()))
    if isinstance(value, (list, tuple)) and depth:
        return tuple(kinds(part, depth - 1) for part in value)
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return ""
    return getattr(value, "__qualname__", type(value).__qualname__)
