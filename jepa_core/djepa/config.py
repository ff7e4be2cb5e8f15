"""The sizes of a D-JEPA, checked, and those that the paper trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass

DENOISERS = ("diffusion", "flow")


class DJEPASizeError(ValueError):
    """Invalid sizes of a D-JEPA. The message names the entry, its value and the allowed range."""


@dataclass(frozen=True)
class DJEPAConfig:
    """The sizes of a D-JEPA, as stored in its weight file.

    Attributes:
        side: latent rows, equal to the columns.
        channels: latent channels.
        patch: side of a token in the latent; N = (side / patch)^2 tokens of channels * patch^2 entries.
        classes: the number of classes; the label `classes` itself means no class.
        width, depth, heads: of the context encoder and of the feature predictor.
        head_width, head_depth: of the denoising head.
        buffer: number of tokens that carry the class and are always visible to the context encoder.
        denoiser: "diffusion" (the head predicts noise and variance) or "flow" (it predicts velocity).

    Raises:
        DJEPASizeError: from the constructor, for sizes that do not fit together or are out of range.
    """

    side: int
    channels: int
    classes: int
    width: int
    depth: int
    heads: int
    head_width: int
    head_depth: int
    patch: int = 1
    buffer: int = 64
    denoiser: str = "diffusion"

    def __post_init__(self) -> None:
        limits = {
            "side": 256,
            "channels": 1024,
            "classes": 100_000,
            "width": 8192,
            "depth": 128,
            "heads": 128,
            "head_width": 8192,
            "head_depth": 64,
            "patch": 64,
            "buffer": 1024,
        }
        for name, most in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise DJEPASizeError(f"{name} must be a whole number from 1 to {most}, got {value!r:.80}")
        if self.denoiser not in DENOISERS:
            raise DJEPASizeError(f"denoiser must be one of {', '.join(DENOISERS)}, got {self.denoiser!r:.80}")
        for name, value, divisor in (("side", self.side, "patch"), ("width", self.width, "heads")):
            if value % getattr(self, divisor):
                raise DJEPASizeError(
                    f"{name} {value} is not a multiple of {divisor} {getattr(self, divisor)}"
                )
        if self.tokens > 4096:
            raise DJEPASizeError(
                f"side {self.side} with patch {self.patch} makes {self.tokens} tokens, more than 4096"
            )

    @property
    def tokens(self) -> int:
        """N, the number of tokens in an image."""
        return (self.side // self.patch) ** 2

    @property
    def token_width(self) -> int:
        """The number of entries in a token."""
        return self.channels * self.patch**2

    def to_dict(self) -> dict[str, int | str]:
        """The sizes by name, as stored in a weight file."""
        return asdict(self)


def published_config(size: str, *, classes: int = 1000, denoiser: str = "diffusion") -> DJEPAConfig:
    """The sizes that the paper trained on 256 x 256 ImageNet (its appendix, table of configurations).

    Args:
        size: "B" (212 M parameters), "L" (687 M) or "H" (1.43 B).

    Raises:
        DJEPASizeError: no such size.
    """
    sizes = {
        "B": {"width": 768, "depth": 12, "heads": 12, "head_width": 1024, "head_depth": 6},
        "L": {"width": 1024, "depth": 24, "heads": 16, "head_width": 1280, "head_depth": 8},
        "H": {"width": 1280, "depth": 32, "heads": 16, "head_width": 1536, "head_depth": 12},
    }
    if size not in sizes:
        raise DJEPASizeError(f"size must be one of {', '.join(sizes)}, got {size!r:.80}")
    return DJEPAConfig(side=16, channels=16, classes=classes, denoiser=denoiser, **sizes[size])
