"""Colours from typical to rare. In each, brightness rises evenly, so it also works in grey and for colour-blind readers."""

import torch
from torch import Tensor

from ..options import DUSK, GREY, HEAT, SEA

PALETTES = {
    HEAT: ("#0a0824", "#3e0f62", "#802564", "#c13f48", "#f07620", "#fabe3e", "#fcfdbe"),
    SEA: ("#080c28", "#123062", "#105e80", "#1c8c8c", "#54ba86", "#aae082", "#f6fabe"),
    DUSK: ("#041234", "#183468", "#4c5470", "#787876", "#a69c6a", "#d6c454", "#feee78"),
    GREY: ("#0c0c0c", "#fafafa"),
}


def colours(palette: str) -> Tensor:
    """The colours of a palette, (N, 3) in [0, 1], the most typical first."""
    return torch.tensor([list(bytes.fromhex(one[1:])) for one in PALETTES[palette]], device="cpu") / 255


def painted(rarity: Tensor, palette: str) -> Tensor:
    """Rarities (...) in [0, 1] as colours (..., 3), interpolated in a palette."""
    steps = colours(palette)
    place = rarity * (len(steps) - 1)
    below = place.long().clamp(max=len(steps) - 2)
    part = (place - below)[..., None]
    return (1 - part) * steps[below] + part * steps[below + 1]
