"""Scores and embeddings of pictures under settings that never change: what tables and references hold of a picture."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ..encoder import Encoder
from ..novelty import embed
from ..reference import NO_SCORE, ReferencePart, scoring_of
from ..score import jepa_score
from ..transparency import over_white
from ..views import views

# Images of an encoder pass on an accelerator: at most so many, and so many bytes of a layer's activations.
_PASS, _PASS_BYTES = 64, 1 << 29
_PICTURES = 32  # scored together on an accelerator


@dataclass(frozen=True)
class Settings:
    """What scores and embeddings depend on, besides the picture.

    Attributes:
        encoder: its name, for messages. fingerprint: of its weights, see Encoder.fingerprint.
        image_size: S in pixels.
        fit, antialias, mode: as jepa_core.Reference.how states them; mode is the kind of score.
    """

    encoder: str
    fingerprint: str
    image_size: int
    fit: str
    antialias: str
    mode: str

    @property
    def how(self) -> dict[str, str]:
        """As in jepa_core.Reference."""
        return {"mode": self.mode, "fit": self.fit, "antialias": self.antialias}

    @property
    def scoring(self) -> dict[str, int] | None:
        """The arguments of jepa_score, or None for no scores."""
        return None if self.mode == NO_SCORE else scoring_of(self.mode)

    @property
    def key(self) -> str:
        """16 hexadecimal digits that depend on everything but the encoder's name."""
        counting = {name: value for name, value in asdict(self).items() if name != "encoder"}
        return hashlib.sha256(json.dumps(counting, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def text(self) -> str:
        """As JSON, which settings_of reads."""
        return json.dumps(asdict(self))

    def difference(self, other: "Settings") -> str | None:
        """The first of the settings that count and differ, as "fit crop, not squash" with the value of `other` last."""
        for field in fields(self)[1:]:
            own, its = getattr(self, field.name), getattr(other, field.name)
            if own != its:
                if field.name == "fingerprint":
                    return f"encoder {self.encoder} ({own[:8]}), not {other.encoder} ({its[:8]})"
                return f"{field.name} {own}, not {its}"
        return None


def settings_of(text: str) -> Settings:
    """Read Settings.text. Raises ValueError if it is anything else."""
    stated = json.loads(text)
    kinds = {field.name: int if field.name == "image_size" else str for field in fields(Settings)}
    if not isinstance(stated, dict) or {name: type(value) for name, value in stated.items()} != kinds:
        raise ValueError(f"its settings are {text!r:.100}")
    found = Settings(**stated)
    found.scoring  # noqa: B018 (an unknown mode must fail here)
    return found


class Found(NamedTuple):
    """What an encoder makes of a picture.

    Attributes:
        score: None if none is wanted.
        embedding: (d,) float32. smoothed: (d,) float32, the mean over its views (views.py). On the CPU.
    """

    score: float | None
    embedding: Tensor
    smoothed: Tensor


@torch.inference_mode(False)  # so that its tensors can take part in gradients
def part_from(found: Sequence[Found], settings: Settings) -> ReferencePart:
    """What an encoder makes of some pictures, one at least, as its part of a reference."""
    scores = None
    if settings.scoring is not None:
        scores = torch.tensor([one.score for one in found], dtype=torch.float64, device="cpu")
    return ReferencePart(
        settings.encoder,
        settings.fingerprint,
        settings.image_size,
        torch.stack([one.embedding for one in found]),
        torch.stack([one.smoothed for one in found]),
        scores,
    )


class Scorer:
    """An encoder with settings. On a CPU, what it makes of a picture does not depend on the pictures beside it.

    Args:
        settings: of this encoder.

    Raises:
        ValueError: its mode asks for more outputs than an embedding has.
    """

    def __init__(self, encoder: Encoder, settings: Settings) -> None:
        self.encoder = encoder
        self.settings = settings
        for name, count in (settings.scoring or {}).items():
            if count > encoder.embed_dim:
                raise ValueError(
                    f"{name} {count} is larger than the embedding of {settings.encoder}, {encoder.embed_dim}; lower it"
                )

    @property
    def batch(self) -> int:
        """How many pictures to give to `score` at a time."""
        return 1 if self._on_cpu else _PICTURES

    @property
    def _on_cpu(self) -> bool:
        return self.encoder.weight.device.type == "cpu"

    def prepare(self, picture: Tensor, *, here: bool = False) -> Tensor:
        """The part of the work that other threads can do ahead.

        Args:
            picture: (H, W, 3 or 4) in [0, 1].
            here: prepare it on its own device, although the encoder's may be faster.

        Returns:
            What `score` takes: the views (V, 3, S, S), preprocessed; or the picture, if the encoder's device does that.
        """
        return self._seen(picture) if here or self._on_cpu else picture

    def _seen(self, picture: Tensor) -> Tensor:
        """The views of a picture on a white ground, preprocessed: (V, 3, S, S). The first is the picture itself."""
        fit, antialias = self.settings.fit, self.settings.antialias == "on"
        each = views(over_white(picture[None]))
        return torch.cat([self.encoder.preprocess(view, fit=fit, antialias=antialias) for view in each])

    def score(self, batch: Sequence[Tensor], on_pass: Callable[[], None] = lambda: None) -> list[Found]:
        """What the encoder makes of pictures that were prepared.

        Args:
            on_pass: called after each encoder pass; may raise to stop.

        Raises:
            ValueError: a picture for which the encoder gives no finite numbers.
        """
        device = self.encoder.weight.device
        seen = torch.stack([one.to(device) if one.ndim == 4 else self._seen(one.to(device)) for one in batch])
        embeddings = self._embed(seen, on_pass)
        if not embeddings.isfinite().all():
            raise ValueError("the encoder gives NaN or infinite numbers for this picture")
        scores: Iterable[float | None] = [None] * len(batch)
        if self.settings.scoring is not None:
            scores = jepa_score(self.encoder, seen[:, 0], **self.settings.scoring, on_pass=on_pass).tolist()
        each = zip(scores, embeddings, strict=True)
        return [Found(score, own[0], own.mean(0)) for score, own in each]

    def _embed(self, seen: Tensor, on_pass: Callable[[], None]) -> Tensor:
        """The embeddings (B, V, d) of views (B, V, 3, S, S).

        Each pass has the same number of images whatever B is, since rounding depends on it: on a CPU the views of one
        picture, elsewhere those of several, which is faster.
        """
        count = seen.shape[1]
        together = 1
        if not self._on_cpu:
            together = max(1, min(_PASS, _PASS_BYTES // self.encoder.layer_bytes) // count)
        found = []
        for some in seen.split(together):
            missing = seen.new_zeros(together - len(some), *seen.shape[1:])
            passed = torch.cat([some, missing]) if len(missing) else some
            embedded = embed(self.encoder, passed.flatten(0, 1), on_pass).float().cpu()
            found.append(embedded.unflatten(0, (-1, count))[: len(some)])
        return torch.cat(found)
