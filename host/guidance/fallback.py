"""When memory runs out in the middle of a run: the next cheaper way to the gradient, and what to tell the user."""

from collections.abc import Callable

from torch import Tensor

from ..gradient.chain import LatentGradient


def economise(chain: LatentGradient, small: Callable[[Tensor], Tensor] | None) -> str | None:
    """Make a chain need less memory, in place; what costs time alone comes first, what changes the image last.

    Args:
        small: prepares latents for decoding at the encoder's resolution, see LatentGradient; None where the chain
            does so already.

    Returns:
        What was done, for people; None when nothing is left.
    """
    if chain.rarity.chunk != 1:
        chain.rarity.chunk = 1
        return "out of memory: one direction per encoder pass from here on (slower, the same image)"
    if not chain.checkpointing:
        chain.checkpointing = True
        return "out of memory: checkpointing from here on (slower, the same image)"
    if small is not None and chain.prepare is not small:
        chain.prepare = small
        return "out of memory: decoder at encoder resolution from here on (another image than with the full decoder)"
    if chain.through_denoiser:
        chain.through_denoiser = False
        return "out of memory: denoiser constant from here on (another image than through the denoiser)"
    return None
