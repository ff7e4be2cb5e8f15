"""Scoring batches of the host's images."""

from collections.abc import Callable, Iterator, Sequence
from operator import mul
from typing import Any

from torch import Tensor

from ...jepa_core import jepa_score
from ...jepa_core.transparency import over_white
from ..comfy.required import interrupt_check
from ..comfy.values import check_images
from ..encoders.host_encoder import AnyEncoder, HostEncoder, use_encoder
from ..options import SQUASH
from .answers import ask


def check_lengths(encoder: AnyEncoder, **counts: int | None) -> None:
    """Raise ValueError for counts (top_k, projection) larger than an embedding of one of the encoders."""
    for judge in (member.encoder for member in encoder.members):
        length = judge.encoder.embed_dim
        for what, count in counts.items():
            if count is not None and count > length:
                raise ValueError(
                    f"{what} {count} is larger than the embedding of {judge.name}, {length}; lower it"
                )


def score_images(
    images: Tensor,
    encoder: AnyEncoder,
    *,
    top_k: int | None = None,
    projection: int | None = None,
    fit: str = SQUASH,
    antialias: bool = True,
    on_image: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Score images (B, H, W, 3 or 4) in [0, 1] under every encoder of a set; see jepa_core.jepa_score.

    Transparent pixels are composited over white.

    Returns:
        For each member of the set, in its order, the scores of all images.

    Raises:
        ValueError: images of another shape or with pixels that are not finite; top_k or projection larger than an embedding.
    """
    check_images(images)
    check_lengths(encoder, top_k=top_k, projection=projection)
    asked: dict[str, Any] = {"top_k": top_k, "projection": projection, "fit": fit, "antialias": antialias}
    # one encoder after the other: they need not fit on the device together
    return [
        [score.item() for score in picture_scores(list(images), member.encoder, **asked, on_image=on_image)]
        for member in encoder.members
    ]


def picture_scores(
    pictures: Sequence[Tensor],
    encoder: HostEncoder,
    *,
    top_k: int | None = None,
    projection: int | None = None,
    fit: str,
    antialias: bool,
    on_image: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """The scores (1,) float64 of pictures (H, W, 3 or 4) that were checked, under one encoder; known ones come at once."""

    def scored(some: Sequence[Tensor]) -> Iterator[Tensor]:
        judge = use_encoder(encoder)
        for picture in some:
            pixels = over_white(picture[None].to(judge.weight.device))
            x = judge.preprocess(pixels, fit=fit, antialias=antialias)
            yield jepa_score(judge, x, top_k=top_k, projection=projection, on_pass=interrupt_check)

    return ask(encoder, ("score", top_k, projection, fit, antialias), pictures, scored, on_image)


def combined_scores(each: Sequence[Sequence[float]], encoder: AnyEncoder) -> list[float]:
    """The score of each image: the weighted mean of its scores under the members of a set."""
    weights = [member.weight for member in encoder.members]
    return [sum(map(mul, weights, of_image)) for of_image in zip(*each, strict=True)]


def score_batches(batches: Sequence[Tensor], encoder: AnyEncoder, **settings: Any) -> list[float]:
    """The scores of all images of several batches, whose sizes may differ; settings are those of score_images."""
    return [
        score
        for batch in batches
        for score in combined_scores(score_images(batch, encoder, **settings), encoder)
    ]
