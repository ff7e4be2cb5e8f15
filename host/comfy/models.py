"""The patches, dtypes and devices of a MODEL."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def injects(patcher: Any) -> bool:
    """Whether other nodes insert layers into this model when it is loaded, as a LoRA in bypass mode does."""
    return bool(patcher.injections)


def patches_of(patcher: Any) -> tuple[Any, list[Any]]:
    """An id of the patches applied to the weights, and all other patches."""
    others = [patcher.object_patches, patcher.weight_wrapper_patches, patcher.injections]
    return patcher.patches_uuid, others


def models_in_patches(patcher: Any) -> list[Any]:
    """The patchers of models that patches bring with them."""
    return list(patcher.model_patches_models())


@contextmanager
def replaced_model_options(patcher: Any, options: dict) -> Iterator[None]:
    """Within the block, MODEL has these options: the host loads and moves the models in their patches."""
    before = patcher.model_options
    patcher.model_options = options
    try:
        yield
    finally:
        patcher.model_options = before


def compute_dtype(base_model: Any) -> torch.dtype:
    """The dtype that a denoiser computes in, whatever dtype its weights are stored in."""
    return base_model.manual_cast_dtype or base_model.get_dtype()


def casts_weights_by_hand(base_model: Any) -> bool:
    """Whether the host casts a denoiser's weights each time it uses them, because they are stored in another dtype."""
    return base_model.manual_cast_dtype is not None


def device_count(model: Any) -> int:
    """How many devices the host spreads a MODEL over."""
    return 1 + len(model.get_additional_models_with_key("multigpu"))
