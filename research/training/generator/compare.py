"""Compare trained generators with each other and with real pictures: the figures in comparison.json.

    python dev.py run research/training/generator/compare.py --folder WORK --runs RUN [RUN ...]

RUN is a folder below WORK that train.py filled, with @ and a cfg after it where that is not 2. Each draws as many pictures
of each class, by the host's sampler. Frechet distances are to the held-out pictures under EfficientNet-Lite0's features;
attributes are read by the classifier of research/judges.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from jepa_core.djepa import load_tokenizer
from research.harness import program
from research.harness.program import Row, markdown
from research.harness.sampling import CFG, STEPS
from research.judges.comparison import MEASURES, REAL, Comparison, Judges
from research.training.generator.train import Generator, samples
from research.world.data import TRAINING, load_pictures
from research.world.labels import CLASSES

HERE = Path(__file__).absolute().parent
NAMES = {
    "real": "held-out pictures",
    "tokenizer": "the same through the tokenizer",
    "pixels-v": "folded pixels, velocity",
    "latents-v": "latents, velocity",
    "latents-flow": "latents, flow",
    "generator": "latents, flow: the one that comes with the pack",
}


def drawn_by(run: Path, folder: Path, labels: Sequence[int], cfg: float) -> tuple[Tensor, Row]:
    """Pictures of the exponential average of a run, and what is known of its training."""
    state = torch.load(run / "checkpoint.pt", weights_only=True, map_location="cpu")
    config = state["config"]
    model = Generator(config["sizes"]["in_channels"])
    model.load_state_dict(state["average"])
    decoder = None if config["space"] == "pixels" else load_tokenizer(folder / "tokenizer.safetensors")
    more = {name: config[name] for name in ("space", "prediction")} | {"steps": state["step"], "cfg": cfg}
    return samples(model.eval(), decoder, config["prediction"], labels, cfg=cfg), more


def table(figures: Row) -> str:
    """The figures as Markdown."""
    rows = [{"name": NAMES.get(name, name)} | row for name, row in figures["rows"].items()]
    return markdown({"": "{name}", "steps": "{steps}", "cfg": "{cfg:g}"} | MEASURES, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, HERE / "comparison.json", folder=True, encoder=False)
    parser.add_argument("--each", type=int, default=200, help="pictures of each class")
    parser.add_argument("--pictures", type=int, default=TRAINING, help="that the runs were trained on")
    parser.add_argument("--runs", nargs="*", default=[], help="folders below WORK")
    options = parser.parse_args(arguments)
    folder, count = options.folder, options.each * len(CLASSES)
    judges, file = (
        Judges(load_pictures(folder, options.pictures, REAL + count), folder),
        folder / "tokenizer.safetensors",
    )
    comparison = Comparison(options.out, judges, file, count)
    comparison.add_real(load_tokenizer(file))
    labels = torch.arange(count) % len(CLASSES) + 1
    for run in options.runs:
        name, _, cfg = run.partition("@")
        pictures, more = drawn_by(folder / name, folder, labels.tolist(), float(cfg or CFG))
        comparison.add(run, pictures, labels, more)
    settings = program.settings(parser, options, sampler_steps=STEPS)
    program.write(options.out, {"settings": settings} | comparison.record(), table)


if __name__ == "__main__":
    main()
