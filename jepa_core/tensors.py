"""Read tensors from a safetensors file and check them before use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The largest known encoder has 800 tensors, the largest D-JEPA 1,000.
MAX_TENSORS = 10_000
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def checked_tensors(
    file: Path, content: Any, names: Mapping[str, str], error: type[ValueError]
) -> dict[str, Tensor]:
    """Read tensors from an open file. They are normal tensors even under inference mode.

    Args:
        file: for the messages.
        content: from safetensors.safe_open.
        names: name in the result -> name in the file.
        error: the exception to raise for a tensor that is empty, not finite or not floating-point.
    """
    # An empty tensor can claim any shape, even one whose size overflows; others are bounded by the file's length.
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
