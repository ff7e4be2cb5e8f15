"""Compare trained D-JEPAs with each other, the demo generator's UNet and real pictures: the figures in comparison.json.

    python dev.py run research/training/djepa/compare.py --folder WORK [--unet GENERATOR] --runs RUN [RUN ...]

RUN is a folder below WORK that train.py filled, GENERATOR one that research/training/generator/train.py filled. Every
row has as many pictures of each class, drawn as each model is best used, and is judged by research/judges: Frechet
distances are to held-out pictures under EfficientNet-Lite0's features, attributes are read by the classifier. Writes
each run's first 64 pictures to its sheet.png.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from jepa_core.djepa import DJEPA, DJEPAConfig, Tokenizer, load_tokenizer, sample_tokens, to_latents
from research.harness import program
from research.harness.program import Row, markdown
from research.harness.sheet import sample_sheet
from research.judges.comparison import MEASURES, REAL, Comparison, Judges
from research.training.generator.compare import drawn_by
from research.world.data import TRAINING, load_pictures
from research.world.labels import CLASSES

BATCH = 48
STEPS, DENOISING_STEPS, CFG = 32, 50, 2.0
NAMES = {
    "real": "held-out pictures",
    "tokenizer": "the same through the tokenizer",
    "unet": "the demo generator's UNet",
    "djepa-diffusion": "diffusion, JEPA loss",
    "djepa-flow": "flow, JEPA loss",
    "djepa-flow0": "flow, no JEPA loss",
    "djepa-flow-long": "flow, JEPA loss: the one that comes with the pack",
}


def load_run(folder: Path) -> tuple[DJEPA, Row]:
    """The exponential average of a run, and its last losses."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
    model = DJEPA(DJEPAConfig(**state["config"])).eval()
    model.load_state_dict(state["average"])
    losses = {name: round(value, 5) for name, value in state["rows"][-1].items()}
    # without the JEPA loss its projection was not trained, and a loss through it means nothing
    return model, losses | ({} if losses["jepa"] else {"held_out_jepa": None})


def draw(model: DJEPA, tokenizer: Tokenizer, labels: Tensor) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1] of labels (B,) from 0; the seed of each is its row."""
    pictures = []
    for seeds in torch.arange(len(labels)).split(BATCH):
        tokens = sample_tokens(
            model, labels[seeds], seeds.tolist(), steps=STEPS, denoising_steps=DENOISING_STEPS, cfg=CFG
        )
        pictures.append(tokenizer.decode(to_latents(tokens, model.config.patch)).add(1).div(2).clamp(0, 1))
    return torch.cat(pictures)


def table(figures: Row) -> str:
    """The figures as Markdown."""
    losses = {"denoising loss": "{held_out_denoising:.4g}", "JEPA loss": "{held_out_jepa:.4g}"}
    rows = [{"name": NAMES.get(name, name)} | row for name, row in figures["rows"].items()]
    return markdown({"": "{name}", "steps": "{step}"} | losses | MEASURES, rows)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    out = Path(__file__).absolute().parent / "comparison.json"
    parser = program.parser(__file__, __doc__, out, folder=True, encoder=False)
    parser.add_argument("--each", type=int, default=200, help="pictures of each class")
    parser.add_argument("--pictures", type=int, default=TRAINING, help="that the runs were trained on")
    parser.add_argument("--unet", help="the demo generator's run")
    parser.add_argument("--runs", nargs="*", default=[], help="folders below WORK")
    options = parser.parse_args(arguments)
    folder, count = options.folder, options.each * len(CLASSES)
    judges = Judges(load_pictures(folder, options.pictures, REAL + count), folder)
    tokenizer = load_tokenizer(folder / "tokenizer.safetensors")
    comparison = Comparison(options.out, judges, folder / "tokenizer.safetensors", count)
    comparison.add_real(tokenizer)
    labels = torch.arange(count) % len(CLASSES) + 1
    if options.unet:
        pictures, known = drawn_by(folder / options.unet, folder, labels.tolist(), CFG)
        comparison.add("unet", pictures, labels, {"step": known["steps"]})
    for run in options.runs:
        model, losses = load_run(folder / run)
        pictures = draw(model, tokenizer, labels - 1)
        comparison.add(run, pictures, labels, losses)
        sample_sheet(pictures[:64]).save(folder / run / "sheet.png")
    how = {"token_sets": STEPS, "denoising_steps": DENOISING_STEPS, "cfg": CFG}
    program.write(
        options.out, {"settings": program.settings(parser, options, **how)} | comparison.record(), table
    )


if __name__ == "__main__":
    main()
