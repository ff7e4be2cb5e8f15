"""How large everything is that tools/gpu/run.py computes: full on a card, tiny in a dry run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A checkpoint: file, image side in pixels, width and pooled width of its denoiser's conditioning."""

    file: str
    pixels: int
    width: int
    pooled: int = 0


@dataclass(frozen=True)
class Plan:
    """The size of a run.

    Attributes:
        cpu: compute on the processor. scale: of the model files, see random_models.py.
        guided: start and end of the guided range, as fractions of the steps.
        tokens: of the conditioning. encoder_pixels: side of the encoder's input.
        prompt_seconds, compile_seconds: the most that one prompt may take.
        left_free: GiB that the ballast leaves on the card, one run each.
    """

    cpu: bool
    scale: str
    sizes: Mapping[str, Size]
    steps: int
    guided: tuple[float, float]
    tokens: int
    encoder_pixels: int
    prompt_seconds: float
    compile_seconds: float
    left_free: Sequence[float] = (24, 16, 12, 8)


FULL = Plan(
    cpu=False,
    scale="full",
    sizes={
        "SDXL": Size("sdxl.safetensors", 1024, 2048, 1280),
        "SD1.5": Size("sd15.safetensors", 512, 768),
    },
    steps=4,
    guided=(0.25, 0.75),
    tokens=77,
    encoder_pixels=224,
    prompt_seconds=75,
    compile_seconds=45,
)
TINY = Plan(
    cpu=True,
    scale="tiny",
    sizes={"SDXL": Size("sdxl.safetensors", 32, 2048, 1280), "SD1.5": Size("sd15.safetensors", 64, 768)},
    steps=2,
    guided=(0.5, 1.0),
    tokens=4,
    encoder_pixels=28,
    prompt_seconds=60,
    compile_seconds=30,
)
