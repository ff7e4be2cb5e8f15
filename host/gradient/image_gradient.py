"""The gradient of rarity with respect to the decoded image: of the JEPA score, of novelty, or of both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...jepa_core import Encoder, RarityGradient, jepa_score, novelty_gradient
from ...jepa_core.appearance import without_appearance
from ...jepa_core.novelty import Distance, Nearest, embed
from ...jepa_core.score import PROJECTION
from ...jepa_core.views import views
from ..options import BOTH, NOVELTY, SCORE, SQUASH
from .linearise import linearised
from .scale import Target, of_frames


class Guide(NamedTuple):
    """An encoder that defines rarity, and its weight. Weights add up to 1.

    usual: how far an embedding lies from the reference; None without one.
    """

    encoder: Encoder
    weight: float = 1.0
    usual: Distance | None = None


class Judge(NamedTuple):
    """An encoder that only watches. usual: reports the distance from the reference instead of the score."""

    encoder: Encoder
    usual: Distance | None = None


class ScoreGradient(NamedTuple):
    """What guidance descends, and its gradient.

    Attributes:
        score: (B,) float64, the guided score, the weighted mean over the guides; NaN if the score is no criterion.
        gradient: with respect to the sampler's x (or to the argument of the function that returns it), in its shape.
        clean: the clean estimate at x, in the model's scale; None if unknown.
        each: (guides, B), the score under each guide; None if the gradient is not that of a score.
        judged: (judges, B), the projected score, or the novelty, under each judge.
        novelty: (B,) float64, the weighted mean over the guides; None if novelty is no criterion.
        push: (B,) in 0 to 1, what remains of the strength near the target; None without a target.
    """

    score: Tensor
    gradient: Tensor
    clean: Tensor | None = None
    each: Tensor | None = None
    judged: Tensor | None = None
    novelty: Tensor | None = None
    push: Tensor | None = None


def joined(found: Sequence[ScoreGradient]) -> ScoreGradient:
    """The gradients of single images as that of a batch."""

    def together(name: str, dim: int = 0) -> Tensor | None:
        own = [getattr(one, name) for one in found]
        return None if own[0] is None else torch.cat(own, dim)

    batch = {name: together(name) for name in ("score", "gradient", "novelty", "push")}
    return ScoreGradient(**batch, each=together("each", 1), judged=together("judged", 1))  # type: ignore[arg-type]


class _Part(NamedTuple):
    """What one guide says by one criterion: its value, the gradient at the decoded image, and its weight."""

    criterion: str
    value: Tensor
    gradient: Tensor
    weight: float


@dataclass
class ImageGradient:
    """What guidance descends at a decoded image, with its gradient.

    With several guides or criteria, each gradient is scaled to a root mean square of 1 before it is weighted: scores of
    different encoders differ in scale.

    Attributes:
        guides: the encoders that define rarity.
        rarity: computes the gradient of the score with respect to the preprocessed image.
        judges: encoders that also look at the decoded image, without any effect on the gradient.
        criterion: SCORE, NOVELTY or BOTH.
        apart: novelty also counts the distance to the other images of the batch.
        smooth: the gradient is the mean over a few views of the image.
        keep_appearance: the gradient loses what changes only brightness, contrast and saturation.
        agree: of several gradients, only entries whose signs agree count.
        target: where guidance stops; None never does.
        fit, antialias: how the encoder sees the image, see Encoder.preprocess.
    """

    guides: Sequence[Guide]
    rarity: RarityGradient = field(default_factory=RarityGradient)
    judges: Sequence[Judge] = ()
    criterion: str = SCORE
    apart: bool = False
    smooth: bool = False
    keep_appearance: bool = False
    agree: bool = False
    target: Target | None = None
    fit: str = SQUASH
    antialias: bool = True

    @property
    def uses_score(self) -> bool:
        return self.criterion in (SCORE, BOTH)

    @property
    def uses_novelty(self) -> bool:
        return self.criterion in (NOVELTY, BOTH)

    @property
    def on_pass(self) -> Callable[[], None]:
        """Called after every encoder pass; may raise to stop."""
        return self.rarity.on_pass or (lambda: None)

    def fresh(self, on_pass: Callable[[], None]) -> "ImageGradient":
        """A copy for one run."""
        return replace(self, rarity=self.rarity.fresh(on_pass))

    def __call__(self, image: Tensor, index: int, others: Sequence[Tensor] | None = None) -> ScoreGradient:
        """Gradient for the decoded image (1, H, W, 3) or video (T, H, W, 3) at `index` in the batch.

        Args:
            others: for each guide the embeddings (n, d) of the other images of the batch, if they count.
        """
        parts = []
        for number, guide in enumerate(self.guides):
            encoder = of_frames(guide.encoder, len(image))
            pixels = image.to(encoder.weight.device)
            distance = _distance(guide.usual, None if others is None else others[number])
            with linearised(partial(self._views, encoder), pixels) as (x, pull):
                if self.uses_score:
                    ids = [(number, index, view) for view in range(len(x))]
                    rarity = self.rarity(encoder, x, ids=ids)
                    gradient = pull(rarity.grad / len(x), keep=self.uses_novelty)
                    parts.append(_Part(SCORE, rarity.score.mean(), gradient.to(image), guide.weight))
                if self.uses_novelty:
                    found = novelty_gradient(encoder, x, distance, self.on_pass)
                    # guidance descends
                    gradient = pull(-found.grad / len(x))
                    value = found.value.double().mean().cpu()
                    parts.append(_Part(NOVELTY, value, gradient.to(image), guide.weight))
        push = self._push(image)
        gradient = _combined(parts, push, self.agree)
        if self.keep_appearance:
            gradient = without_appearance(gradient, image)
        scores, each = self._mean(parts, SCORE)
        return ScoreGradient(
            scores,
            gradient,
            each=each if self.uses_score else self._mean(parts, NOVELTY)[1],
            judged=self._judged(image),
            novelty=self._mean(parts, NOVELTY)[0] if self.uses_novelty else None,
            push=None
            if push is None
            else torch.tensor([max(push.values())], dtype=torch.float64, device="cpu"),
        )

    def embeddings(self, image: Tensor) -> list[Tensor]:
        """The embedding (1, d) of a decoded image under each guide."""
        found = []
        for guide in self.guides:
            encoder = of_frames(guide.encoder, len(image))
            found.append(embed(encoder, self.seen(encoder, image.to(encoder.weight.device)), self.on_pass))
        return found

    def seen(self, encoder: Encoder, frames: Tensor) -> Tensor:
        """Frames (T, H, W, 3), preprocessed for an encoder: an image if there is one, else a clip."""
        images = frames[None] if len(frames) > 1 else frames
        return encoder.preprocess(images, fit=self.fit, antialias=self.antialias)

    def _views(self, encoder: Encoder, frames: Tensor) -> Tensor:
        """The same for every view, if the gradient is smoothed."""
        return torch.cat([self.seen(encoder, view) for view in (views(frames) if self.smooth else [frames])])

    def _push(self, image: Tensor) -> dict[str, float] | None:
        if self.target is None or self.target.share is None:
            return None
        return self.target.push(image, self.seen, self.on_pass)

    def _mean(self, parts: Sequence[_Part], criterion: str) -> tuple[Tensor, Tensor]:
        """The weighted mean (1,) of a criterion, and its value under each guide (guides, 1)."""
        own = [part for part in parts if part.criterion == criterion]
        if not own:
            return torch.full((1,), torch.nan, dtype=torch.float64, device="cpu"), torch.empty(0, 1)
        each = torch.stack([part.value for part in own])[:, None]
        return each.new_tensor([part.weight for part in own]) @ each, each

    def _judged(self, image: Tensor) -> Tensor:
        """What the judges find (judges, 1); NaN if the image is not finite."""
        found = torch.full((len(self.judges), 1), torch.nan, dtype=torch.float64, device="cpu")
        for number, (judge, usual) in enumerate(self.judges if image.isfinite().all() else ()):
            judge = of_frames(judge, len(image))
            x = self.seen(judge, image.to(judge.weight.device))
            if usual is not None:
                found[number] = usual(embed(judge, x, self.on_pass)).cpu()
            else:
                projection = min(PROJECTION, judge.embed_dim)
                found[number] = jepa_score(judge, x, projection=projection, on_pass=self.rarity.on_pass)
        return found


def _distance(usual: Distance | None, others: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The distance from the reference, from the other images of the batch, or the mean of both."""
    near = [] if others is None or not len(others) else [Nearest(others)]
    distances = [one for one in (usual, *near) if one is not None]

    def mean_distance(embeddings: Tensor) -> Tensor:
        if not distances:
            # alone in its batch: nothing to be apart from, and a gradient of zero
            return 0 * embeddings.sum(1)
        return torch.stack([distance(embeddings) for distance in distances]).mean(0)

    return mean_distance


def _combined(parts: Sequence[_Part], push: dict[str, float] | None, agree: bool) -> Tensor:
    if len(parts) == 1:
        return parts[0].gradient
    # how much of the strength remains is up to the caller; here only what is left of each criterion beside the other
    most = max(push.values()) if push else 0.0
    scaled = []
    for part in parts:
        gradient = part.gradient
        # clamped: an encoder that does not see the image gives a gradient of zero
        size = gradient.square().mean().sqrt().clamp(min=torch.finfo(gradient.dtype).tiny)
        share = push[part.criterion] / most if push and most else 1.0
        scaled.append(part.weight * share * gradient / size)
    total = sum(scaled[1:], scaled[0])
    if not agree:
        return total
    # a gradient of zero, as that of an image alone in its batch, has no direction to agree with
    telling = [part.gradient for part in parts if part.gradient.any()] or [total]
    signs = torch.stack(telling).sign()
    return torch.where((signs == signs[0]).all(0) | total.isnan(), total, 0.0)
