"""What a MODEL carries beside its weights: patches, dtypes, devices."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def injects(patcher: Any) -> bool:
    """Whether nodes put layers of their own into this model when it is loaded, as a LoRA in bypass mode does."""
    return bool(patcher.injections)


def patches_of(patcher: Any) -> tuple[Any, list[Any]]:
    """What tells apart the weights that patches make of one model; and all other patches of it."""
    others = [patcher.object_patches, patcher.weight_wrapper_patches, patcher.injections]
    return patcher.patches_uuid, others


def models_in_patches(patcher: Any) -> list[Any]:
    """The patchers of models that patches bring along."""
    return list(patcher.model_patches_models())


@contextmanager
def replaced_model_options(patcher: Any, options: dict) -> Iterator[None]:
    """Within the block, the host finds other patches on a MODEL: it loads and moves those."""
    before = patcher.model_options
    patcher.model_options = options
    try:
        yield
    finally:
        patcher.model_options = before


def compute_dtype(base_model: Any) -> torch.dtype:
    """The dtype that a denoiser computes in, whatever its weights are stored in."""
    return base_model.manual_cast_dtype or base_model.get_dtype()


def casts_weights_by_hand(base_model: Any) -> bool:
    """Whether the host casts a denoiser's weights at every use, since they are stored in another dtype."""
    return base_model.manual_cast_dtype is not None


def device_count(model: Any) -> int:
    """Over how many devices the host spreads a MODEL."""
    return 1 + len(model.get_additional_models_with_key("multigpu"))
