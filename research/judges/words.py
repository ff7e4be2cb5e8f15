"""What the classifier sees in pictures of the demo world, in words."""

from torch import Tensor

from research.world.labels import COLUMNS


def one_in(share: float) -> str:
    """A share of pictures, as people say it: 0.04 -> "1 in 25", 0.6 -> "60%". Does not break at its spaces."""
    return f"1\N{NO-BREAK SPACE}in\N{NO-BREAK SPACE}{1 / share:,.0f}" if share < 0.15 else f"{share:.0%}"


def changes(before: Tensor, after: Tensor) -> list[str]:
    """What another picture of the same class shows instead, each with how often the world draws that.

    Args:
        before, after: attributes (A,) of research.world.labels.
    """
    found = []
    for old, new, (_, described) in zip(before.tolist(), after.tolist(), COLUMNS, strict=True):
        if old != new:
            name, values = (
                described.name.replace("_", " "),
                [value.replace("_", " ") for value in described.values],
            )
            frequency = one_in(described.shares[new])
            found.append(f"{name}: {values[old]} \N{RIGHTWARDS ARROW} {values[new]} ({frequency})")
    return found
