"""A reference: what encoders make of pictures that count as usual, and its file."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "jepa-reference-1"
_MAX_PARTS, _MAX_TEXT, _MAX_LENGTH = 16, 1 << 16, 1 << 16
NO_SCORE = "no scores"


class ReferenceFileError(ValueError):
    """A reference file is missing, damaged or of another kind. The message names the file."""


@dataclass(frozen=True)
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

    def taken(self, index: Tensor) -> "ReferencePart":
        """The part of some of the pictures."""
        scores = None if self.scores is None else self.scores[index]
        own = (self.encoder, self.fingerprint, self.image_size)
        return ReferencePart(*own, self.embeddings[index], self.smoothed[index], scores)


@dataclass(frozen=True)
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

    def thinned(self, count: int, seed: int = 0) -> "Reference":
        """At most `count` of the pictures, drawn at random: their distribution stays the same."""
        if count >= len(self):
            return self
        generator = torch.Generator("cpu").manual_seed(seed)
        index = torch.randperm(len(self), generator=generator)[:count].sort().values
        return Reference(tuple(part.taken(index) for part in self.parts), self.how)


def merged(references: Sequence[Reference]) -> Reference:
    """The pictures of all references together.

    Raises:
        ValueError: they were made with different encoders, image sizes or settings; names the first difference.
    """
    first = references[0]
    for number, other in enumerate(references[1:], 2):
        for name, value in first.how.items():
            if other.how[name] != value:
                raise ValueError(
                    f"reference_{number} was made with {name} {other.how[name]}, reference_1 with {value}; make them with "
                    "the same settings"
                )
        ours, theirs = ([(part.fingerprint, part.image_size) for part in one.parts] for one in (first, other))
        if ours != theirs:
            names = [", ".join(part.label for part in one.parts) for one in (other, first)]
            raise ValueError(
                f"reference_{number} was made with {names[0]}, reference_1 with {names[1]}; make them with the same encoder"
            )
    return Reference(
        tuple(_joined(parts) for parts in zip(*(one.parts for one in references), strict=True)), first.how
    )


def _joined(parts: Sequence[ReferencePart]) -> ReferencePart:
    first = parts[0]
    scores = None if first.scores is None else torch.cat([part.scores for part in parts])  # type: ignore[misc]
    return ReferencePart(
        first.encoder,
        first.fingerprint,
        first.image_size,
        torch.cat([part.embeddings for part in parts]),
        torch.cat([part.smoothed for part in parts]),
        scores,
    )


def percentile(value: float, others: Sequence[float]) -> float:
    """The percentage of the sorted `others` that lies below a value; equal ones count half."""
    below, upto = bisect_left(others, value), bisect_right(others, value)
    return 100 * (below + upto) / 2 / len(others)


def save_reference(reference: Reference, file: Path) -> None:
    """Write a reference as safetensors. It appears whole or not at all."""
    tensors, parts = {}, []
    for number, part in enumerate(reference.parts):
        for name in ("embeddings", "smoothed", "scores"):
            if (tensor := getattr(part, name)) is not None:
                tensors[f"{number}.{name}"] = tensor.contiguous()
        own = {"encoder": part.encoder, "fingerprint": part.fingerprint, "image_size": part.image_size}
        parts.append(own)
    header = {"format": FORMAT, "reference": json.dumps({"parts": parts, "how": dict(reference.how)})}
    partial = file.with_suffix(".partial")
    save_file(tensors, partial, header)
    partial.replace(file)


def load_reference(file: Path) -> Reference:
    """Read a file of save_reference.

    Raises:
        ReferenceFileError: missing, damaged, or of another kind.
    """
    try:
        with safe_open(file, framework="pt") as content:
            header = content.metadata() or {}
            if header.get("format") != FORMAT:
                raise ReferenceFileError(f"{file} is not a reference; save one with JEPA Save Reference")
            text = header.get("reference", "")
            if len(text) > _MAX_TEXT:
                raise ReferenceFileError(f"{file} is not a valid reference: its header is too long")
            stated = json.loads(text)
            how = {str(name): str(value) for name, value in stated["how"].items()}
            parts = stated["parts"]
            if not 1 <= len(parts) <= _MAX_PARTS or not {"mode", "fit", "antialias"} <= how.keys():
                raise ValueError("its header lacks an entry")
            names = set(content.keys())
            tensors = {name: content.get_tensor(name) for name in sorted(names)[: 3 * _MAX_PARTS]}
            return _checked(
                Reference(tuple(_part(number, own, tensors) for number, own in enumerate(parts)), how)
            )
    except ReferenceFileError:
        raise
    except FileNotFoundError as error:
        raise ReferenceFileError(f"{file} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise ReferenceFileError(f"{file} is damaged or not a safetensors file: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReferenceFileError(f"{file} is not a valid reference: {error}") from error


def _part(number: int, own: Mapping, tensors: Mapping[str, Tensor]) -> ReferencePart:
    return ReferencePart(
        str(own["encoder"])[:200],
        str(own["fingerprint"])[:200],
        int(own["image_size"]),
        tensors[f"{number}.embeddings"],
        tensors[f"{number}.smoothed"],
        tensors.get(f"{number}.scores"),
    )


def _checked(reference: Reference) -> Reference:
    """Raise ValueError unless shapes and types are those of a reference and all numbers are finite."""
    scored = reference.how["mode"] != NO_SCORE
    shape = reference.parts[0].embeddings.shape
    for part in reference.parts:
        own = part.embeddings.shape
        if part.embeddings.ndim != 2 or 0 in own or own[0] != shape[0] or own[1] > _MAX_LENGTH:
            raise ValueError(f"embeddings of shape {tuple(own)}")
        if part.smoothed.shape != own or (part.scores is not None) != scored:
            raise ValueError("its tensors do not belong together")
        wanted = {"embeddings": torch.float32, "smoothed": torch.float32, "scores": torch.float64}
        for name, dtype in wanted.items():
            tensor = getattr(part, name)
            if tensor is None:
                continue
            if tensor.dtype != dtype or not tensor.isfinite().all():
                raise ValueError(f"{name} must be finite numbers of type {dtype}")
        if part.scores is not None and part.scores.shape != own[:1]:
            raise ValueError(f"scores of shape {tuple(part.scores.shape)}")
    return reference
