"""The ways to compute the gradient of a guided step, from the one that was asked for down to the one with least memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..options import DENOISER_CONSTANT


@dataclass(frozen=True)
class Way:
    """What is differentiated, and what is computed again or in parts to save memory.

    Attributes:
        through_denoiser: differentiate the denoiser (the paper); otherwise its output is held constant and the clean
            estimate moves with x alone (MPGD, ICLR 2024).
        small_decoder: the decoder at the encoder's resolution instead of the chosen one.
        checkpointing: denoiser and decoder keep only the inputs of their blocks: another forward pass of both.
        estimate_first: evaluate the denoiser without a graph first, so that its graph and the decoder's are never held
            together: another forward pass of the denoiser. Only through the denoiser.
        one_by_one: differentiate the denoiser image by image, after such an estimate of the batch. Implies estimate_first.
        one_direction: one direction in an encoder pass.
    """

    through_denoiser: bool = False
    small_decoder: bool = False
    checkpointing: bool = False
    estimate_first: bool = False
    one_by_one: bool = False
    one_direction: bool = False

    def constant(self) -> "Way":
        """The same with the denoiser's output held constant."""
        return replace(self, through_denoiser=False, estimate_first=False, one_by_one=False)

    def same_effect(self, other: "Way") -> bool:
        """Whether both give the same image, up to rounding."""
        return (self.through_denoiser, self.small_decoder) == (other.through_denoiser, other.small_decoder)

    def saved(self, asked: "Way") -> str:
        """What this way gave up, as a line for users."""
        given_up = [words for name, words in _WORDS.items() if getattr(self, name) != getattr(asked, name)]
        if self.through_denoiser != asked.through_denoiser:
            cost = "a different image than through the denoiser"
        elif self.small_decoder != asked.small_decoder:
            cost = "a different image than with the full decoder"
        else:
            cost = "slower, the same image"
        return f"{', '.join(given_up)} ({cost})"


CONSTANT = Way()
THROUGH = Way(through_denoiser=True)

_WORDS = {
    "through_denoiser": DENOISER_CONSTANT,
    "small_decoder": "decoder at encoder resolution",
    "checkpointing": "checkpointing",
    "estimate_first": "the estimate first, its gradient after the decoder's",
    "one_by_one": "one image at a time",
    "one_direction": "one direction per encoder pass",
}


def ways_down(asked: Way, small_decoder: bool, batch: int, directions: bool = True) -> list[Way]:
    """All ways from the one that was asked for, by loss of effect first and by time second.

    Args:
        small_decoder: whether there is a decoder at the encoder's resolution besides the chosen one.
        batch: images in the batch; one at a time helps only with several.
        directions: whether encoder passes take directions, as those of the score do.
    """
    kinds = [asked]
    if small_decoder:
        kinds.append(replace(asked, small_decoder=True))
    if asked.through_denoiser:
        kinds.append(kinds[-1].constant())
    return list(dict.fromkeys(way for kind in kinds for way in _savings(kind, batch > 1, directions)))


def _savings(kind: Way, several: bool, directions: bool) -> Iterator[Way]:
    """The same effect with less and less memory."""
    yield kind
    in_order = [kind]
    if kind.through_denoiser:
        in_order.append(replace(kind, estimate_first=True))
        if several:
            in_order.append(replace(kind, estimate_first=True, one_by_one=True))
    in_order += [replace(way, checkpointing=True) for way in in_order]
    yield from in_order
    if directions:
        yield replace(in_order[-1], one_direction=True)
