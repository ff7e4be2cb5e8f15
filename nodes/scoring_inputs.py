"""The inputs that set how images are scored, shared by several nodes."""

from comfy_api.latest import io

from ..host.options import AUTO, CROP, PROJECTED, SQUASH, TOP_K
from ..jepa_core.reference import EXACT, NO_SCORE
from ..jepa_core.score import PROJECTION

_MODES = (
    f"{EXACT}: all singular values of the encoder's Jacobian; slow, with one backward pass for each embedding entry. "
    f"{TOP_K}: only the largest, several times faster. {PROJECTED}: the fastest, for ranking many images; it ranks nearly "
    f"as {EXACT} does, from {PROJECTION} fixed random outputs of the encoder. Scores of different modes are not comparable."
)


def mode_inputs() -> list[io.Input]:
    """Which kind of score, and how many singular values top-k sums."""
    menu = io.Combo.Input(
        "mode",
        options=[AUTO, PROJECTED, EXACT, TOP_K],
        default=AUTO,
        tooltip=f"{AUTO}: as the pictures of a linked reference, otherwise {PROJECTED}. {_MODES}",
    )
    return [menu, _top_k_input()]


def reference_inputs(*, beside: bool = False) -> list[io.Input]:
    """How the pictures of a reference are seen and scored; beside: in a node that also takes one."""
    menu = io.Combo.Input(
        "mode",
        options=[PROJECTED, EXACT, TOP_K, NO_SCORE],
        default=PROJECTED,
        tooltip=f"Which scores the pictures get besides their embeddings. {NO_SCORE}: none, which takes a small part of the "
        f"time and is enough for novelty; to say how many are less rare by score takes them. {_MODES}",
    )
    return [menu, _top_k_input(), *(view_inputs_beside() if beside else view_inputs())]


def _top_k_input() -> io.Input:
    return io.Int.Input(
        "top_k",
        default=9,
        min=1,
        max=256,
        tooltip=f"How many of the largest singular values {TOP_K} sums; guidance uses 9. Costs 6 (k + 4) products; "
        f"{EXACT} takes 384 with a small encoder. Other modes ignore it.",
    )


def view_inputs() -> list[io.Input]:
    """How an image is resized for the encoder, in nodes that make a reference."""
    return [_fit_input(SQUASH, ""), _antialias_input("")]


def view_inputs_beside() -> list[io.Input]:
    """As view_inputs, in nodes that take a reference."""
    fit = _fit_input(AUTO, f"{AUTO}: as the pictures of a linked reference, otherwise {SQUASH}. ")
    return [fit, _antialias_input(f" With a reference and fit {AUTO}, its own setting counts instead.")]


def _fit_input(default: str, about: str) -> io.Input:
    return io.Combo.Input(
        "fit",
        options=list(dict.fromkeys([default, SQUASH, CROP])),
        default=default,
        tooltip=f"How a non-square image is made square for the encoder. {about}{SQUASH}: squeezed (the paper). {CROP}: "
        "only its centre.",
    )


def _antialias_input(more: str) -> io.Input:
    return io.Boolean.Input(
        "antialias",
        default=True,
        tooltip=f"Smooths the image before shrinking it for the encoder, as in the encoder's training.{more}",
    )
