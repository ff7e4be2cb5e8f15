"""What encoders said of pictures, kept in the process: whoever asks the same of the same pixels is answered at once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..encoders.host_encoder import HostEncoder

_MOST_BYTES = 64 << 20  # the embeddings of some ten thousand pictures
_ENTRY_BYTES = 512  # about what Python takes for a key and an empty tensor


class Answers:
    """Tensors by (picture, question); of those, the ones used last that fit into a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        """What was kept; None if nothing was, or if it had to go."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: Hashable, answer: Tensor) -> None:
        """Keep an answer under a key that `get` does not know; drop the ones not used for longest."""
        self._kept[key] = answer
        self.bytes += _size(answer)
        while self.bytes > self.most_bytes:
            self.bytes -= _size(self._kept.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.bytes = 0


known = Answers(_MOST_BYTES)


def ask(
    encoder: HostEncoder,
    question: Hashable,
    pictures: Sequence[Tensor],
    answer: Callable[[Sequence[Tensor]], Iterable[Tensor]],
    on_picture: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """The answers to a question about pictures, in their order: those that are known, and new ones.

    Args:
        encoder: what is asked; weights and image size count, not its name.
        question: all else that an answer depends on.
        pictures: (H, W, C) or (T, H, W, C).
        answer: the pictures without a known answer -> their answers in order. Each is kept as it comes, so that after an
            interrupt nothing is asked again. Not called if all are known.
        on_picture: called with each answer.
    """
    inner = encoder.encoder
    about = (inner.fingerprint, inner.weight.dtype, encoder.image_size, question)
    keys = [(digest(picture), *about) for picture in pictures]
    found = {key: known.get(key) for key in keys}
    missing = {key: picture for key, picture in zip(keys, pictures, strict=True) if found[key] is None}
    new = iter(answer(list(missing.values()))) if missing else iter(())
    for key in keys:
        value = found[key]
        if value is None:
            # two of the same picture are one question
            value = found[key] = next(new).detach().cpu()
            known.keep(key, value)
        on_picture()
        yield value


def digest(picture: Tensor) -> bytes:
    """What names the pixels of a picture: shape, type and values."""
    pixels = picture.detach().cpu().contiguous()
    found = hashlib.blake2b(f"{tuple(pixels.shape)} {pixels.dtype}".encode(), digest_size=20)
    found.update(pixels.view(-1).view(torch.uint8).numpy().data)
    return found.digest()


def _size(answer: Tensor) -> int:
    return answer.numel() * answer.element_size() + _ENTRY_BYTES
