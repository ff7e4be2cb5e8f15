"""What a guided run is asked to do."""

from dataclasses import dataclass

from ...jepa_core import RarityGradient
from ..options import FULL, SQUASH
from .schedule import Schedule


@dataclass(frozen=True)
class GuidanceConfig:
    """Everything about guidance but the models. The nodes build it, apply_guidance reads it.

    Attributes:
        schedule: when, and how strongly.
        rarity: how the gradient with respect to the encoder's image is found; every run takes a fresh one.
        through_denoiser: differentiate the denoiser too (the paper); otherwise its output is held constant.
        decoder: how the clean latent becomes an image, see decoders.choose_decoder.
        one_call: carry the denoiser's answer along with the shift, its output held constant, instead of evaluating it
            again at the shifted latent (the paper).
        checkpointing: keep less of the decoder, and of the denoiser where it is differentiated, for the backward
            pass and compute it again: less memory, more time, the same gradient.
        fit, antialias: how the encoder sees the image, see Encoder.preprocess.
    """

    schedule: Schedule
    rarity: RarityGradient
    through_denoiser: bool = False
    decoder: str = FULL
    one_call: bool = False
    checkpointing: bool = False
    fit: str = SQUASH
    antialias: bool = True
