"""Tensors of a safetensors file, checked before anything uses them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# A name costs a file some bytes; the largest known encoder has 800 tensors, the largest D-JEPA 1,000.
MAX_TENSORS = 10_000
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def checked_tensors(
    file: Path, content: Any, names: Mapping[str, str], error: type[ValueError]
) -> dict[str, Tensor]:
    """Read tensors of an open file: normal, finite floating-point ones.

    Args:
        file: for the messages.
        content: of safetensors.safe_open.
        names: what to call a tensor -> its name in the file.
        error: raised for a tensor that is empty, not finite, or of another type.
    """
    # An empty tensor may claim any shape, one that torch cannot count too; the bytes of every other one are there.
    for name in names.values():
        shape = content.get_slice(name).get_shape()
        if 0 in shape:
            raise error(f"{file}: {name:.100} is empty, its shape is {shape}")
    with torch.inference_mode(False):
        tensors = {plain: content.get_tensor(name) for plain, name in names.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise error(
                f"{file}: {name:.100} is {tensor.dtype}; only float16, bfloat16 and wider are supported"
            )
        if not tensor.isfinite().all():
            raise error(f"{file}: {name:.100} holds NaN or infinite values; download it again")
    return tensors
