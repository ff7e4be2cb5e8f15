"""Where labels of dots have room."""

from collections.abc import Mapping

Place = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels
# Around the dot, in the order in which they are tried: right, left, above, below, then the corners.
_SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))


def place_labels(
    dots: Mapping[int, Place], sizes: Mapping[int, Place], frame: Box, radius: float
) -> dict[int, Place]:
    """The upper left corners of labels, each beside its dot, where it covers the fewest dots.

    Labels stay within the frame, and clear of each other and of the labelled dots. One that finds no such place is left out.

    Args:
        dots: the centre of each dot. radius: of a labelled dot.
        sizes: width and height of the label of some of them, the most important first.
    """
    own = {index: _around(dots[index], radius) for index in sizes}
    placed: dict[int, Box] = {}
    for index, size in sizes.items():
        taken = [*placed.values(), *(box for other, box in own.items() if other != index)]
        boxes = [_beside(dots[index], size, radius, side) for side in _SIDES]
        free = [box for box in boxes if _inside(box, frame) and not any(_overlap(box, one) for one in taken)]
        if free:
            placed[index] = min(free, key=lambda box: sum(_covers(box, dot) for dot in dots.values()))
    return {index: box[:2] for index, box in placed.items()}


def _around(dot: Place, radius: float) -> Box:
    return dot[0] - radius, dot[1] - radius, dot[0] + radius, dot[1] + radius


def _beside(dot: Place, size: Place, radius: float, side: tuple[int, int]) -> Box:
    """The box of a label on one side of a dot."""
    gap = radius + 3 if 0 in side else radius * 0.8
    left, top = (
        at + way * (gap + length / 2) - length / 2 for at, length, way in zip(dot, size, side, strict=True)
    )
    return left, top, left + size[0], top + size[1]


def _inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(box: Box, other: Box) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _covers(box: Box, dot: Place) -> bool:
    return box[0] <= dot[0] <= box[2] and box[1] <= dot[1] <= box[3]
