"""What a JEPA_ENCODER link carries: an encoder that the host loads and unloads, or a weighted set of encoders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ...jepa_core import Encoder, load_encoder
from ...jepa_core.checkpoint import neighbours, weights_file
from ..comfy.required import ModelPatcher, load_models_gpu
from ..gradient.residency import keep_whole, refuse_streamed
from .shared import shared_patcher


@dataclass(frozen=True)
class HostEncoder:
    """An encoder in a patcher of the host, at one image size.

    Loaders of the same file share the patcher, and so the weights.
    """

    name: str
    patcher: ModelPatcher
    image_size: int

    @cached_property
    def encoder(self) -> Encoder:
        """At this image size; its weights are those in the patcher.

        Raises:
            ValueError: not a multiple of the patch size.
        """
        return self.patcher.model.at_size(self.image_size)

    @property
    def label(self) -> str:
        """Name and size, as shown to users: scores depend on both."""
        return f"{self.name} at {self.image_size} px"

    @property
    def members(self) -> tuple[Member, ...]:
        """A single encoder is a set of one."""
        return (Member(self, 1.0),)


class Member(NamedTuple):
    """An encoder of a set, and its weight."""

    encoder: HostEncoder
    weight: float


@dataclass(frozen=True)
class HostEncoderSet:
    """Several encoders used as one, by their weighted mean.

    Attributes:
        members: their weights add up to 1.
    """

    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        return " + ".join(member.encoder.name for member in self.members)


AnyEncoder = HostEncoder | HostEncoderSet


def load_host_encoder(path: Path, name: str, image_size: int) -> HostEncoder:
    """Load an encoder file as a model that the host manages. Weights that are already loaded are shared.

    Raises:
        jepa_core.EncoderFileError: a missing, damaged or unsupported file.
        ValueError: an image_size that is not a multiple of the encoder's patch size.
    """
    file = weights_file(path)
    patcher = shared_patcher(
        "encoder", file, neighbours(file), lambda: load_encoder(file, image_size=image_size)
    )
    encoder = HostEncoder(name, patcher, image_size)
    encoder.encoder  # noqa: B018 (an invalid size must fail here, not while sampling)
    return encoder


def combined(encoders: Iterable[tuple[AnyEncoder, float]]) -> HostEncoderSet:
    """One set of weighted encoders. The members of a set among them share the weight of that set.

    Args:
        encoders: (encoder, weight), weights positive and on any scale.
    """
    weights: dict[tuple, Member] = {}
    total = 0.0
    for encoder, weight in encoders:
        total += weight
        for member in encoder.members:
            one = member.encoder
            key = (id(one.patcher), one.image_size)
            before = weights[key].weight if key in weights else 0.0
            weights[key] = Member(one, before + weight * member.weight)
    return HostEncoderSet(tuple(Member(one, weight / total) for one, weight in weights.values()))


def patchers(*encoders: AnyEncoder) -> list[ModelPatcher]:
    """The patchers of these encoders, without duplicates."""
    found = [member.encoder.patcher for encoder in encoders for member in encoder.members]
    return list({id(patcher): patcher for patcher in found}.values())


def use_encoder(encoder: HostEncoder) -> Encoder:
    """Have the host load the encoder onto its device now, and return it."""
    load_models_gpu([encoder.patcher])
    keep_whole([encoder.patcher], [])
    refuse_streamed(encoder.patcher, "the JEPA encoder")
    return encoder.encoder
