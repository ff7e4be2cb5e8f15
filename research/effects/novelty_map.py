"""Does a map of novelty show the part that makes a picture unlike its reference?

    python dev.py run research/effects/novelty_map.py --folder WORK

Into held-out robots a square of a held-out bust is pasted; the reference is 300 training robots. How often is a patch inside
the square brighter than one outside (AUROC)? Asked of the norm of the gradient in each patch, of integrated gradients from a
blurred picture, and of blurring patch after patch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from jepa_core import Encoder
from jepa_core.novelty import Nearest, embed, novelty_gradient, patch_novelty
from research.harness import program
from research.harness.batches import PICTURES
from research.harness.pack_api import load_host_encoder
from research.harness.program import Row, markdown
from research.harness.summary import mean_and_error
from research.world.data import load_pictures

CELL = 16  # pixels of a picture that a patch covers, at 112 pixels with patches of 14
SQUARE = 2  # patches on a side of what is pasted
STEPS = 8  # of an integral
Distance = Callable[[Tensor], Tensor]


def gradient_norm(encoder: Encoder, x: Tensor, distance: Distance) -> Tensor:
    return patch_novelty(encoder, x, distance)[0]


def _blurred(x: Tensor) -> Tensor:
    return interpolate(adaptive_avg_pool2d(x, 4), x.shape[-2:], mode="bicubic")


def integrated_gradient(encoder: Encoder, x: Tensor, distance: Distance) -> Tensor:
    patch, start = encoder.model.config.patch_size, _blurred(x)
    shares = (torch.arange(STEPS)[:, None, None, None] + 0.5) / STEPS
    grad = novelty_gradient(encoder, start + (x - start) * shares, distance).grad.mean(0)
    return (grad * (x - start)[0]).sum(0).unflatten(0, (-1, patch)).unflatten(2, (-1, patch)).sum((1, 3))


def occlusion(encoder: Encoder, x: Tensor, distance: Distance) -> Tensor:
    patch, side = encoder.model.config.patch_size, x.shape[-1] // encoder.model.config.patch_size
    hidden = []
    for row in range(side):
        for column in range(side):
            one, around = x.clone(), patch // 2
            down = slice(max(0, row * patch - around), (row + 1) * patch + around)
            across = slice(max(0, column * patch - around), (column + 1) * patch + around)
            one[..., down, across] = _blurred(x)[..., down, across]
            hidden.append(one)
    whole = distance(embed(encoder, x))
    return (whole - distance(embed(encoder, torch.cat(hidden)))).reshape(side, side)


MAPS = {
    "norm of the gradient": gradient_norm,
    "integrated gradient": integrated_gradient,
    "blurring": occlusion,
}


def table(figures: Row) -> str:
    """AUROC of each map."""
    rows = [{"map": name, **one} for name, one in figures["auroc"].items()]
    return markdown({"map": "{map}", "AUROC": "{mean:.2f} +- {standard_error:.2f}"}, rows)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "novelty_map.json", folder=True)
    parser.add_argument("--pictures", type=int, default=16)
    options = parser.parse_args(arguments)
    encoder = load_host_encoder(options.encoder, options.encoder.name, 112).encoder
    world = load_pictures(options.folder, 6 * PICTURES, 1200, processes=1)
    usual, robots, busts = (
        part.pixels((part.labels == label).nonzero().flatten()[:count]).movedim(1, -1)
        for part, label, count in (
            (world.trained_on(), 1, PICTURES),
            (world.unseen(), 1, options.pictures),
            (world.unseen(), 3, options.pictures),
        )
    )
    distance = Nearest(torch.cat([embed(encoder, encoder.preprocess(some)) for some in usual.split(20)]))
    generator = torch.Generator().manual_seed(1)
    found: dict[str, list[float]] = {name: [] for name in MAPS}
    for robot, bust in zip(robots, busts, strict=True):
        row, column = torch.randint(1, 6, (2,), generator=generator).tolist()
        picture, size = robot.clone(), SQUARE * CELL
        down, across = slice(row * CELL, row * CELL + size), slice(column * CELL, column * CELL + size)
        picture[down, across] = bust[40 : 40 + size, 48 : 48 + size]
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[row : row + SQUARE, column : column + SQUARE] = True
        for name, make in MAPS.items():
            field = make(encoder, encoder.preprocess(picture[None]), distance)
            brighter = field[inside][:, None] > field[~inside]
            found[name].append(brighter.float().mean().item())
    record = {
        "settings": program.settings(parser, options),
        "auroc": {name: mean_and_error(values) for name, values in found.items()},
    }
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
