"""Compare trained D-JEPAs with each other and with the demo generator's UNet: the figures in comparison.json.

    python dev.py run research/training/djepa/compare.py --folder WORK RUN [RUN ...]

RUN is a folder below WORK that train.py filled. Each model draws five images for every held-out one, of the
same classes, as each is best used. Frechet distances are between normal distributions fitted to embeddings of the
encoder that `python dev.py encoder` names, as the bank in research/judges/ has them; from 47 held-out images alone a
covariance of 384 entries cannot be known, so the distance to the images trained on stands beside it, and the row
"real" says what the held-out images themselves have. Figures of this small set compare these rows and nothing else.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from jepa_core import load_encoder
from jepa_core.djepa import DJEPA, DJEPAConfig, Tokenizer, load_tokenizer, sample_tokens, to_latents
from research.harness import program
from research.harness.pack import ROOT
from research.harness.program import Row, markdown
from research.harness.sheet import sample_sheet
from research.judges.measures import judge, load_bank, load_classifier
from research.training.emoji.data import load_pictures

BATCH = 47
STEPS, DENOISING_STEPS, CFG = 32, 50, 2.0
NAMES = {
    "real": "the held-out images themselves",
    "tokenizer": "the same through the tokenizer",
    "unet": "the demo generator's UNet",
    "diffusion": "diffusion, JEPA loss, 2600 steps",
    "flow": "flow, JEPA loss, 2600 steps",
    "flow0": "flow, no JEPA loss, 2600 steps",
    "flow-long": "flow, JEPA loss, 4400 steps: the one that comes with the pack",
}


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between normal distributions fitted to two sets of features, (N, d) and (M, d)."""
    a, b = a.double(), b.double()
    root = psd_root(a.T.cov())
    cross = torch.linalg.eigvalsh(root @ b.T.cov() @ root).clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    # rounding can take the distance of a set to itself below zero
    return max(0.0, (means + a.T.cov().trace() + b.T.cov().trace() - 2 * cross).item())


def psd_root(matrix: Tensor) -> Tensor:
    """The symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def load_run(folder: Path) -> tuple[DJEPA, Row]:
    """The exponential average of a run, and what its loss.json says."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    model = DJEPA(DJEPAConfig(**state["config"])).eval()
    model.load_state_dict(state["average"])
    return model, json.loads((folder / "loss.json").read_text())


def draw(model: DJEPA, tokenizer: Tokenizer, labels: Tensor) -> Tensor:
    """Images (B, 3, 64, 64) in [0, 1] of labels from 0, a seed each."""
    pictures = []
    for seeds in torch.arange(len(labels)).split(BATCH):
        tokens = sample_tokens(
            model, labels[seeds], seeds.tolist(), steps=STEPS, denoising_steps=DENOISING_STEPS, cfg=CFG
        )
        pictures.append(tokenizer.decode(to_latents(tokens, model.config.patch)).add(1).div(2).clamp(0, 1))
    return torch.cat(pictures)


def draw_unet(labels: Tensor) -> Tensor:
    """The same of the demo generator, as its training script samples."""
    from research.training.emoji.train import Generator, sample

    weights = load_file(ROOT / "assets" / "emoji64.safetensors")
    model = Generator(len(weights["classes.weight"]) - 1)
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    model.eval().requires_grad_(False)
    return torch.cat([sample(model, part + 1, seed=index) for index, part in enumerate(labels.split(BATCH))])


def table(figures: Row) -> str:
    """The figures as Markdown."""
    columns = {
        "": "{name}",
        "denoising loss": "{held_out_denoising:.4g}",
        "JEPA loss": "{held_out_jepa:.4g}",
        "Frechet, held out": "{frechet_held_out:.4g}",
        "Frechet, trained on": "{frechet_trained_on:.4g}",
        "recognised": "{recognised:.4g}",
        "copy distance": "{copy_distance:.4g}",
    }
    rows = []
    for name, row in figures["rows"].items():
        # without the JEPA loss its projection was not trained, and a loss through it means nothing
        untrained = {"held_out_jepa": None} if row.get("jepa") == 0 else {}
        rows.append({"name": NAMES.get(name, name)} | row | untrained)
    return markdown(columns, rows)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    here = Path(__file__).absolute().parent
    parser = program.parser(__file__, __doc__, here / "comparison.json", folder=True)
    parser.add_argument("--times", type=int, default=5, help="images for each held-out one")
    parser.add_argument("--unet", action="store_true", help="the demo generator too")
    parser.add_argument("runs", nargs="*", default=[])
    options = parser.parse_args(arguments)
    unseen = load_pictures(options.folder).unseen()
    tokenizer = load_tokenizer(options.folder / "tokenizer.safetensors")
    encoder = load_encoder(options.encoder, image_size=224)
    bank, classifier = load_bank(), load_classifier()
    trained, held = bank.encoder[~bank.held_out], bank.encoder[bank.held_out]

    def embed(pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 384), as research/judges/train.py embeds the real ones."""
        return torch.cat([encoder(encoder.preprocess(one.movedim(1, -1))) for one in pictures.split(8)])

    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else {}

    def report(name: str, pictures: Tensor, labels: Tensor, more: Row) -> None:
        embeddings = embed(pictures)
        found = judge(pictures, labels, bank, classifier, None)
        rows[name] = more | {
            "images": len(pictures),
            "frechet_held_out": round(frechet_distance(embeddings, held), 1),
            "frechet_trained_on": round(frechet_distance(embeddings, trained), 1),
            "recognised": round(found["recognised"].mean().item(), 3),
            "copy_distance": round(found["copy_distance"].mean().item(), 4),
        }
        print(name, json.dumps(rows[name]), flush=True)

    if "real" not in rows:
        real = unseen.pixels()
        apart = (embed(real[:2]) - held[:2]).abs().max()
        assert apart < 0.05 * held.abs().max(), "the bank has other embeddings"
        report("real", real, unseen.labels, {})
        through = tokenizer.decode(tokenizer.encode(real * 2 - 1)).add(1).div(2).clamp(0, 1)
        report("tokenizer", through, unseen.labels, {})
    asked = unseen.labels.repeat(options.times)
    if options.unet:
        report("unet", draw_unet(asked - 1), asked, {})
    for run in options.runs:
        model, record = load_run(options.folder / run)
        losses = {name: round(value, 5) for name, value in record["rows"][-1].items()}
        report(run, draw(model, tokenizer, asked - 1), asked, losses)
        sheet = draw(model, tokenizer, torch.arange(64) % model.config.classes)
        sample_sheet(sheet).save(options.folder / run / "sheet.png")
    record = {"steps": STEPS, "denoising_steps": DENOISING_STEPS, "cfg": CFG, "encoder": bank.encoder_name}
    program.write(options.out, record | {"rows": rows}, table)


if __name__ == "__main__":
    main()
