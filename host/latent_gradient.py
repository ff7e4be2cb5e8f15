"""The chain encoder -> image -> latent -> noisy latent, as three separate vector-Jacobian products."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..jepa_core import Encoder, RarityGradient
from .checkpointing import checkpointed
from .decoders import decoded
from .gradients import host_differentiable
from .internals import UNetModel


class Slope(NamedTuple):
    """Guided score (B,) float64 and its gradient with respect to the sampler's x, in the shape of x."""

    score: Tensor
    gradient: Tensor


class LatentGradient:
    """Gradient of the guided JEPA score of the decoded clean estimate.

    Args:
        vae: what decodes; its weights stay in place (models.resident_vae).
        rarity: the gradient with respect to the preprocessed image.
        through_denoiser: differentiate the denoiser too (the paper); otherwise its output is held constant
            and the clean estimate moves with x alone (MPGD, ICLR 2024).
        fit, antialias: how the encoder sees the image, see Encoder.preprocess.
        checkpointing: keep less of the decoder for its backward pass and compute it again. The denoiser is
            its caller's.
        prepare: clean latent in the scale of the model's VAE -> the latent that `vae` decodes; see
            decoders.LatentDecoder.
    """

    def __init__(
        self,
        vae: Any,
        encoder: Encoder,
        rarity: RarityGradient,
        *,
        through_denoiser: bool = False,
        fit: str = "squash",
        antialias: bool = True,
        checkpointing: bool = False,
        prepare: Callable[[Tensor], Tensor] = lambda latent: latent,
    ) -> None:
        self.vae = vae
        self.encoder = encoder
        self.rarity = rarity
        self.through_denoiser = through_denoiser
        self.fit = fit
        self.antialias = antialias
        self.checkpointing = checkpointing
        self.prepare = prepare
        # Some denoisers add to their residual stream in place. The guard against that slows down everything inside it
        # by a fifth, and UNets alone do not need it; autograd notices when one does.
        self._writes_in_place = False

    def of_latent(self, latents: Tensor) -> Slope:
        """Score and gradient for clean latents in the VAE's scale, one image at a time: (B, C, h, w) or (B, C, 1, h, w)."""
        scores, gradients = [], []
        module = self.vae.first_stage_model
        with host_differentiable(module), checkpointed(module) if self.checkpointing else nullcontext():
            for index, latent in enumerate(latents.split(1)):
                latent = latent.detach().clone().requires_grad_()
                image = decoded(self.vae, self.prepare(latent)).to(self.encoder.weight.device)
                x = self.encoder.preprocess(image, fit=self.fit, antialias=self.antialias)
                rarity = self.rarity(self.encoder, x.detach(), ids=[index])
                (gradient,) = torch.autograd.grad(x, latent, rarity.grad)
                scores.append(rarity.score)
                gradients.append(gradient)
        return Slope(torch.cat(scores), torch.cat(gradients))

    def __call__(
        self, denoise: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor, base_model: Any
    ) -> Slope:
        """Score and gradient at the noisy latent.

        Args:
            denoise: x -> clean estimate, in the scale of the model's latents; differentiable when
                through_denoiser.
            x: (B, C, h, w) or (B, C, 1, h, w), the sampler's own scale.
            sigma: scalar tensor.
            base_model: the host's model, for its latent scale and its sampling class.
        """
        if not self.through_denoiser:
            score, gradient = self._of_estimate(denoise(x), base_model)
            return Slope(score, gradient * held_constant_slope(base_model.model_sampling, sigma))
        return self._through(denoise, x, base_model)

    def _through(self, denoise: Callable[[Tensor], Tensor], x: Tensor, base_model: Any) -> Slope:
        found: list[Slope] = []

        def cotangent(clean: Tensor) -> Tensor:
            if not found:
                found.append(self._of_estimate(clean, base_model))
            return found[0].gradient

        if isinstance(base_model.diffusion_model, UNetModel) and not self._writes_in_place:
            try:
                gradient = _pulled_back(denoise, x, cotangent, nullcontext())
                return Slope(found[0].score, gradient)
            except RuntimeError as error:
                if "inplace operation" not in str(error):
                    raise
            # a ControlNet, or a patch: from now on guarded at once
            self._writes_in_place = True
        guard = torch.autograd.graph.allow_mutation_on_saved_tensors()
        gradient = _pulled_back(denoise, x, cotangent, guard)
        return Slope(found[0].score, gradient)

    def _of_estimate(self, clean: Tensor, base_model: Any) -> Slope:
        """Score and gradient for clean estimates in the scale of the model's latents."""
        with torch.inference_mode(False), torch.no_grad():
            latents = base_model.process_latent_out(clean.clone())
            # process_latent_out is affine per channel; its slope carries the gradient back to the model's scale
            unit = base_model.process_latent_out(torch.ones_like(latents))
            origin = base_model.process_latent_out(torch.zeros_like(latents))
            score, gradient = self.of_latent(latents)
            return Slope(score, gradient.to(clean.device) * (unit - origin))


def _pulled_back(
    denoise: Callable[[Tensor], Tensor],
    x: Tensor,
    cotangent: Callable[[Tensor], Tensor],
    guard: AbstractContextManager,
) -> Tensor:
    """Vector-Jacobian product of denoise at x with cotangent(denoise(x))."""
    with torch.inference_mode(False), torch.enable_grad(), guard:
        leaf = x.detach().clone().requires_grad_()
        clean = denoise(leaf)
        (gradient,) = torch.autograd.grad(clean, leaf, cotangent(clean.detach()))
    return gradient


def held_constant_slope(model_sampling: Any, sigma: Tensor) -> float:
    """d(clean estimate) / dx with the network's output held constant: 1 for eps and flow, less for v."""
    zero, one = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
    slope = float(model_sampling.calculate_denoised(sigma.reshape(1).double().cpu(), zero, one))
    # Networks that predict the clean image itself have no path but the network.
    return slope or 1.0
