"""Read tensors from a safetensors file and check them before use, and say what a file is that is none."""

from __future__ import annotations

import json
import re
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


_OF_TORCH = (
    "as torch.save writes, with another name; only safetensors files are read, so download that version of the weights, or "
    "convert it"
)
# How a file begins that is often found in place of weights -> what it is, and what helps.
_OTHER_FILES = {
    rb"version https://git-lfs": "is a Git LFS pointer, a few lines that stand for the file; run `git lfs pull` where it "
    "was cloned, or download the file itself",
    rb"\s*(<!doctype|<html|<\?xml|<head)": "is a web page that was saved in place of the file; sites give one for a login "
    "or a licence, so download it with the link of the file itself",
    rb"PK\x03\x04": f"is a zip archive, {_OF_TORCH}",
    rb"\x80[\x02-\x05]": f"is a pickle, {_OF_TORCH}",
    rb"GGUF": "is a GGUF file with another name; only safetensors files are read, so download that version of the weights",
}
_JSON = (
    "is JSON text, perhaps what a site answered in place of the file, or an index of other files; download the weights "
    "themselves"
)
_START = 512  # bytes that are looked at
_MAX_HEADER = 10_000_000  # bytes; the headers of the largest encoders have 100,000


def unreadable(file: Path, error: Exception, again: str = "download it again") -> str:
    """Why a file cannot be read as safetensors, by how it begins and how long it is, and what helps.

    Args:
        error: of safetensors or of the system, quoted where the file does not tell.
        again: what helps if it is damaged.
    """
    try:
        with file.open("rb") as content:
            start = content.read(_START)
            header = start[8:] + content.read(min(_stated(start), _MAX_HEADER))
        size = file.stat().st_size
    except OSError as own:
        return f"{file} cannot be read ({own.strerror})"
    if not size:
        return f"{file} is damaged: it is empty; {again}"
    what = _other(start) or (_JSON if start.lstrip()[:1] == b"{" else "")
    if what:
        return f"{file} {what}"
    whole = _whole_size(_stated(start), header)
    if whole is not None and size < whole:
        return f"{file} is damaged: it ends after {size} of {whole} bytes or more; {again}"
    return f"{file} is damaged or not a safetensors file ({error}); {again}"


def other_file(file: Path) -> str:
    """What a text file is that stands in place of another, and what helps; "" if it is none of those known."""
    with file.open("rb") as content:
        start = content.read(_START)
    return "is empty; download it again" if not start else _other(start)


def _other(start: bytes) -> str:
    found = (what for pattern, what in _OTHER_FILES.items() if re.match(pattern, start, re.IGNORECASE))
    return next(found, "")


def _stated(start: bytes) -> int:
    """The length of the header that a file begins with; 0 if it begins with none."""
    return int.from_bytes(start[:8], "little") if start[8:9] == b"{" else 0


def _whole_size(stated: int, header: bytes) -> int | None:
    """The bytes that a file has at least, by its header of this length; None if it has none."""
    if not 0 < stated <= _MAX_HEADER:
        return None
    if len(header) < stated:
        return 8 + stated
    try:
        entries = json.loads(header[:stated])
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return 8 + stated + max(map(int, ends), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
