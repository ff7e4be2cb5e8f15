"""The chain encoder -> image -> latent -> noisy latent, as three separate vector-Jacobian products."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .decoders import LatentDecoder, decoded
from .differentiable import host_differentiable
from .estimate import Denoise, EstimateGradient
from .gradient_check import DECODER, GradientCheck
from .image_gradient import ImageGradient, ScoreGradient, joined
from .lean import saving_memory
from .linearise import linearised
from .ways import CONSTANT, Way, ways_down


@dataclass
class LatentGradient(EstimateGradient):
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

    def begin_run(self, on_pass: Callable[[], None], check: GradientCheck) -> "LatentGradient":
        return replace(self, image=self.image.fresh(on_pass), check=check)

    def ways(self, batch: int) -> list[Way]:
        return ways_down(self.way, self.small is not None, batch, self.image.uses_score)

    def notices(self, batch: int) -> list[str]:
        alone = self.image.apart and batch == 1
        return ["apart: a batch of one image has nothing to move away from"] if alone else []

    def decoder_of(self, way: Way) -> LatentDecoder:
        """The decoder that a way uses."""
        return self.small if way.small_decoder and self.small is not None else self.decoder

    def __call__(self, denoise: Denoise, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
        if self.way.one_direction:
            self.image.rarity.chunk = 1
        tracked = self.image.rarity.snapshot()
        try:
            return super().__call__(denoise, x, sigma, base_model)
        except BaseException:
            self.image.rarity.restore(tracked)  # as if this call had not happened
            raise

    def of_estimate(self, clean: Tensor, denoise: Denoise, sigma: Tensor, base_model: Any) -> ScoreGradient:
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
