"""The chain encoder -> image -> latent -> noisy latent, as three separate vector-Jacobian products."""

import logging
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..comfy.required import UNetModel
from .decoders import LatentDecoder, decoded
from .differentiable import host_differentiable, writing_in_place
from .gradient_check import DECODER, DENOISER, GradientCheck, WrongGradientError
from .image_gradient import ImageGradient, ScoreGradient, joined
from .lean import saving_memory
from .linearise import linearised
from .rows import DiffersAloneError, check_alone, row
from .ways import CONSTANT, Way, ways_down


class Denoise(Protocol):
    """The denoiser at one sigma: noisy latents (B, ...) -> clean estimates, in the scale of the model's latents."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def row(self, index: int) -> Callable[[Tensor], Tensor]:
        """The same for one image of the batch, x (1, ...)."""
        ...


# torch's messages about tensors cached from other calls, and about operations without a backward pass.
_NOT_DIFFERENTIABLE = (
    *("nference tensor", "does not require grad", "no autograd formula"),
    "backward through the graph a second time",
)
_NO_DERIVATIVE = (
    "a patch of the denoiser, or a model that runs with it, has no derivative (a cache such as EasyCache, a "
    "second model, a LoRA in bypass mode)"
)


class GradientChain(Protocol):
    """The source of the gradient in a guided run. A subclass only has to be callable; a run may change its own chain.

    Attributes:
        way: how the gradient is computed. The run chooses it from `ways`.
        labels: of the guides and of the judges, in the order of their scores; empty if the gradient is not that of a score.
    """

    way: Way = CONSTANT
    labels: tuple[Sequence[str], Sequence[str]] = ((), ())

    def ways(self, batch: int) -> list[Way]:
        """The ways from the one that was asked for down to the one with least memory, for a batch of this size."""
        return [self.way]

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


@dataclass
class LatentGradient(GradientChain):
    """The gradient of rarity of the decoded clean estimate.

    Attributes:
        decoder: its weights stay in place (residency.resident_vae).
        image: the gradient with respect to the decoded image.
        way: what is differentiated and how; see Way. The caller checkpoints the denoiser.
        small: the decoder at the encoder's resolution, for when memory is short; None if `decoder` is that already.
        check: see GradientChain.begin_run; None skips the comparison.
    """

    decoder: LatentDecoder
    image: ImageGradient
    way: Way = CONSTANT
    small: LatentDecoder | None = None
    labels: tuple[Sequence[str], Sequence[str]] = ((), ())
    check: GradientCheck | None = None
    # Some denoisers add to their residual stream in place. The guard for that costs a fifth of the time, and UNets do not
    # need it unless a patch writes in place; autograd raises then.
    _guarded: bool = False

    def begin_run(self, on_pass: Callable[[], None], check: GradientCheck) -> "LatentGradient":
        return replace(self, image=self.image.fresh(on_pass), check=check)

    def ways(self, batch: int) -> list[Way]:
        return ways_down(self.way, self.small is not None, batch, self.image.uses_score)

    def decoder_of(self, way: Way) -> LatentDecoder:
        """The decoder that a way uses."""
        return self.small if way.small_decoder and self.small is not None else self.decoder

    def __call__(self, denoise: Denoise, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
        if self.way.one_direction:
            self.image.rarity.chunk = 1
        tracked = self.image.rarity.snapshot()
        try:
            if self.way.through_denoiser:
                return self._through(denoise, x, sigma, base_model)
            found = self._of_estimate(denoise(x), base_model)
            return found._replace(gradient=found.gradient * dx0_dx(base_model.model_sampling, sigma))
        except BaseException:
            self.image.rarity.restore(tracked)  # as if this call had not happened
            raise

    def _through(self, denoise: Denoise, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
        if not self.way.estimate_first:
            return self._pulled(denoise, x, sigma, base_model, self.check)
        with torch.no_grad():
            found = self._of_estimate(denoise(x), base_model)
        if self.way.one_by_one:
            try:
                return found._replace(gradient=self._of_rows(denoise, x, sigma, base_model, found))
            except DiffersAloneError:
                logging.info(
                    "JEPA guidance: the images of this batch are not independent; differentiated together"
                )
                self.way = replace(self.way, one_by_one=False)
        return self._pulled(denoise, x, sigma, base_model, self.check, found)

    def _of_rows(
        self, denoise: Denoise, x: Tensor, sigma: Tensor, base_model: Any, found: ScoreGradient
    ) -> Tensor:
        """The gradient at x, image by image, from the one at the estimates."""
        gradients = []
        for index in range(len(x)):
            own = row({"gradient": found.gradient, "clean": found.clean}, index, len(x))
            check = self.check and self.check.of_row(index, len(x))
            alone = denoise.row(index)
            gradients.append(
                self._pulled(
                    alone, x[index : index + 1], sigma, base_model, check, found._replace(**own)
                ).gradient
            )
        return torch.cat(gradients)

    def _pulled(
        self,
        denoise: Callable[[Tensor], Tensor],
        x: Tensor,
        sigma: Tensor,
        base_model: Any,
        check: GradientCheck | None,
        found: ScoreGradient | None = None,
    ) -> ScoreGradient:
        """Score and gradient at x. `found`: at the estimate of x, if it is known already."""
        due = check is not None and check.due(DENOISER, x)
        guarded = self._guarded or not isinstance(base_model.diffusion_model, UNetModel)
        while True:
            try:
                with linearised(denoise, x, writing_in_place() if guarded else None) as (clean, pull):
                    if self.way.one_by_one and found is not None and found.clean is not None:
                        check_alone(clean, found.clean)
                    found = found or self._of_estimate(clean, base_model)
                    gradient = pull(found.gradient, keep=due)
                    if check is not None and due:
                        skip = dx0_dx(base_model.model_sampling, sigma)
                        check(DENOISER, denoise, x, clean, pull, gradient, skip)
                return found._replace(gradient=gradient)
            except RuntimeError as error:
                if any(words in str(error) for words in _NOT_DIFFERENTIABLE):
                    logging.info("JEPA guidance: torch cannot differentiate the denoiser: %s", error)
                    raise WrongGradientError(DENOISER, _NO_DERIVATIVE) from error
                if guarded or "inplace operation" not in str(error):
                    raise
            # a ControlNet or a patch writes in place; the score and its gradient at the estimate stand
            guarded = self._guarded = True

    def _of_estimate(self, clean: Tensor, base_model: Any) -> ScoreGradient:
        """Score and gradient for clean estimates in the scale of the model's latents."""
        with torch.inference_mode(False), torch.no_grad():
            latents = base_model.process_latent_out(clean.clone())
            # process_latent_out is affine per channel: gradients are multiplied by its factor
            unit = base_model.process_latent_out(torch.ones_like(latents))
            origin = base_model.process_latent_out(torch.zeros_like(latents))
            found = self.of_latent(latents)
            gradient = found.gradient.to(clean.device) * (unit - origin)
        return found._replace(gradient=gradient, clean=clean.detach())

    def of_latent(self, latents: Tensor) -> ScoreGradient:
        """Score and gradient for clean latents in the VAE's scale, (B, C, h, w) or (B, C, t, h, w), one by one."""
        module = self.decoder_of(self.way).vae.first_stage_model
        with host_differentiable(module), saving_memory(module, checkpointing=self.way.checkpointing):
            singles = latents.split(1)
            others = self._others(singles) if self.image.apart else [None] * len(singles)
            found = [
                self._of_one_latent(latent, index, near)
                for index, (latent, near) in enumerate(zip(singles, others, strict=True))
            ]
        return joined(found)

    def _others(self, latents: Sequence[Tensor]) -> list[list[Tensor]]:
        """For each latent and each guide, the embeddings (up to B - 1, d) of the other latents' images."""
        if len(latents) == 1:
            return [[torch.empty(0, 0)] * len(self.image.guides)]
        with torch.no_grad():
            rows = [self.image.embeddings(self._decode(latent)) for latent in latents]
        of_guides = [torch.cat(column) for column in zip(*rows, strict=True)]
        # an image that is not finite must not stop the others
        finite = [all_rows.isfinite().all(1) for all_rows in of_guides]
        return [
            [
                all_rows[usable & (torch.arange(len(all_rows), device=all_rows.device) != index)]
                for all_rows, usable in zip(of_guides, finite, strict=True)
            ]
            for index in range(len(latents))
        ]

    def _decode(self, latent: Tensor) -> Tensor:
        decoder = self.decoder_of(self.way)
        return decoded(decoder.vae, decoder.prepare(latent))

    def _of_one_latent(self, latent: Tensor, index: int, others: Sequence[Tensor] | None) -> ScoreGradient:
        with linearised(self._decode, latent) as (image, pull):
            found = self.image(image, index, others)
            due = self.check is not None and self.check.due(DECODER, latent)
            gradient = pull(found.gradient, keep=due)
            if self.check is not None and due:
                self.check(DECODER, self._decode, latent, image, pull, gradient)
        return found._replace(gradient=gradient)

    def places(self, x: Tensor, base_model: Any) -> list[dict[str, float]]:
        image = self.image
        if image.target is None:
            return []
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            host_differentiable(self.decoder_of(self.way).vae.first_stage_model),
        ):
            latents = base_model.process_latent_out(x.clone())
            return [
                image.target.place(self._decode(latent), image.seen, image.on_pass)
                for latent in latents.split(1)
            ]


def dx0_dx(model_sampling: Any, sigma: Tensor) -> float:
    """d(clean estimate) / dx with the network's output held constant: 1 for eps and flow, less for v."""
    zero, one = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
    derivative = float(model_sampling.calculate_denoised(sigma.reshape(1).double().cpu(), zero, one))
    # 0 for networks that predict the clean image itself: x reaches it only through the network
    return derivative or 1.0
