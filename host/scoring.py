"""Scoring a batch of the host's images."""

from collections.abc import Callable

from torch import Tensor

from ..jepa_core import jepa_score
from .internals import interrupt_check
from .models import HostEncoder, use_encoder


def score_images(
    images: Tensor,
    encoder: HostEncoder,
    *,
    top_k: int | None = None,
    projection: int | None = None,
    fit: str = "squash",
    antialias: bool = True,
    on_image: Callable[[], None] = lambda: None,
) -> list[float]:
    """Return the JEPA score of each image of images (B, H, W, 3) in [0, 1]; see jepa_core.jepa_score.

    Raises:
        ValueError: images of another shape, top_k or projection larger than the embedding, or an image with NaN pixels.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(f"images must be (batch, height, width, 3 or 4), got {tuple(images.shape)}")
    judge = use_encoder(encoder)
    scores = []
    for index, image in enumerate(images.split(1)):
        if not image.isfinite().all():
            raise ValueError(f"images: image {index} of the batch holds NaN or infinite pixels")
        # an alpha channel does not reach the encoder
        x = judge.preprocess(image[..., :3].to(judge.weight.device), fit=fit, antialias=antialias)
        score = jepa_score(judge, x, top_k=top_k, projection=projection, on_pass=interrupt_check)
        scores.append(score.item())
        on_image()
    return scores
