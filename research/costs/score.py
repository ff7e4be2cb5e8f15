"""What does the exact score cost, and which cheap score ranks pictures best for its own cost?

    python dev.py run research/costs/score.py --folder WORK

For each picture (research/harness/pictures.py) WORK keeps the Gram matrix of the whole Jacobian, from which the exact
score and every approximation that is a function of the Jacobian follow. Smaller images and half precision have
products of their own. An hour or two for 72 pictures on two cores.

Conclusion: 48 random outputs in half precision rank with 0.98 for a 25th of the exact score's time. Fewer pixels and the
largest values alone rank worse at that cost; quadrature's products have to be computed one after the other. The exact
score itself is 384 backward passes for the paper's program and for this one, and neither is faster on one core.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from jepa_core import Encoder, JacobianOperator, differentiable, full_precision, jepa_score, load_encoder
from jepa_core.range_finder import gram
from jepa_core.score import PROJECTION, log_sum
from research.harness import program
from research.harness.naive import naive_score
from research.harness.pictures import gallery, photos
from research.harness.program import Row, kept, markdown
from research.harness.timing import timed

PICTURES = 72
OUTPUTS = 64
SIDES = (224, 168, 112)  # multiples of the patch
LANCZOS_STEPS = 8
COMPARED = 2  # pictures that the paper's program scores as well


Matrices = dict[str, Tensor]  # of one picture, as measure returns them


def pictures() -> dict[str, Tensor]:
    """The pictures that are ranked, {name: (H, W, 3) in [0, 1]}: evenly spread over the sorted names of all."""
    every = dict(sorted([*gallery(), *photos()]))
    names = list(every)
    return {name: every[name] for name in (names[int(i * len(names) / PICTURES)] for i in range(PICTURES))}


def random_outputs(embed_dim: int) -> Tensor:
    """(OUTPUTS, d) orthonormal rows; every first r of them are a projection on r outputs."""
    draw = torch.randn(embed_dim, OUTPUTS, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(draw).Q.T.contiguous()


def measure(encoder: Encoder, x: Tensor) -> Matrices:
    """Gram matrices of one preprocessed image (1, 3, S, S) and the seconds that each took.

    "exact": J J^T. "half-<side>": of OUTPUTS random outputs in half precision, of the image at that side.
    """
    found = {}

    def add(name: str, image: Tensor, outputs: Tensor, half: bool) -> None:
        with differentiable(encoder), full_precision(image.device):
            run = lambda: gram(JacobianOperator(encoder, image[0], half=half).vjp(outputs))  # noqa: E731
            found[name], seconds = timed(run)
        found[f"{name}-seconds"] = torch.tensor(seconds, dtype=torch.float64)

    add("exact", x, torch.eye(encoder.embed_dim), False)
    for side in SIDES:
        smaller = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        add(f"half-{side}", smaller, random_outputs(encoder.embed_dim), True)
    return found


def score_of(squares: Tensor, embed_dim: int) -> float:
    """The JEPA score of a Gram matrix."""
    return log_sum(torch.linalg.eigvalsh(squares).clamp(min=0).sqrt(), embed_dim, 1e-6).item()


def largest(k: int, row: Matrices) -> float:
    """Sum of the logs of the k largest singular values."""
    return torch.linalg.eigvalsh(row["exact"])[-k:].log().sum().item() / 2


def fewer_outputs(name: str, count: int, row: Matrices) -> float:
    """The score of the first `count` random outputs, from the matrix of that name."""
    squares = row[name]
    if name == "exact":
        outputs = random_outputs(len(squares)).double()
        squares = outputs @ squares @ outputs.T
    return score_of(squares[:count, :count], len(row["exact"]))


def quadrature(probes: int, steps: int, row: Matrices) -> float:
    """Stochastic Lanczos quadrature of tr log(J J^T) / 2 (Ubaru, Chen, Saad, 2017), log floored at that of 1e-6^2."""
    squares = row["exact"]
    generator = torch.Generator().manual_seed(0)
    size, total = len(squares), 0.0
    for _ in range(probes):
        q = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
        basis = [q / q.norm()]
        alphas, betas = [], []
        for _ in range(steps):
            w = squares @ basis[-1]
            alphas.append(w @ basis[-1])
            for old in basis * 2:  # twice: full orthogonality
                w = w - (w @ old) * old
            betas.append(w.norm())
            basis.append(w / w.norm())
        off = torch.stack(betas[:-1])
        values, vectors = torch.linalg.eigh(
            torch.diag(torch.stack(alphas)) + torch.diag(off, 1) + torch.diag(off, -1)
        )
        total += (vectors[0].square() * values.clamp(min=1e-12).log()).sum().item() * size / 2
    return total / probes


def approximations(timed: Matrices, embed_dim: int) -> dict[str, tuple[Callable[[Matrices], float], float]]:
    """{name: (score of a picture, fraction of the exact score's seconds)}.

    Seconds are those of `timed`; elsewhere the fraction counts directions: a JVP as a VJP, in full precision.
    """
    exact, half = timed["exact-seconds"].item(), "random outputs at {} px, half precision"
    found: dict[str, tuple[Callable[[Matrices], float], float]] = {}
    for k in (9, 16, 32):
        found[f"top {k}"] = (partial(largest, k), 6 * (k + 4) / embed_dim)
    for probes in (1, 2, 4):
        cost = 2 * probes * LANCZOS_STEPS / embed_dim
        found[f"quadrature, {probes} probe(s)"] = (partial(quadrature, probes, LANCZOS_STEPS), cost)
    for side in SIDES:
        for count in (8, 16, 32, 48, 64):
            cost = timed[f"half-{side}-seconds"].item() / exact * count / OUTPUTS
            found[f"{count} {half.format(side)}"] = (partial(fewer_outputs, f"half-{side}", count), cost)
    for count in (32, 48):
        name = f"{count} random outputs at 224 px, full precision"
        found[name] = (partial(fewer_outputs, "exact", count), count / embed_dim)
    return found


def against_the_paper(encoder: Encoder, x: Tensor) -> dict[str, float]:
    """Exact score of an image by the paper's program and by ours, and the projected one: values and seconds."""
    arms: dict[str, Callable[[], Any]] = {
        "paper": partial(naive_score, encoder, x[0]),
        "exact": partial(jepa_score, encoder, x),
        "projected": partial(jepa_score, encoder, x, projection=PROJECTION),
    }
    found: dict[str, float] = {}
    for arm, score in arms.items():
        value, seconds = timed(score)
        found |= {arm: round(float(value), 4), f"{arm}_seconds": round(seconds, 2)}
    return found


def summary(encoder: Encoder, rows: dict[str, Matrices], images: dict[str, Tensor]) -> Row:
    """The figures of all pictures."""
    inputs = [encoder.preprocess(images[name][None]) for name in rows]
    exact = [score_of(row["exact"], encoder.embed_dim) for row in rows.values()]
    shipped, seconds = timed(lambda: [jepa_score(encoder, x, projection=PROJECTION).item() for x in inputs])
    cheap = {}
    for name, (score, fraction) in approximations(measure(encoder, inputs[0]), encoder.embed_dim).items():
        spearman = spearmanr(exact, [score(row) for row in rows.values()])[0]
        cheap[name] = {"spearman": round(spearman, 4), "times_less": round(1 / fraction, 1)}
    spearman, seconds = round(spearmanr(exact, shipped)[0], 4), round(seconds / len(rows), 2)
    return {
        "pictures": len(rows),
        "exact_scores": {name: round(value, 3) for name, value in zip(rows, exact, strict=True)},
        "projected_scores": {name: round(value, 3) for name, value in zip(rows, shipped, strict=True)},
        "shipped": {"outputs": PROJECTION, "spearman": spearman, "seconds": seconds},
        "approximations": cheap,
        "against_the_paper": [against_the_paper(encoder, x) for x in inputs[:COMPARED]],
    }


def table(figures: Row) -> str:
    """How well each cheap score ranks."""
    ranked = sorted(figures["approximations"].items(), key=lambda item: -item[1]["spearman"])
    columns = {
        "score": "{name}",
        "Spearman with exact": "{spearman:.3f}",
        "times less time": "{times_less:.1f}",
    }
    return markdown(columns, [{"name": name, **one} for name, one in ranked])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, program.FIGURES / "score.json", folder=True)
    options = parser.parse_args(arguments)
    encoder = load_encoder(options.encoder)
    folder = options.folder / f"scores-{options.encoder.name}"
    images, rows = pictures(), {}
    for name, picture in images.items():
        x = encoder.preprocess(picture[None])
        rows[name] = kept(folder / f"{name}.safetensors", partial(measure, encoder, x))
        print(f"{name}: {rows[name]['exact-seconds'].item():.1f} s", flush=True)
    record = {"settings": program.settings(parser, options), **summary(encoder, rows, images)}
    program.write(options.out, record, table)


if __name__ == "__main__":
    main()
