"""What does a product with the Jacobian take, and what does giving biases and scales a tangent of zeros save?

    python dev.py run research/costs/products.py

Thirteen random directions, as the sketch of a top-9 score has, at random images of several sizes: forward mode as the
pack does it, as torch.func does it alone, and the same in passes of four directions; and the backward mode. The arms take
turns, and the fastest of three rounds counts. Seconds are the process's own, whatever else the machine does: with one
thread, those of an idle machine. A minute.

Conclusion: all directions in one pass take a third of the time at 56 pixels and seven tenths at 224; the zeros save some
hundredths of a second a pass, which shows where passes are short, and change no bit.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jepa_core import Encoder, JacobianOperator, differentiable, full_precision, load_encoder
from research.harness import program
from research.harness.program import Row, markdown
from research.harness.timing import processor_seconds

SIDES = (56, 112, 224)
DIRECTIONS, FEW, ROUNDS = 13, 4, 3


def plain(encoder: Encoder, image: Tensor, tangents: Tensor) -> Tensor:
    """tangents @ J^T, (r, n) -> (r, d), as torch.func gives it."""

    def product(tangent: Tensor) -> Tensor:
        return torch.func.jvp(encoder, (image[None],), (tangent[None],))[1][0]

    with torch.no_grad():
        return torch.func.vmap(product)(tangents.unflatten(1, image.shape))


def measured(encoder: Encoder) -> Row:
    """Seconds of each arm, and how far the two ways of forward mode are apart, relative to the largest number."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(encoder.input_shape, generator=generator)
    tangents = torch.randn(DIRECTIONS, image.numel(), generator=generator)
    cotangents = torch.randn(DIRECTIONS, encoder.embed_dim, generator=generator)
    with differentiable(encoder), full_precision(encoder.weight.device):
        jacobian = JacobianOperator(encoder, image)
        jacobian.vjp(cotangents[:1])  # its forward pass is not counted
        arms: dict[str, Callable[[], Tensor]] = {
            "forward": lambda: jacobian.jvp(tangents),
            "plain": lambda: plain(encoder, image, tangents),
            "few": lambda: torch.cat([plain(encoder, image, part) for part in tangents.split(FEW)]),
            "backward": lambda: jacobian.vjp(cotangents),
        }
        found: dict[str, Tensor] = {}
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(ROUNDS):
            for name, arm in arms.items():
                found[name], spent = processor_seconds(arm)
                seconds[name].append(spent)
    difference = (found["forward"] - found["plain"]).abs().max() / found["plain"].abs().max()
    fastest = {name: round(min(own), 3) for name, own in seconds.items()}
    return {"pixels": encoder.image_size, **fastest, "difference": float(f"{difference:.1e}")}


def table(figures: Row) -> str:
    columns = {
        "pixels": "{pixels}",
        f"torch.func, {FEW} directions a pass, s": "{few:.2f}",
        "torch.func, all in a pass, s": "{plain:.2f}",
        "the pack, s": "{forward:.2f}",
        "times faster": "{times:.1f}",
        "largest difference": "{difference:.0e}",
        "backward mode, s": "{backward:.2f}",
    }
    return markdown(columns, [{**row, "times": row["few"] / row["forward"]} for row in figures["table"]])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "products.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for side in SIDES:
        rows.append(measured(load_encoder(options.encoder, image_size=side)))
        print(rows[-1], flush=True)
    program.write(options.out, {"settings": program.settings(parser, options), "table": rows}, table)


if __name__ == "__main__":
    main()
