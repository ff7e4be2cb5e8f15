"""References: made from pictures, and checked before anything is compared with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...jepa_core import Reference
from ...jepa_core.folders.scorer import Found, Scorer, Settings, part_from
from ...jepa_core.novelty import embed
from ...jepa_core.reference import NO_SCORE, ReferencePart, scoring_of
from ...jepa_core.transparency import over_white
from ..comfy.required import interrupt_check
from ..encoders.host_encoder import AnyEncoder, HostEncoder, use_encoder
from .answers import ask
from .scores import check_lengths, picture_scores

_PASS, _PASS_BYTES = 16, 1 << 29  # the most pictures in an encoder pass, and bytes of its layers
_HELD_BYTES = 1 << 28  # of pictures that are read and held together; a larger one is alone


def make_reference(
    pictures: Iterable[Tensor],
    encoder: AnyEncoder,
    how: Mapping[str, str],
    *,
    on_image: Callable[[], None] = lambda: None,
) -> Reference:
    """What an encoder, or every encoder of a set, makes of pictures.

    Transparent pixels are composited over white. A score costs many times as much as the embeddings.

    Args:
        pictures: one at least, each (H, W, 3 or 4) in [0, 1] and finite; gone through once for each encoder.
        how: see Reference; its mode says which scores are made.
        on_image: called after each picture under each encoder.

    Raises:
        ValueError: the mode does not fit an encoder; or a later encoder was given other pictures than the first.
    """
    if how["mode"] != NO_SCORE:
        check_lengths(encoder, **scoring_of(how["mode"]))
    parts: dict[tuple[str, int], ReferencePart] = {}
    # one encoder after the other: they need not fit on the device together
    for member in encoder.members:
        key = key_of(member.encoder)
        if key not in parts:
            parts[key] = _part(pictures, member.encoder, how, on_image)
    first, *others = parts.values()
    if any(len(part.embeddings) != len(first.embeddings) for part in others):
        raise ValueError("the pictures changed while they were read; run again")
    return Reference(tuple(parts.values()), dict(how))


def _part(
    pictures: Iterable[Tensor], encoder: HostEncoder, how: Mapping[str, str], on_image: Callable[[], None]
) -> ReferencePart:
    settings = Settings(encoder.name, *key_of(encoder), **how)

    def embedded(some: Sequence[Tensor]) -> Iterator[Tensor]:
        scorer = Scorer(use_encoder(encoder), replace(settings, mode=NO_SCORE))
        for batch in _groups(some, scorer.batch):
            for one in scorer.score([scorer.prepare(picture) for picture in batch], interrupt_check):
                yield torch.stack([one.embedding, one.smoothed])

    found: list[Found] = []
    for some in _groups(pictures, _PASS):
        both = list(ask(encoder, ("embeddings of views", *view_of(how).values()), some, embedded))
        scores: Iterable[Tensor | None] = [None] * len(some)
        if settings.scoring is not None:
            scores = picture_scores(some, encoder, **settings.scoring, **view_of(how))
        for score, each in zip(scores, both, strict=True):
            found.append(Found(None if score is None else score.item(), *each))
            on_image()
    return part_from(found, settings)


def embed_pictures(pictures: Iterable[Tensor], encoder: HostEncoder, how: Mapping[str, str]) -> Tensor:
    """The embeddings (N, d) float32, on the CPU, of pictures (H, W, 3 or 4), seen as `how` says; see make_reference."""

    def embedded(some: Sequence[Tensor]) -> Tensor:
        judge = use_encoder(encoder)
        seen = [over_white(picture[None].to(judge.weight.device)) for picture in some]
        x = torch.cat([judge.preprocess(pixels, **view_of(how)) for pixels in seen])
        return embed(judge, x, interrupt_check).float()

    size = max(1, min(_PASS, _PASS_BYTES // encoder.encoder.layer_bytes))
    about = ("embedding", *view_of(how).values())
    return torch.stack(
        [one for some in _groups(pictures, size) for one in ask(encoder, about, some, embedded)]
    )


def _groups(pictures: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Pictures in their order, at most `size` and the bytes that may be held at a time. Each list is emptied afterwards."""
    some: list[Tensor] = []
    for picture in pictures:
        some.append(picture)
        if len(some) == size or sum(one.nbytes for one in some) >= _HELD_BYTES:
            yield some
            some.clear()  # whoever was given it would hold it while the next are read
    if some:
        yield some


def view_of(how: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of Encoder.preprocess that `how` states."""
    return {"fit": how["fit"], "antialias": how["antialias"] == "on"}


def key_of(encoder: HostEncoder) -> tuple[str, int]:
    """What embeddings must share to be comparable, as ReferencePart.key."""
    return encoder.encoder.fingerprint, encoder.image_size


def part_of(reference: Reference, encoder: HostEncoder) -> ReferencePart | None:
    """The part of a reference that this encoder made, at its image size."""
    key, length = key_of(encoder), encoder.encoder.embed_dim
    # a file may state the weights of one encoder and hold the embeddings of another
    fits = (part for part in reference.parts if part.key == key and part.embeddings.shape[1] == length)
    return next(fits, None)


def parts_of(reference: Reference, encoder: AnyEncoder) -> list[tuple[ReferencePart, float]]:
    """For each encoder of a set, its part of the reference and its weight.

    Raises:
        ValueError: see check_comparable.
    """
    found = []
    for member in encoder.members:
        part = part_of(reference, member.encoder)
        if part is None:
            raise ValueError(_missing(reference, member.encoder))
        found.append((part, member.weight))
    return found


def seen_as(fit: str, antialias: bool) -> dict[str, str]:
    """How pictures are seen, as Reference.how states it."""
    return {"fit": fit, "antialias": "on" if antialias else "off"}


def check_comparable(reference: Reference, encoder: AnyEncoder, how: Mapping[str, str]) -> None:
    """Refuse what cannot be compared with a reference, before any work.

    Args:
        encoder: each of its members needs its part of the reference: the same weights, at the same image size.
        how: the settings, of those that Reference.how names, that count.

    Raises:
        ValueError: names the first difference, and what to do.
    """
    parts_of(reference, encoder)
    for name, value in how.items():
        if reference.how[name] != value:
            why = (
                "it has no scores to compare with, so make it with this mode"
                if reference.how[name] == NO_SCORE
                else "pictures seen or scored with different settings are not comparable, so use the same in both nodes"
            )
            raise ValueError(
                f"reference was made with {name} {reference.how[name]}, this node has {value}; {why}"
            )


def _missing(reference: Reference, encoder: HostEncoder) -> str:
    """Why an encoder has no part of the reference."""
    if key_of(encoder) in [part.key for part in reference.parts]:
        return (
            f"reference is damaged: its embeddings have another length than those of {encoder.label}, "
            f"{encoder.encoder.embed_dim}; make it again"
        )
    same = [part.image_size for part in reference.parts if part.fingerprint == encoder.encoder.fingerprint]
    if same:
        sizes = " and ".join(f"{size} px" for size in same)
        return (
            f"reference was made with {encoder.name} at {sizes}, this node's is at {encoder.image_size} px; embeddings at "
            "different image sizes are not comparable, so use the same image_size"
        )
    weights = " with other weights" if encoder.label in [part.label for part in reference.parts] else ""
    return (
        f"reference was made with {reference.label}, this node has {encoder.label}{weights}; embeddings of different "
        "encoders are not comparable, so make the reference with this encoder"
    )


def sorted_scores(reference: Reference, encoder: AnyEncoder) -> list[float]:
    """The scores of a reference's pictures under a set's weights, rarest first; [] if it has none."""
    return sorted(reference_scores(reference.distinct, encoder))


def reference_scores(reference: Reference, encoder: AnyEncoder) -> list[float]:
    """The scores of a reference's pictures under a set's weights, in their order; [] if it has none."""
    total: Any = 0.0
    for part, weight in parts_of(reference, encoder):
        if part.scores is None:
            return []
        total = total + weight * part.scores
    scores: list[float] = total.tolist()
    return scores
