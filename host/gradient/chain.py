"""The chain encoder -> image -> latent -> noisy latent, as three separate vector-Jacobian products."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...jepa_core import Encoder, RarityGradient, jepa_score
from ...jepa_core.score import PROJECTION
from ..comfy.required import UNetModel
from .autograd import host_differentiable, writing_in_place
from .check import DECODER, DENOISER, GradientCheck
from .checkpointing import checkpointed
from .decoders import decoded


class Slope(NamedTuple):
    """Guided score and its gradient.

    Attributes:
        score: (B,) float64; the weighted mean where there are several guides.
        gradient: with respect to the sampler's x (or what the function at hand takes), in its shape.
        each: (guides, B), every guide's own score; None for a gradient of a caller's own.
        judged: (judges, B), the projected score under every judge.
    """

    score: Tensor
    gradient: Tensor
    each: Tensor | None = None
    judged: Tensor | None = None


class Guide(NamedTuple):
    """An encoder whose score is descended, and its share; shares add up to 1."""

    encoder: Encoder
    weight: float = 1.0


class LatentGradient:
    """Gradient of the guided JEPA score of the decoded clean estimate.

    Args:
        vae: what decodes; its weights stay in place (residency.resident_vae).
        guides: what says what is rare. With several, each gradient with respect to the decoded image is scaled to a root
            mean square of 1 and counts by its weight, however far the scores of the encoders lie apart.
        rarity: the gradient with respect to the preprocessed image.
        through_denoiser: differentiate the denoiser too (the paper); otherwise its output is held constant
            and the clean estimate moves with x alone (MPGD, ICLR 2024).
        fit, antialias: how the encoder sees the image, see Encoder.preprocess.
        checkpointing: keep less of the decoder for its backward pass and compute it again. The denoiser is
            its caller's.
        judges: encoders that score the decoded image too, and have no part in the gradient.
        prepare: clean latent in the scale of the model's VAE -> the latent that `vae` decodes; see
            decoders.LatentDecoder.

    Attributes:
        check: compares the products of denoiser and decoder with differences, where that is due.
    """

    def __init__(
        self,
        vae: Any,
        guides: Sequence[Guide],
        rarity: RarityGradient,
        *,
        judges: Sequence[Encoder] = (),
        through_denoiser: bool = False,
        fit: str = "squash",
        antialias: bool = True,
        checkpointing: bool = False,
        prepare: Callable[[Tensor], Tensor] = lambda latent: latent,
    ) -> None:
        self.vae = vae
        self.guides = guides
        self.judges = judges
        self.rarity = rarity
        self.through_denoiser = through_denoiser
        self.fit = fit
        self.antialias = antialias
        self.checkpointing = checkpointing
        self.prepare = prepare
        self.check: GradientCheck | None = None
        # Some denoisers add to their residual stream in place. The guard against that slows down everything inside it
        # by a fifth, and UNets alone do not need it; autograd notices when one does.
        self._writes_in_place = False

    def of_latent(self, latents: Tensor) -> Slope:
        """Score and gradient for clean latents in the VAE's scale, one image at a time: (B, C, h, w) or (B, C, t, h, w)."""
        slopes = []
        module = self.vae.first_stage_model
        with host_differentiable(module), checkpointed(module) if self.checkpointing else nullcontext():
            for index, latent in enumerate(latents.split(1)):
                slopes.append(self._of_one_latent(latent, index))
        score, gradient, each, judged = zip(*slopes, strict=True)
        return Slope(torch.cat(score), torch.cat(gradient), torch.cat(each, 1), torch.cat(judged, 1))

    def _of_one_latent(self, latent: Tensor, index: int) -> Slope:
        def decode(latent: Tensor) -> Tensor:
            return decoded(self.vae, self.prepare(latent))

        with linearised(decode, latent) as (image, pull):
            slope = self._of_image(image, index)
            due = self.check is not None and self.check.due(DECODER, latent)
            gradient = pull(slope.gradient, keep=due)
            if self.check is not None and due:
                self.check(DECODER, decode, latent, image, pull, gradient)
        return slope._replace(gradient=gradient)

    def _of_image(self, image: Tensor, index: int) -> Slope:
        """Score and gradient for one decoded image (1, H, W, 3) or video (T, H, W, 3), number `index` of the batch."""
        parts, scores = [], []
        for number, (encoder, weight) in enumerate(self.guides):
            pixels = image.to(encoder.weight.device).detach().requires_grad_()
            encoder, x = self._seen(encoder, pixels)
            rarity = self.rarity(encoder, x.detach(), ids=[(number, index)])
            (part,) = torch.autograd.grad(x, pixels, rarity.grad)
            if len(self.guides) > 1:
                # an image that an encoder does not see at all has a gradient of zero
                part = weight * part / part.square().mean().sqrt().clamp(min=torch.finfo(part.dtype).tiny)
            parts.append(part.to(image))
            scores.append(rarity.score)
        each = torch.stack(scores)
        weights = each.new_tensor([guide.weight for guide in self.guides])
        return Slope(weights @ each, sum(parts[1:], parts[0]), each, self._judged(image))

    def _seen(self, encoder: Encoder, frames: Tensor) -> tuple[Encoder, Tensor]:
        """The encoder for an image or a video, and what it sees of frames (T, H, W, 3)."""
        if len(frames) > 1:
            encoder, frames = encoder.of_clips(len(frames)), frames[None]
        return encoder, encoder.preprocess(frames, fit=self.fit, antialias=self.antialias)

    def _judged(self, image: Tensor) -> Tensor:
        """Scores (judges, 1) of a decoded image; NaN where it is not finite."""
        scores = torch.full((len(self.judges), 1), torch.nan, dtype=torch.float64, device="cpu")
        for number, judge in enumerate(self.judges if image.isfinite().all() else ()):
            judge, x = self._seen(judge, image.to(judge.weight.device))
            projection = min(PROJECTION, judge.embed_dim)
            scores[number] = jepa_score(judge, x, projection=projection, on_pass=self.rarity.on_pass)
        return scores

    def __call__(
        self, denoise: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor, base_model: Any
    ) -> Slope:
        """Score and gradient at the noisy latent.

        Args:
            denoise: x -> clean estimate, in the scale of the model's latents; differentiable when
                through_denoiser.
            x: (B, C, h, w) or (B, C, t, h, w), the sampler's own scale.
            sigma: scalar tensor.
            base_model: the host's model, for its latent scale and its sampling class.
        """
        if not self.through_denoiser:
            slope = self._of_estimate(denoise(x), base_model)
            along = held_constant_slope(base_model.model_sampling, sigma)
            return slope._replace(gradient=slope.gradient * along)
        return self._through(denoise, x, sigma, base_model)

    def _through(
        self, denoise: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor, base_model: Any
    ) -> Slope:
        due = self.check is not None and self.check.due(DENOISER, x)
        slope = None
        guarded = self._writes_in_place or not isinstance(base_model.diffusion_model, UNetModel)
        while True:
            try:
                guard = writing_in_place() if guarded else None
                with linearised(denoise, x, guard) as (clean, pull):
                    slope = slope or self._of_estimate(clean, base_model)
                    gradient = pull(slope.gradient, keep=due)
                    if self.check is not None and due:
                        skip = held_constant_slope(base_model.model_sampling, sigma)
                        self.check(DENOISER, denoise, x, clean, pull, gradient, skip)
                return slope._replace(gradient=gradient)
            except RuntimeError as error:
                if guarded or "inplace operation" not in str(error):
                    raise
            # a ControlNet, or a patch: from now on guarded at once
            guarded = self._writes_in_place = True

    def _of_estimate(self, clean: Tensor, base_model: Any) -> Slope:
        """Score and gradient for clean estimates in the scale of the model's latents."""
        with torch.inference_mode(False), torch.no_grad():
            latents = base_model.process_latent_out(clean.clone())
            # process_latent_out is affine per channel; its slope carries the gradient back to the model's scale
            unit = base_model.process_latent_out(torch.ones_like(latents))
            origin = base_model.process_latent_out(torch.zeros_like(latents))
            slope = self.of_latent(latents)
            return slope._replace(gradient=slope.gradient.to(clean.device) * (unit - origin))


@contextmanager
def linearised(
    function: Callable[[Tensor], Tensor], x: Tensor, guard: AbstractContextManager | None = None
) -> Iterator[tuple[Tensor, Callable[..., Tensor]]]:
    """Within the block: (function(x), pull), where pull(cotangent) is its vector-Jacobian product at x.

    pull(cotangent, keep=True) may be followed by another. The graph is gone after the block.

    Args:
        guard: entered for the block; what the function needs while its graph is alive.
    """
    with torch.inference_mode(False), torch.enable_grad(), guard or nullcontext():
        leaf = x.detach().clone().requires_grad_()
        value = function(leaf)

        def pull(cotangent: Tensor, keep: bool = False) -> Tensor:
            (gradient,) = torch.autograd.grad(value, leaf, cotangent, retain_graph=keep)
            return gradient

        yield value.detach(), pull


def held_constant_slope(model_sampling: Any, sigma: Tensor) -> float:
    """d(clean estimate) / dx with the network's output held constant: 1 for eps and flow, less for v."""
    zero, one = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
    slope = float(model_sampling.calculate_denoised(sigma.reshape(1).double().cpu(), zero, one))
    # Networks that predict the clean image itself have no path but the network.
    return slope or 1.0
