"""How well images fit a text, by a CLIP that the host loads and unloads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...jepa_core.checkpoint import neighbours, weights_file
from ...jepa_core.clip_tokenizer import tokenizer_files
from ...jepa_core.prompt_fit import PromptFit, load_prompt_fit
from ..comfy.required import ModelPatcher, interrupt_check, load_models_gpu
from ..comfy.values import check_images
from ..encoders.shared import shared_patcher
from ..gradient.residency import keep_whole

_BATCH = 16


@dataclass(frozen=True)
class PromptScorer:
    """A text, and a CLIP in a patcher of the host that compares images with it.

    Scorers of the same file share the patcher, and so the weights.
    """

    name: str
    text: str
    patcher: ModelPatcher

    @property
    def model(self) -> PromptFit:
        """The CLIP, wherever its weights are now."""
        return self.patcher.model

    @property
    def unread(self) -> str:
        """The end of the text that the CLIP does not read because the text is too long; mostly ""."""
        return self.model.unread(self.text)


def load_prompt_scorer(path: Path, name: str, text: str) -> PromptScorer:
    """Load a CLIP as a model that the host manages. Weights that are already loaded are shared.

    Raises:
        jepa_core.EncoderFileError: a missing, damaged or unsupported file.
    """
    file = weights_file(path)
    others = [*neighbours(file), *tokenizer_files(file.parent)]
    return PromptScorer(name, text, shared_patcher("prompt fit", file, others, lambda: load_prompt_fit(file)))


def prompt_fits(images: Tensor, scorer: PromptScorer) -> list[float]:
    """How well each of some images (B, H, W, 3 or 4) in [0, 1] fits the text: a cosine, higher is better.

    Has the host load the CLIP onto its device.

    Raises:
        ValueError: images of another shape or with pixels that are not finite, or a CLIP too large for the device.
    """
    check_images(images)
    load_models_gpu([scorer.patcher])
    if keep_whole([scorer.patcher], []):
        raise ValueError(
            f"{scorer.name} does not fit into the memory that is free on {scorer.patcher.load_device}; choose a smaller "
            "CLIP, or free memory"
        )
    return prompt_fits_here(images, scorer)


def prompt_fits_here(images: Tensor, scorer: PromptScorer) -> list[float]:
    """As prompt_fits, in the middle of a run whose models the host has loaded, this CLIP among them.

    An image with pixels that are not finite gets NaN.
    """
    fits: list[float] = []
    for start in range(0, len(images), _BATCH):
        interrupt_check()
        fits += scorer.model.fit(images[start : start + _BATCH], scorer.text).tolist()
    return fits


def ranked_fits(fits: Sequence[float]) -> list[str]:
    """A line for each image, the best fit first: rank, image, fit."""
    order = sorted(range(len(fits)), key=fits.__getitem__, reverse=True)
    return [f"{rank}. image {index}: {fits[index]:.3f}" for rank, index in enumerate(order, 1)]
