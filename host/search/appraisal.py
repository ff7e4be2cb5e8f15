"""How rare and how good candidates are, from their clean estimates."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...jepa_core import Encoder, Reference, jepa_score
from ...jepa_core.novelty import embed
from ...jepa_core.score import PROJECTION
from ..comfy.required import interrupt_check
from ..encoders.host_encoder import AnyEncoder, HostEncoder
from ..gradient.decoders import LatentDecoder, decoded
from ..gradient.differentiable import host_differentiable
from ..gradient.scale import of_frames
from ..options import NOVELTY
from ..scoring.answers import ask
from ..scoring.novelty import combined, distances_to
from ..scoring.reference import parts_of

Quality = Callable[[Tensor], list[float]]


class Appraisal(NamedTuple):
    """Of one candidate.

    Attributes:
        value: its score or novelty; NaN if the picture is not finite.
        quality: NaN if it is not measured.
        picture: (H, W, 3) in [0, 1] on the CPU; of a video the first frame.
    """

    value: float
    quality: float
    picture: Tensor


@dataclass(frozen=True)
class Appraiser:
    """Decodes clean estimates, and says how rare and how good they are. All models must be on the device.

    Attributes:
        decoder: its weights stay in place (residency.resident_vae).
        encoder: what defines rarity.
        by: SCORE (projected) or NOVELTY.
        reference: what novelty compares with.
        quality: images (B, H, W, 3) -> the quality of each; None if it is not measured.
        fit, antialias: how the encoder sees the image, see Encoder.preprocess.
    """

    decoder: LatentDecoder
    encoder: AnyEncoder
    by: str
    reference: Reference | None
    quality: Quality | None
    fit: str
    antialias: bool

    def __call__(self, clean: Tensor, base_model: Any) -> list[Appraisal]:
        """Appraise clean estimates (B, C, ...) in the scale of the model's latents."""
        vae = self.decoder.vae
        with torch.inference_mode(False), torch.no_grad(), host_differentiable(vae.first_stage_model):
            latents = base_model.process_latent_out(clean.clone())
            values, seen = [], []
            for latent in latents.split(1):
                # of a video many, so those of one at a time
                frames = decoded(vae, self.decoder.prepare(latent))
                values.append(self._value(frames) if frames.isfinite().all() else torch.nan)
                seen.append(frames[0].float().cpu())
            pictures = torch.stack(seen)
            qualities = self.quality(pictures) if self.quality else [torch.nan] * len(values)
        return [Appraisal(*of_one) for of_one in zip(values, qualities, pictures, strict=True)]

    def _value(self, frames: Tensor) -> float:
        """The weighted mean over the encoders, of frames (T, H, W, 3)."""
        interrupt_check()
        if self.by == NOVELTY:
            assert self.reference is not None
            each = [self._novelty(frames, number) for number in range(len(self.encoder.members))]
            (value,) = combined(each, self.reference, self.encoder)
            return value
        return sum(member.weight * self._score(frames, member.encoder) for member in self.encoder.members)

    def _score(self, frames: Tensor, encoder: HostEncoder) -> float:
        projection = min(PROJECTION, encoder.encoder.embed_dim)
        measure = partial(jepa_score, projection=projection, on_pass=interrupt_check)
        return self._asked(("score", None, projection), measure, frames, encoder).item()

    def _novelty(self, frames: Tensor, number: int) -> Tensor:
        """The distance (1,) to the reference under one encoder of the set."""
        assert self.reference is not None
        measure = partial(embed, on_pass=interrupt_check)
        embedding = self._asked(("embedding of one",), measure, frames, self.encoder.members[number].encoder)
        part, _ = parts_of(self.reference.distinct, self.encoder)[number]
        return distances_to(part).of(embedding.float())

    def _asked(
        self,
        question: tuple,
        measure: Callable[[Encoder, Tensor], Tensor],
        frames: Tensor,
        encoder: HostEncoder,
    ) -> Tensor:
        """What is measured of frames (T, H, W, 3); at once, if the same was asked before."""
        picture = frames if len(frames) > 1 else frames[0]
        about = (*question, self.fit, self.antialias)
        (found,) = ask(encoder, about, [picture], lambda _: [measure(*self._seen(frames, encoder.encoder))])
        return found

    def _seen(self, frames: Tensor, encoder: Encoder) -> tuple[Encoder, Tensor]:
        """The encoder for this many frames, and its input: an image, or a clip."""
        encoder = of_frames(encoder, len(frames))
        images = (frames[None] if len(frames) > 1 else frames).to(encoder.weight.device)
        return encoder, encoder.preprocess(images, fit=self.fit, antialias=self.antialias)
