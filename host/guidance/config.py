"""The settings of guidance."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...jepa_core import RarityGradient
from ...jepa_core.novelty import Distance, Nearest
from ..options import FULL, SCORE, SQUASH
from .schedule import Schedule

Form = Callable[[Tensor], Distance]


@dataclass(frozen=True)
class GuidanceConfig:
    """All settings of guidance, without the models. The nodes build it, apply_guidance reads it.

    Attributes:
        schedule: which steps are guided, and how strongly.
        rarity: computes the gradient with respect to the encoder's image; every run uses a fresh copy.
        through_denoiser: differentiate the denoiser too (the paper); otherwise its output is held constant.
        decoder: how the clean latent becomes an image, see decoders.choose_decoder.
        one_call: after the shift, reuse the denoiser's output, held constant, instead of evaluating the denoiser again
            at the shifted latent (the paper).
        checkpointing: checkpoint the decoder, and the denoiser if it is differentiated: less memory, more time, the same
            gradient.
        criterion, apart, smooth, keep_appearance, agree: what is descended, see ImageGradient.
        target: guidance stops when this share of the reference is as rare, see Target; None never stops.
        form: makes the distance that novelty is from a reference's embeddings.
        fit, antialias: how the encoder sees the image, see Encoder.preprocess.
    """

    schedule: Schedule
    rarity: RarityGradient
    through_denoiser: bool = False
    decoder: str = FULL
    one_call: bool = False
    checkpointing: bool = False
    criterion: str = SCORE
    apart: bool = False
    smooth: bool = False
    keep_appearance: bool = False
    agree: bool = False
    target: float | None = None
    form: Form = Nearest
    fit: str = SQUASH
    antialias: bool = True
