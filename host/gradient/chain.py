"""The chain encoder -> image -> latent -> noisy latent, as three separate vector-Jacobian products."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...jepa_core import Encoder, RarityGradient, jepa_score
from ...jepa_core.score import PROJECTION
from ..comfy.required import UNetModel
from ..options import DENOISER_CONSTANT, SQUASH
from .checkpointing import checkpointed
from .decoders import LatentDecoder, decoded
from .differentiable import host_differentiable, writing_in_place
from .gradient_check import DECODER, DENOISER, GradientCheck, WrongGradientError
from .linearise import linearised

Denoise = Callable[[Tensor], Tensor]

# torch's messages about tensors cached from other calls, and about operations without a backward pass.
_NOT_DIFFERENTIABLE = (
    *("nference tensor", "does not require grad", "no autograd formula"),
    "backward through the graph a second time",
)
_NO_DERIVATIVE = (
    "a patch of the denoiser, or a model that runs with it, has no derivative (a cache such as EasyCache, a "
    "second model, a LoRA in bypass mode)"
)


class ScoreGradient(NamedTuple):
    """The guided score and its gradient.

    Attributes:
        score: (B,) float64; the weighted mean over the guides.
        gradient: with respect to the sampler's x (or to the argument of the function that returns it), in its shape.
        clean: the clean estimate at x, in the model's scale; None if unknown.
        each: (guides, B), the score under each guide; None if the gradient is not that of a score.
        judged: (judges, B), the projected score under each judge.
    """

    score: Tensor
    gradient: Tensor
    clean: Tensor | None = None
    each: Tensor | None = None
    judged: Tensor | None = None


class Guide(NamedTuple):
    """An encoder whose score guidance lowers, and its weight. Weights add up to 1."""

    encoder: Encoder
    weight: float = 1.0


class GradientChain(Protocol):
    """The source of the gradient in a guided run. A subclass only has to be callable; a run may change its own chain.

    Attributes:
        through_denoiser: whether the denoiser is differentiated; otherwise its output is held constant.
        checkpointing: whether the denoiser is checkpointed.
        labels: of the guides and of the judges, in the order of their scores; empty if the gradient is not that of a score.
    """

    through_denoiser: bool = False
    checkpointing: bool = False
    labels: tuple[Sequence[str], Sequence[str]] = ((), ())

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
            denoise: x -> clean estimate, in the scale of the model's latents; differentiable if through_denoiser.
            x: (B, C, h, w) or (B, C, t, h, w), in the sampler's scale.
            sigma: scalar tensor.
            base_model: the host's model, for its latent scale and sampling class.
        """
        ...

    def cheaper(self) -> str | None:
        """Use less memory from here on. Returns what was given up, as a line for users, or None if nothing is left."""
        return None


@dataclass
class LatentGradient(GradientChain):
    """Gradient of the guided JEPA score of the decoded clean estimate.

    Attributes:
        decoder: its weights stay in place (residency.resident_vae).
        guides: the encoders that define rarity. With several, each gradient with respect to the decoded image is scaled
            to a root mean square of 1 before it is weighted, since scores of different encoders differ in scale.
        rarity: computes the gradient with respect to the preprocessed image.
        judges: encoders that also score the decoded image, without any effect on the gradient.
        through_denoiser: differentiate the denoiser too (the paper); otherwise its output is held constant
            and the clean estimate moves with x alone (MPGD, ICLR 2024).
        checkpointing: checkpoint the decoder: less memory, and its forward pass runs twice. The caller checkpoints the
            denoiser.
        fit, antialias: how the encoder sees the image, see Encoder.preprocess.
        small: the decoder for when memory runs out, at the encoder's resolution; None if `decoder` is that already.
        check: see GradientChain.begin_run; None skips the comparison.
    """

    decoder: LatentDecoder
    guides: Sequence[Guide]
    rarity: RarityGradient
    judges: Sequence[Encoder] = ()
    through_denoiser: bool = False
    checkpointing: bool = False
    fit: str = SQUASH
    antialias: bool = True
    small: LatentDecoder | None = None
    labels: tuple[Sequence[str], Sequence[str]] = ((), ())
    check: GradientCheck | None = None
    # Some denoisers add to their residual stream in place. The guard for that costs a fifth of the time, and UNets do not
    # need it unless a patch writes in place; autograd raises then.
    _guarded: bool = False

    def begin_run(self, on_pass: Callable[[], None], check: GradientCheck) -> "LatentGradient":
        return replace(self, rarity=self.rarity.fresh(on_pass), check=check)

    def cheaper(self) -> str | None:
        # first what only costs time, last what changes the image
        if self.rarity.chunk != 1:
            self.rarity.chunk = 1
            return "one direction per encoder pass from here on (slower, the same image)"
        if not self.checkpointing:
            self.checkpointing = True
            return "checkpointing from here on (slower, the same image)"
        if self.small is not None:
            self.decoder, self.small = self.small, None
            return "decoder at encoder resolution from here on (a different image than with the full decoder)"
        if self.through_denoiser:
            self.through_denoiser = False
            return f"{DENOISER_CONSTANT} from here on (a different image than through the denoiser)"
        return None

    def __call__(self, denoise: Denoise, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
        tracked = self.rarity.snapshot()
        try:
            if self.through_denoiser:
                return self._through(denoise, x, sigma, base_model)
            found = self._of_estimate(denoise(x), base_model)
            return found._replace(gradient=found.gradient * dx0_dx(base_model.model_sampling, sigma))
        except BaseException:
            self.rarity.restore(tracked)  # as if this call had not happened
            raise

    def _through(self, denoise: Denoise, x: Tensor, sigma: Tensor, base_model: Any) -> ScoreGradient:
        due = self.check is not None and self.check.due(DENOISER, x)
        guarded = self._guarded or not isinstance(base_model.diffusion_model, UNetModel)
        found = None
        while True:
            try:
                with linearised(denoise, x, writing_in_place() if guarded else None) as (clean, pull):
                    found = found or self._of_estimate(clean, base_model)
                    gradient = pull(found.gradient, keep=due)
                    if self.check is not None and due:
                        skip = dx0_dx(base_model.model_sampling, sigma)
                        self.check(DENOISER, denoise, x, clean, pull, gradient, skip)
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
        module = self.decoder.vae.first_stage_model
        with host_differentiable(module), checkpointed(module) if self.checkpointing else nullcontext():
            found = [self._of_one_latent(latent, index) for index, latent in enumerate(latents.split(1))]
        return ScoreGradient(
            torch.cat([one.score for one in found]),
            torch.cat([one.gradient for one in found]),
            each=torch.cat([one.each for one in found], 1),  # type: ignore[misc]
            judged=torch.cat([one.judged for one in found], 1),  # type: ignore[misc]
        )

    def _of_one_latent(self, latent: Tensor, index: int) -> ScoreGradient:
        def decode(latent: Tensor) -> Tensor:
            return decoded(self.decoder.vae, self.decoder.prepare(latent))

        with linearised(decode, latent) as (image, pull):
            found = self._of_image(image, index)
            due = self.check is not None and self.check.due(DECODER, latent)
            gradient = pull(found.gradient, keep=due)
            if self.check is not None and due:
                self.check(DECODER, decode, latent, image, pull, gradient)
        return found._replace(gradient=gradient)

    def _of_image(self, image: Tensor, index: int) -> ScoreGradient:
        """Score and gradient for the decoded image (1, H, W, 3) or video (T, H, W, 3) at `index` in the batch."""
        parts, scores = [], []
        for number, (encoder, weight) in enumerate(self.guides):
            encoder = _of_frames(encoder, len(image))
            pixels = image.to(encoder.weight.device)
            with linearised(partial(self._seen, encoder), pixels) as (x, pull):
                rarity = self.rarity(encoder, x, ids=[(number, index)])
                part = pull(rarity.grad)
            if len(self.guides) > 1:
                # clamped: an encoder that does not see the image gives a gradient of zero
                part = weight * part / part.square().mean().sqrt().clamp(min=torch.finfo(part.dtype).tiny)
            parts.append(part.to(image))
            scores.append(rarity.score)
        each = torch.stack(scores)
        weights = each.new_tensor([guide.weight for guide in self.guides])
        gradient = sum(parts[1:], parts[0])
        return ScoreGradient(weights @ each, gradient, each=each, judged=self._judged(image))

    def _seen(self, encoder: Encoder, frames: Tensor) -> Tensor:
        """Frames (T, H, W, 3), preprocessed for an encoder: an image if there is one, else a clip."""
        images = frames[None] if len(frames) > 1 else frames
        return encoder.preprocess(images, fit=self.fit, antialias=self.antialias)

    def _judged(self, image: Tensor) -> Tensor:
        """Scores (judges, 1) of a decoded image; NaN if the image is not finite."""
        scores = torch.full((len(self.judges), 1), torch.nan, dtype=torch.float64, device="cpu")
        for number, judge in enumerate(self.judges if image.isfinite().all() else ()):
            judge = _of_frames(judge, len(image))
            x = self._seen(judge, image.to(judge.weight.device))
            projection = min(PROJECTION, judge.embed_dim)
            scores[number] = jepa_score(judge, x, projection=projection, on_pass=self.rarity.on_pass)
        return scores


def _of_frames(encoder: Encoder, frames: int) -> Encoder:
    """The encoder for an image (1 frame) or for clips of `frames` frames."""
    return encoder.of_clips(frames) if frames > 1 else encoder


def dx0_dx(model_sampling: Any, sigma: Tensor) -> float:
    """d(clean estimate) / dx with the network's output held constant: 1 for eps and flow, less for v."""
    zero, one = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
    derivative = float(model_sampling.calculate_denoised(sigma.reshape(1).double().cpu(), zero, one))
    # 0 for networks that predict the clean image itself: x reaches it only through the network
    return derivative or 1.0
