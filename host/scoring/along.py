"""Latents and masks that go along with images: those of the kept images, in their order."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Latent = Mapping[str, Any]


def check_along(name: str, batches: Sequence[Tensor], total: int) -> None:
    """Raise ValueError, naming the input, unless batches hold one entry for each of `total` images."""
    for batch in batches:
        if not isinstance(batch, Tensor) or batch.ndim < 3:
            raise ValueError(f"{name} must be batches of latents or masks of images, one for each image")
    if (found := sum(map(len, batches))) != total:
        raise ValueError(f"{name} holds {found} for {total} images; give one for each, in the images' order")


def batched(mask: Tensor) -> Tensor:
    """A mask as a batch (B, H, W); some nodes give a single one as (H, W)."""
    return mask[None] if mask.ndim == 2 else mask


def kept_pictures(batches: Sequence[Tensor], indices: Sequence[int]) -> list[Tensor]:
    """Those of the entries of some batches, in the order of the indices: one batch if all are alike, else one by one."""
    every = [entry for batch in batches for entry in batch.unbind(0)]
    kept = [every[index] for index in indices]
    alike = len({entry.shape for entry in kept}) == 1
    return [torch.stack(kept)] if alike else [entry[None] for entry in kept]


def kept_latents(latents: Sequence[Latent], indices: Sequence[int]) -> list[dict[str, Any]]:
    """Those of the latents, in the order of the indices: one batch if they can be one, else one by one.

    Each keeps its part of noise_mask and its batch_index; without one, that is its position in its own batch, which
    makes the host draw the same noise for it again.
    """
    every = [kept_rows(latent, [index]) for latent in latents for index in range(len(latent["samples"]))]
    kept = [every[index] for index in indices]
    first = kept[0]
    if not all(_joins(first, other) for other in kept):
        return kept
    joined = dict(first)
    for name in first.keys() & {"samples", "noise_mask"}:
        joined[name] = torch.cat([one[name] for one in kept])
    joined["batch_index"] = [number for one in kept for number in one["batch_index"]]
    return [joined]


def kept_rows(latent: Latent, indices: Sequence[int]) -> dict[str, Any]:
    """Some rows of a LATENT, with their places in the batch, from which the host's samplers draw the same noise again."""
    # the host takes an entry that is None for one that is not there
    rows = {name: value for name, value in latent.items() if value is not None}
    places = rows.get("batch_index", range(len(latent["samples"])))
    rows |= {
        "samples": latent["samples"][list(indices)],
        "batch_index": [places[index] for index in indices],
    }
    if "noise_mask" in rows:
        rows["noise_mask"] = _noise_mask_of(latent, indices)
    return rows


def _noise_mask_of(latent: Latent, indices: Sequence[int]) -> Tensor:
    """The noise_mask of some images of a LATENT, as the host gives it to them in the whole batch."""
    mask = batched(latent["noise_mask"])
    if latent["samples"].ndim == 5 and mask.ndim < 5:
        # to the host these are the frames of one video, for every image
        mask = mask.reshape(1, 1, -1, *mask.shape[-2:])
    # the host repeats masks for a larger batch
    return mask[[index % len(mask) for index in indices]]


def _joins(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two latents can be in one batch."""
    if one.keys() != other.keys():
        return False
    alike = all(one[name].shape == other[name].shape for name in ("samples", "noise_mask") if name in one)
    same = one.keys() - {"samples", "noise_mask", "batch_index"}
    return alike and all(one[name] is other[name] for name in same)
