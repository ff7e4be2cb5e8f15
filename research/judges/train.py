"""Train the classifier that judges pictures of the demo world, and embed the real ones that they are compared with.

    python dev.py run research/judges/train.py --folder WORK             a quarter of an hour on a processor
    python dev.py run research/judges/train.py --folder WORK --bank      only the embeddings, of the classifier there is

The classifier sees pictures as they are drawn and half of the time as a small generator might draw them: blurred, noisy,
moved a little. Half of them are of the split `rarest`, so that it has seen every value often. It is tested on the
held-out pictures, and on those of the split `rarest` that it was not trained on: classifier128.safetensors,
classifier.json. bank.safetensors has embeddings of real pictures, trained on and held out, under the encoder that dev.py
sets up, and under the classifier, half precision. Resumable: run the same command again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from jepa_core import load_encoder
from research.harness import program
from research.judges.classifier import FILE, HERE, Classifier, load_classifier, save_classifier
from research.judges.measures import BANK
from research.training.loop import Training, add_device, learning_rate
from research.training.pictures import Pictures, augment
from research.world import data, labels
from research.world.classes import attribution

RAREST = 6000  # pictures of that split to train on
UNSEEN = 1200  # pictures of it before those, to test on
BANK_ROWS = {"training": 600, "held_out": 120}


def soften(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the images (B, 3, H, W) in [0, 1] a little; add noise of up to 5 % to all."""
    blur = torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5
    pixels = torch.where(blur, F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1), pixels)
    strength = 0.05 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return (pixels + strength * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


def rarest(folder: Path) -> tuple[Pictures, Pictures]:
    """Of the split `rarest`: pictures to train on, and others to test on."""
    count = RAREST + UNSEEN
    data.make(folder, "rarest", count, 128)
    rows = labels.split("rarest", count)
    unseen = torch.arange(count) < UNSEEN
    images = data.read(folder, "rarest", count, 128)
    found = Pictures(
        images, rows.classes, unseen, labels.CLASSES, attribution(), rows.attributes, labels.NAMES
    )
    return found.trained_on(), found.unseen()


@torch.no_grad()
def accuracy(model: Classifier, pictures: Pictures) -> program.Row:
    """Share of pictures whose class the model names, and of each attribute's whose value it names."""
    assert pictures.attributes is not None
    rows = torch.arange(len(pictures.labels)).split(256)
    features = torch.cat([model.features(pictures.pixels(part)) for part in rows])
    named = model.probabilities(features).argmax(1) + 1
    there = pictures.attributes >= 0
    right = (model.values(features, pictures.labels) == pictures.attributes) & there
    each = (right.sum(0) / there.sum(0)).tolist()
    return {
        "images": len(pictures.labels),
        "class": round((named == pictures.labels).float().mean().item(), 5),
        "attributes": round(sum(each) / len(each), 5),
        "each": {name: round(share, 4) for name, share in zip(labels.NAMES, each, strict=True)},
    }


def train(data_sets: Sequence[Pictures], options: argparse.Namespace) -> Classifier:
    """Train the classifier on pictures of several sets, as many of each."""
    torch.manual_seed(options.seed)
    model = Classifier().to(options.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak, weight_decay=0.05)
    training = Training(
        options.folder / "classifier.pt", model, optimizer, identity={"world": data.world_id(128)}
    )
    training.resume()
    bar = tqdm(range(training.step, options.steps), initial=training.step, total=options.steps, mininterval=5)
    for step in bar:
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        share = options.batch // len(data_sets)
        chosen = [torch.randint(len(part.labels), (share,), generator=generator) for part in data_sets]
        images, classes, attributes = (
            torch.cat([getattr(part, name)[rows] for part, rows in zip(data_sets, chosen, strict=True)])
            for name in ("images", "labels", "attributes")
        )
        pixels = images.float() / 255
        half = torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5
        pixels = pixels.where(half, soften(augment(images, generator), generator))
        with torch.autocast(options.device, torch.bfloat16):
            loss = model.loss(*(part.to(options.device) for part in (pixels, classes, attributes)))
        training.advance(loss, options.peak * learning_rate(step, options.steps, 100, 0.5))
        if training.step % 100 == 0 or training.step == options.steps:
            bar.set_postfix(loss=loss.item())
            training.save()
    return model.cpu().eval()


@torch.no_grad()
def embed(world: Pictures, options: argparse.Namespace) -> None:
    """Write the bank of real images."""
    parts = world.trained_on(), world.unseen()
    pixels = torch.cat(
        [part.pixels(slice(count)) for part, count in zip(parts, BANK_ROWS.values(), strict=True)]
    )
    encoder = load_encoder(options.encoder, image_size=options.image_size)
    classifier = load_classifier(options.export / FILE.name)
    found = [
        (encoder(encoder.preprocess(some.movedim(1, -1))), classifier.features(some))
        for some in tqdm(pixels.split(16))
    ]
    embeddings, features = (torch.cat(some).half() for some in zip(*found, strict=True))
    known = [part.labels[:count] for part, count in zip(parts, BANK_ROWS.values(), strict=True)]
    tensors = {"encoder": embeddings, "classifier": features, "labels": torch.cat(known).to(torch.uint8)}
    tensors["held_out"] = torch.arange(len(pixels)) >= BANK_ROWS["training"]
    metadata = {"encoder": program.encoder_identity(options.encoder), "data_licence": world.licence}
    metadata["image_size"] = str(options.image_size)
    save_file(tensors, options.export / BANK.name, metadata=metadata)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, folder=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--pictures", type=int, default=data.TRAINING, help="of the world to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--image-size", type=int, default=112, help="at which the bank's encoder sees pictures"
    )
    parser.add_argument("--bank", action="store_true", help="only embed the real images")
    parser.add_argument("--export", type=Path, default=HERE, help="where the files go")
    add_device(parser)
    options = parser.parse_args(arguments)
    world = data.load_pictures(options.folder, options.pictures)
    if not options.bank:
        rare, unseen = rarest(options.folder)
        model = train([world.trained_on(), rare], options)
        found = {"held_out": accuracy(model, world.unseen()), "rarest": accuracy(model, unseen)}
        settings = {name: getattr(options, name) for name in ("steps", "batch", "peak", "pictures", "seed")}
        record = {"settings": settings, "accuracy": found}
        notes = {"training": json.dumps(settings), "data_licence": world.licence}
        save_classifier(model, options.export / FILE.name, notes)
        (options.export / "classifier.json").write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(found, indent=1))
    embed(world, options)


if __name__ == "__main__":
    main()
