"""What a JEPA_ENCODER link carries: an encoder that the host loads and unloads, or a weighted set of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from ...jepa_core import Encoder, load_encoder
from ...jepa_core.checkpoint import neighbours, weights_file
from ..comfy.required import ModelPatcher, get_torch_device, load_models_gpu, unet_offload_device
from ..gradient.residency import keep_whole, refuse_streamed


@dataclass(frozen=True)
class HostEncoder:
    """An encoder in a patcher of the host, at one image size. Loaders of one file share the patcher."""

    name: str
    patcher: ModelPatcher
    image_size: int

    @property
    def encoder(self) -> Encoder:
        return self.patcher.model.at_size(self.image_size)

    @property
    def label(self) -> str:
        """Its name and size for people: the same file at another size judges otherwise."""
        return f"{self.name} at {self.image_size} px"

    @property
    def members(self) -> tuple[Member, ...]:
        """A single encoder is a set of one."""
        return (Member(self, 1.0),)


class Member(NamedTuple):
    """An encoder of a set, and its share of the whole."""

    encoder: HostEncoder
    weight: float


@dataclass(frozen=True)
class HostEncoderSet:
    """Several encoders as one: what they agree on is rare.

    Attributes:
        members: their weights add up to 1.
    """

    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        return " + ".join(member.encoder.name for member in self.members)


AnyEncoder = HostEncoder | HostEncoderSet

# While anything uses an encoder, another loader of the same file gets the same weights.
_loaded: WeakValueDictionary[tuple, ModelPatcher] = WeakValueDictionary()


def load_host_encoder(path: Path, name: str, image_size: int) -> HostEncoder:
    """Load an encoder file as a model that the host manages; a file that is loaded already is shared.

    Raises:
        jepa_core.EncoderFileError: a missing, damaged or unsupported file.
        ValueError: an image_size that is not a multiple of the encoder's patch size.
    """
    file = weights_file(path)
    states = [part.stat() for part in (file, *neighbours(file)) if part.is_file()]
    key = (file.resolve(), *((state.st_mtime_ns, state.st_size) for state in states))
    patcher = _loaded.get(key)
    if patcher is None:
        # The base patcher on purpose: the dynamic one streams weights through buffers that a backward pass
        # would read after they were overwritten.
        patcher = ModelPatcher(
            load_encoder(file, image_size=image_size),
            load_device=get_torch_device(),
            offload_device=unet_offload_device(),
        )
        _loaded[key] = patcher
    encoder = HostEncoder(name, patcher, image_size)
    encoder.encoder  # noqa: B018 (raises for a size that does not fit, before anything is sampled)
    return encoder


def combined(encoders: Iterable[tuple[AnyEncoder, float]]) -> HostEncoderSet:
    """One set of weighted encoders; a set among them brings its members, which share its weight.

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
    """Every patcher of these encoders, each once."""
    found = [member.encoder.patcher for encoder in encoders for member in encoder.members]
    return list({id(patcher): patcher for patcher in found}.values())


def use_encoder(encoder: HostEncoder) -> Encoder:
    """Have the host load the encoder onto its device now, and return it."""
    load_models_gpu([encoder.patcher])
    keep_whole([encoder.patcher], [])
    refuse_streamed(encoder.patcher, "the JEPA encoder")
    return encoder.encoder
