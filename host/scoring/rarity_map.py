"""Where an image is rare: patch scores at every pixel, or what its novelty depends on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...jepa_core import Encoder, Reference, patch_scores
from ...jepa_core.novelty import Nearest, patch_novelty
from ...jepa_core.score import PROJECTION
from ...jepa_core.transparency import over_white
from ..comfy.required import interrupt_check
from ..comfy.values import check_images
from ..encoders.host_encoder import AnyEncoder, HostEncoder, use_encoder
from ..options import CROP, SQUASH
from .answers import ask, digest
from .reference import parts_of


def score_fields(
    images: Tensor,
    encoder: AnyEncoder,
    *,
    fit: str = SQUASH,
    antialias: bool = True,
    on_image: Callable[[], None] = lambda: None,
) -> Tensor:
    """The patch score at every pixel, the weighted mean over a set of encoders; see jepa_core.patch_scores.

    Args:
        images: (B, H, W, 3 or 4) in [0, 1].
        fit: with "crop", the field is NaN outside the centre square.

    Returns:
        (B, H, W) float32 on the CPU. Lower is rarer.

    Raises:
        ValueError: images of another shape, or with pixels that are not finite.
    """
    check_images(images)
    height, width = images.shape[1:3]
    total = torch.zeros(len(images), height, width, device="cpu")
    for member in encoder.members:
        projection = min(PROJECTION, member.encoder.encoder.embed_dim)
        score = partial(patch_scores, projection=projection, on_pass=interrupt_check)
        scores = _asked("patch scores", score, images, member.encoder, fit, antialias, on_image)
        for found, field in zip(scores, total, strict=True):
            field += member.weight * _over_image(found, height, width, fit)
    return total


def novelty_fields(
    images: Tensor,
    encoder: AnyEncoder,
    reference: Reference,
    *,
    fit: str = SQUASH,
    antialias: bool = True,
    on_image: Callable[[], None] = lambda: None,
) -> Tensor:
    """Minus how much the distance from a reference depends on every pixel's patch; see jepa_core.novelty.patch_novelty.

    Over a set of encoders the weighted mean, each in units of its own mean over the image.

    Args, returns, raises: see score_fields. The encoders must have their parts in the reference (check_comparable).
    """
    check_images(images)
    height, width = images.shape[1:3]
    total = torch.zeros(len(images), height, width, device="cpu")
    several = len(encoder.members) > 1
    for member, (part, weight) in zip(encoder.members, parts_of(reference.distinct, encoder), strict=True):
        distance = Nearest(part.embeddings)
        measure = partial(patch_novelty, distance=distance, on_pass=interrupt_check)
        about = ("patch novelty", digest(part.embeddings))
        changes = _asked(about, measure, images, member.encoder, fit, antialias, on_image)
        for found, field in zip(changes, total, strict=True):
            if several:
                found = weight * found / found.mean().clamp(min=torch.finfo(found.dtype).tiny)
            field -= _over_image(found, height, width, fit)
    return total


def _asked(
    question: Hashable,
    measure: Callable[[Encoder, Tensor], Tensor],
    images: Tensor,
    encoder: HostEncoder,
    fit: str,
    antialias: bool,
    on_image: Callable[[], None],
) -> Iterator[Tensor]:
    """What is measured of the patches of each image: (1, side, side) float32; what is known comes at once."""

    def measured(some: Sequence[Tensor]) -> Iterator[Tensor]:
        judge = use_encoder(encoder)
        for image in some:
            seen = over_white(image[None]).to(judge.weight.device)
            yield measure(judge, judge.preprocess(seen, fit=fit, antialias=antialias)).float()

    return ask(encoder, (question, fit, antialias), list(images), measured, on_image)


def _over_image(scores: Tensor, height: int, width: int, fit: str) -> Tensor:
    """Scores (1, side, side) mapped back to the image as the encoder saw it: (height, width)."""
    seen = (min(height, width),) * 2 if fit == CROP else (height, width)
    smooth = F.interpolate(scores[None], seen, mode="bilinear", align_corners=False)[0, 0]
    field = torch.full((height, width), torch.nan, device="cpu")
    top, left = (height - seen[0]) // 2, (width - seen[1]) // 2
    field[top : top + seen[0], left : left + seen[1]] = smooth
    return field
