"""A reference: what encoders make of pictures that count as usual, and its file."""

import json
import os
import re
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .duplicates import first_of_each
from .tensors import unreadable
from .writing import writing_into

FORMAT = "jepa-reference-1"
NO_SCORE, EXACT = "no scores", "exact"
# jepa_score's arguments -> how a mode states them
_MODES = {"top_k": "top {}", "projection": "projected on {} outputs"}
_NUMBER = r"([1-9]\d{0,4})"
# Limits of what a file may state.
_MAX_PARTS, _MAX_TEXT, _MAX_LENGTH, _MAX_NAME = 16, 1 << 16, 1 << 16, 200
_DTYPES = {"embeddings": "F32", "smoothed": "F32", "scores": "F64"}


class ReferenceFileError(ValueError):
    """A reference file is missing, damaged or of another kind. The message names the file."""


@dataclass(frozen=True, eq=False)
class ReferencePart:
    """What one encoder makes of the pictures of a reference, N >= 1.

    Attributes:
        encoder: its name, for messages. fingerprint: of its weights, see Encoder.fingerprint.
        image_size: at which it saw the pictures, in pixels.
        embeddings: (N, d) float32. smoothed: (N, d) float32, each picture's mean over its views (views.py).
        scores: (N,) float64 JEPA scores, or None.
    """

    encoder: str
    fingerprint: str
    image_size: int
    embeddings: Tensor
    smoothed: Tensor
    scores: Tensor | None = None

    @property
    def label(self) -> str:
        """Name and size, as shown to users."""
        return f"{self.encoder} at {self.image_size} px"

    @property
    def key(self) -> tuple[str, int]:
        """What embeddings must share to be comparable: weights and image size."""
        return self.fingerprint, self.image_size

    def taken(self, index: Tensor) -> "ReferencePart":
        """The part of some of the pictures."""
        scores = None if self.scores is None else self.scores[index]
        own = (self.encoder, self.fingerprint, self.image_size)
        return ReferencePart(*own, self.embeddings[index], self.smoothed[index], scores)


@dataclass(frozen=True, eq=False)
class Reference:
    """Pictures that define what is usual, as embeddings and scores under one encoder or several.

    Attributes:
        parts: one for each encoder, of the same N pictures in the same order.
        how: how the pictures were seen, which what is compared with them must share: fit, antialias; and mode, the kind of
            scores, NO_SCORE if there are none.
    """

    parts: tuple[ReferencePart, ...]
    how: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.parts[0].embeddings)

    @property
    def label(self) -> str:
        """The encoders, as shown to users."""
        return ", ".join(part.label for part in self.parts)

    @property
    def distinct(self) -> "Reference":
        """The reference with each picture once: of pictures that are the same to all its encoders, the first.

        Distances and percentiles are those among it. A second copy would be the nearest neighbour of the first, and what
        is usual would shrink to nothing.
        """
        return self._distinct or self

    @cached_property
    @torch.inference_mode(False)  # so that its tensors can take part in gradients
    def _distinct(self) -> "Reference | None":
        """None if it is this one: a reference to itself would keep its tensors from being freed at once."""
        firsts = torch.stack([first_of_each(part.embeddings) for part in self.parts], 1)
        seen: dict[tuple[int, ...], int] = {}
        for place, first in enumerate(map(tuple, firsts.tolist())):
            seen.setdefault(first, place)
        if len(seen) == len(self):
            return None
        index = torch.tensor(list(seen.values()), device="cpu")
        return Reference(tuple(part.taken(index) for part in self.parts), self.how)

    @torch.inference_mode(False)  # so that its tensors can take part in gradients
    def thinned(self, count: int, seed: int = 0) -> "Reference":
        """At most `count` of the pictures, drawn at random: their distribution stays the same."""
        if count >= len(self):
            return self
        generator = torch.Generator("cpu").manual_seed(seed)
        index = torch.randperm(len(self), generator=generator, device="cpu")[:count].sort().values
        return Reference(tuple(part.taken(index) for part in self.parts), self.how)


@torch.inference_mode(False)
def merged(references: Sequence[Reference], names: Sequence[str] = ()) -> Reference:
    """The pictures of all references together, in the order of the parts of the first.

    Args:
        names: of the references, for messages; without, they are numbered.

    Raises:
        ValueError: they were made with different encoders, image sizes or settings; names the first difference.
    """
    names = names or [f"reference_{number}" for number in range(1, len(references) + 1)]
    first = references[0]
    columns = []
    for name, other in zip(names, references, strict=True):
        for setting, value in first.how.items():
            if other.how[setting] != value:
                raise ValueError(
                    f"{name} was made with {setting} {other.how[setting]}, {names[0]} with {value}; make them with the "
                    "same settings"
                )
        parts = {part.key: part for part in other.parts}
        if parts.keys() != {part.key for part in first.parts}:
            raise ValueError(
                f"{name} was made with {_told_apart(other, first)}, {names[0]} with {_told_apart(first, other)}; make "
                "them with the same encoder"
            )
        columns.append([parts[part.key] for part in first.parts])
    return Reference(tuple(_joined(parts) for parts in zip(*columns, strict=True)), first.how)


def _told_apart(reference: Reference, other: Reference) -> str:
    """The encoders of a reference; with a few digits of their weights' hashes where the names alone are those of another."""
    if reference.label != other.label:
        return reference.label
    return ", ".join(f"{part.label} (weights {part.fingerprint[:8]})" for part in reference.parts)


def _joined(parts: Sequence[ReferencePart]) -> ReferencePart:
    first = parts[0]
    scores = [part.scores for part in parts if part.scores is not None]
    return ReferencePart(
        first.encoder,
        first.fingerprint,
        first.image_size,
        torch.cat([part.embeddings for part in parts]),
        torch.cat([part.smoothed for part in parts]),
        torch.cat(scores) if scores else None,
    )


def percentile(value: float, others: Sequence[float]) -> float:
    """The percentage of the sorted `others` that lies below a value; equal ones count half."""
    below, upto = bisect_left(others, value), bisect_right(others, value)
    return 100 * (below + upto) / 2 / len(others)


def mode_of(scoring: Mapping[str, int | None] | None) -> str:
    """How Reference.how states the arguments of jepa_score, top_k or projection; None is for no scores."""
    if scoring is None:
        return NO_SCORE
    stated = (text.format(scoring[name]) for name, text in _MODES.items() if scoring.get(name))
    return next(stated, EXACT)


def scoring_of(mode: str) -> dict[str, int]:
    """The arguments of jepa_score that mode_of states as `mode`; {} for the exact score.

    Raises:
        ValueError: no such mode, or there are no scores.
    """
    for name, text in _MODES.items():
        if found := re.fullmatch(text.format(_NUMBER), mode):
            return {name: int(found[1])}
    if mode != EXACT:
        raise ValueError(f"its mode is {mode!r:.100}")
    return {}


# --- the file -----------------------------------------------------------------------------------------------------


def save_reference(reference: Reference, file: Path) -> None:
    """Write a reference as safetensors. It appears whole or not at all, and replaces an older one.

    Raises:
        UnwritableError: its folder, which is made if missing, cannot be written to.
    """
    tensors, parts = {}, []
    for number, part in enumerate(reference.parts):
        for name in _DTYPES:
            if (tensor := getattr(part, name)) is not None:
                tensors[f"{number}.{name}"] = tensor.contiguous()
        own = {
            "encoder": part.encoder[:_MAX_NAME],
            "fingerprint": part.fingerprint,
            "image_size": part.image_size,
        }
        parts.append(own)
    header = {"format": FORMAT, "reference": json.dumps({"parts": parts, "how": dict(reference.how)})}
    with writing_into(file.parent, "the reference"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".saving-") as folder:
            save_file(tensors, Path(folder) / "reference", header)
            os.replace(Path(folder) / "reference", file)


@torch.inference_mode(False)
def load_reference(file: Path) -> Reference:
    """Read a file of save_reference. Sizes and types are checked before a tensor is read.

    Raises:
        ReferenceFileError: missing, damaged, or of another kind.
    """
    try:
        with safe_open(file, framework="pt") as content:
            header = content.metadata() or {}
            if header.get("format") != FORMAT:
                raise ReferenceFileError(f"{file} is not a reference; save one with JEPA Save Reference")
            how, stated = _header(header.get("reference", ""))
            names = set(content.keys())
            return Reference(
                tuple(_part(number, own, how, content, names) for number, own in enumerate(stated)), how
            )
    except ReferenceFileError:
        raise
    except FileNotFoundError as error:
        raise ReferenceFileError(f"{file} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise ReferenceFileError(unreadable(file, error, "save the reference again")) from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ReferenceFileError(f"{file} is not a valid reference: {error}") from error


def _header(text: str) -> tuple[dict[str, str], list[Any]]:
    """How the pictures were seen, and an entry for each part. Raises ValueError, or KeyError, if it is not valid."""
    if len(text) > _MAX_TEXT:
        raise ValueError("its header is too long")
    stated = json.loads(text)
    how = {str(name): str(value) for name, value in stated["how"].items()}
    if how.keys() != {"mode", "fit", "antialias"}:
        raise ValueError(f"its settings are {', '.join(how)!r:.100}")
    if how["fit"] not in ("squash", "crop") or how["antialias"] not in ("on", "off"):
        raise ValueError(f"its fit is {how['fit']!r:.50} and its antialias {how['antialias']!r:.50}")
    parts = stated["parts"]
    if not isinstance(parts, list) or not 1 <= len(parts) <= _MAX_PARTS:
        raise ValueError(f"it must have 1 to {_MAX_PARTS} parts")
    return how, parts


def _part(
    number: int, own: Mapping[str, Any], how: Mapping[str, str], content: Any, names: set[str]
) -> ReferencePart:
    """Raises ValueError unless shapes and types are those of a part whose header entry is `own`, and all numbers finite."""
    rows = content.get_slice("0.embeddings").get_shape()[0]
    _, length = content.get_slice(f"{number}.embeddings").get_shape()
    size = own["image_size"]
    if (
        not 1 <= length <= _MAX_LENGTH
        or rows < 1
        or not isinstance(size, int)
        or not 1 <= size <= _MAX_LENGTH
    ):
        raise ValueError(f"part {number} has {rows} embeddings of length {length} at image size {size!r:.20}")
    if how["mode"] != NO_SCORE and any(count > length for count in scoring_of(how["mode"]).values()):
        raise ValueError(f"its mode {how['mode']} does not fit embeddings of length {length}")
    scored = how["mode"] != NO_SCORE
    if scored != (f"{number}.scores" in names):
        raise ValueError(f"its mode is {how['mode']!r:.50}, which does not fit its tensors")
    tensors = {}
    for name, dtype in _DTYPES.items():
        if name == "scores" and not scored:
            continue
        wanted = [rows] if name == "scores" else [rows, length]
        found = content.get_slice(f"{number}.{name}")
        if found.get_shape() != wanted or found.get_dtype() != dtype:
            raise ValueError(
                f"{number}.{name} is {found.get_dtype()} {found.get_shape()}, not {dtype} {wanted}"
            )
        tensors[name] = content.get_tensor(
            f"{number}.{name}"
        ).clone()  # not a map of the file, which may be replaced
        if not tensors[name].isfinite().all():
            raise ValueError(f"{number}.{name} holds NaN or infinite numbers")
    encoder, fingerprint = (str(own[name])[:_MAX_NAME] for name in ("encoder", "fingerprint"))
    return ReferencePart(encoder, fingerprint, size, **tensors)
