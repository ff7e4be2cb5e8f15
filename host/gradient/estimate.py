"""The source of a run's gradient, and the way back from a clean estimate to the noisy latent."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..comfy.required import UNetModel
from ..options import SCORE
from .differentiable import writing_in_place
from .gradient_check import DENOISER, GradientCheck, WrongGradientError
from .image_gradient import ScoreGradient
from .linearise import linearised
from .rows import DiffersAloneError, check_alone, row
from .ways import CONSTANT, Way


class Denoise(Protocol):
    """The denoiser at one sigma: noisy latents (B, ...) -> clean estimates, in the scale of the model's latents.

    Attributes:
        seed: of the run; None if its sampler node has none.
    """

    @property
    def seed(self) -> int | None: ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def row(self, index: int) -> Callable[[Tensor], Tensor]:
        """The same for one image of the batch, x (1, ...)."""
        ...

    def at(self, sigma: float) -> "Denoise":
        """The same at another noise level."""
        ...


# torch's messages about tensors cached from other calls, and about operations without a backward pass.
NOT_DIFFERENTIABLE = (
    *("nference tensor", "does not require grad", "no autograd formula"),
    "backward through the graph a second time",
)
NO_DERIVATIVE = (
    "a patch of the denoiser, or a model that runs with it, has no derivative (a cache such as EasyCache, a "
    "second model, a LoRA in bypass mode)"
)


class GradientChain(Protocol):
    """The source of the gradient in a guided run. A subclass only has to be callable; a run may change its own chain.

    Attributes:
        way: how the gradient is computed. The run chooses it from `ways`.
        labels: of the guides and of the judges, in the order of their scores; empty if the gradient is not that of a score.
        measure: what the score is called in a run's summary.
    """

    way: Way = CONSTANT
    labels: tuple[Sequence[str], Sequence[str]] = ((), ())
    measure: str = SCORE

    def ways(self, batch: int) -> list[Way]:
        """The ways from the one that was asked for down to the one with least memory, for a batch of this size."""
        return [self.way]

    def notices(self, batch: int) -> list[str]:
        """What has no effect on a batch of this size, one line each."""
        return []

    def begin_run(self, on_pass: Callable[[], None], check: GradientCheck) -> "GradientChain":
        """Return a chain for one run, which shares no state with other runs.

        Args:
            on_pass: called after every encoder pass; may raise to stop.
            check: compares the gradients of denoiser and decoder with finite differences when that is due.
        """
        return copy(self)

    def __call__(self, denoise: Denoise, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
        """Return score and gradient at the noisy latent.

        Args:
            denoise: differentiable if the way goes through the denoiser.
            x: (B, C, h, w) or (B, C, t, h, w), in the sampler's scale.
            sigma: scalar tensor.
            base_model: the host's model, for its latent scale and sampling class.
        """
        ...

    def places(self, x: Tensor, base_model: Any) -> list[dict[str, float]]:
        """Where the images of a sampler's result lie: {criterion: percentage of the reference that is rarer} for each.

        Args:
            x: free of noise, in the scale of the model's latents.
        """
        return []


class EstimateGradient(GradientChain):
    """The gradient of a function of the clean estimate, carried back to x.

    Attributes:
        way: what is differentiated and how; see Way. The caller checkpoints the denoiser.
        check: see GradientChain.begin_run; None skips the comparison.
    """

    check: GradientCheck | None = None
    # Some denoisers add to their residual stream in place. The guard for that costs a fifth of the time, and UNets do not
    # need it unless a patch writes in place; autograd raises then.
    _guarded: bool = False

    @abstractmethod
    def of_estimate(self, clean: Tensor, denoise: Denoise, sigma: Tensor, base_model: Any) -> ScoreGradient:
        """The function's value and its gradient at clean estimates (B, ...), in the scale of the model's latents.

        Args:
            denoise, sigma: that made the estimates, for functions that call the denoiser again.
        """
        ...

    def __call__(self, denoise: Denoise, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
        if self.way.through_denoiser:
            return self._through(denoise, x, sigma, base_model)
        found = self.of_estimate(denoise(x), denoise, sigma, base_model)
        return found._replace(gradient=found.gradient * dx0_dx(base_model.model_sampling, sigma))

    def _through(self, denoise: Denoise, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
        def at_estimate(clean: Tensor) -> ScoreGradient:
            return self.of_estimate(clean, denoise, sigma, base_model)

        if not self.way.estimate_first:
            return self._pulled(denoise, x, sigma, base_model, self.check, at_estimate)
        with torch.no_grad():
            found = at_estimate(denoise(x))
        if self.way.one_by_one:
            try:
                return found._replace(gradient=self._of_rows(denoise, x, sigma, base_model, found))
            except DiffersAloneError:
                logging.info(
                    "JEPA guidance: the images of this batch are not independent; differentiated together"
                )
                self.way = replace(self.way, one_by_one=False)
        return self._pulled(denoise, x, sigma, base_model, self.check, lambda clean: found)

    def _of_rows(
        self, denoise: Denoise, x: Tensor, sigma: Tensor, base_model: Any, found: ScoreGradient
    ) -> Tensor:
        """The gradient at x, image by image, from the one at the estimates."""
        gradients = []
        for index in range(len(x)):
            own = found._replace(**row({"gradient": found.gradient, "clean": found.clean}, index, len(x)))

            def known(clean: Tensor, own: ScoreGradient = own) -> ScoreGradient:
                if own.clean is not None:
                    check_alone(clean, own.clean)
                return own

            check = self.check and self.check.of_row(index, len(x))
            alone = denoise.row(index)
            at_x = self._pulled(alone, x[index : index + 1], sigma, base_model, check, known)
            gradients.append(at_x.gradient)
        return torch.cat(gradients)

    def _pulled(
        self,
        denoise: Callable[[Tensor], Tensor],
        x: Tensor,
        sigma: Tensor,
        base_model: Any,
        check: GradientCheck | None,
        at_estimate: Callable[[Tensor], ScoreGradient],
    ) -> ScoreGradient:
        """Score and gradient at x, from those at its clean estimate."""
        due = check is not None and check.due(DENOISER, x)
        guarded = self._guarded or not isinstance(base_model.diffusion_model, UNetModel)
        found: ScoreGradient | None = None
        while True:
            try:
                with linearised(denoise, x, writing_in_place() if guarded else None) as (clean, pull):
                    found = found or at_estimate(clean)
                    gradient = pull(found.gradient, keep=due)
                    if check is not None and due:
                        skip = dx0_dx(base_model.model_sampling, sigma)
                        check(DENOISER, denoise, x, clean, pull, gradient, skip)
                return found._replace(gradient=gradient)
            except RuntimeError as error:
                if any(words in str(error) for words in NOT_DIFFERENTIABLE):
                    logging.info("JEPA guidance: torch cannot differentiate the denoiser: %s", error)
                    raise WrongGradientError(DENOISER, NO_DERIVATIVE) from error
                if guarded or "inplace operation" not in str(error):
                    raise
            # a ControlNet or a patch writes in place; the score and its gradient at the estimate stand
            guarded = self._guarded = True


def dx0_dx(model_sampling: Any, sigma: Tensor) -> float:
    """d(clean estimate) / dx with the network's output held constant: 1 for eps and flow, less for v."""
    zero, one = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
    derivative = float(model_sampling.calculate_denoised(sigma.reshape(1).double().cpu(), zero, one))
    # 0 for networks that predict the clean image itself: x reaches it only through the network
    return derivative or 1.0
