"""Train the classifier that judges the demo generator's images, and embed the real images that they are compared with.

    python dev.py run research/judges/train.py --folder WORK             a few minutes on a processor
    python dev.py run research/judges/train.py --folder WORK --bank      only the embeddings, of the classifier there is

The classifier sees the generator's training images, augmented more strongly (slight blur and noise as well, so that a
soft image is nothing new to it), and is tested on the images held out from both: classifier64.safetensors,
classifier.json. bank.safetensors has embeddings under the encoder that dev.py sets up and under the classifier, half
precision; thumbnails.webp is lossless, 32 x 32 pixels a picture. Both keep the order of load_pictures.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid
from tqdm import tqdm

from jepa_core import load_encoder
from research.harness import program
from research.judges.measures import HERE, THUMBNAIL, Classifier, load_classifier
from research.training.emoji.data import load_pictures
from research.training.pictures import Pictures, augment, class_weights


def soften(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the images (B, 3, 64, 64) in [0, 1] a little; add noise of up to 5 % to all."""
    blur = torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5
    pixels = torch.where(blur, F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1), pixels)
    strength = 0.05 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return (pixels + strength * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


@torch.no_grad()
def accuracy(model: Classifier, data: Pictures) -> float:
    """Share of pictures whose class the model names."""
    return (model(data.pixels()).argmax(1) + 1 == data.labels).float().mean().item()


def train(data: Pictures, options: argparse.Namespace) -> None:
    """Train the classifier; writes its weights and its accuracy."""
    seen, unseen = data.trained_on(), data.unseen()
    weights = class_weights(seen.labels, 1.0).float()  # small classes are seen as often as large ones
    torch.manual_seed(options.seed)
    model = Classifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.peak, options.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(options.seed)
    for _ in tqdm(range(options.steps)):
        rows = torch.multinomial(weights, options.batch, replacement=True, generator=generator)
        pixels = soften(augment(seen.images[rows], generator), generator)
        loss = F.cross_entropy(model(pixels), seen.labels[rows] - 1, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    found = {"held_out": accuracy(model, unseen), "trained_on": accuracy(model, seen)}
    settings = {name: getattr(options, name) for name in ("steps", "batch", "peak", "seed")}
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    metadata = {
        "classes": json.dumps(data.classes),
        "training": json.dumps(settings),
        "data_licence": data.licence,
    }
    save_file(tensors, options.export / "classifier64.safetensors", metadata=metadata)
    images = {"trained_on": len(seen.labels), "held_out": len(unseen.labels)}
    record = {"settings": settings, "accuracy": found, "images": images}
    (options.export / "classifier.json").write_text(json.dumps(record) + "\n")
    print(record)


@torch.no_grad()
def embed(data: Pictures, options: argparse.Namespace) -> None:
    """Write the bank of real images."""
    pixels = data.pixels()
    encoder, classifier = (
        load_encoder(options.encoder),
        load_classifier(options.export / "classifier64.safetensors"),
    )
    parts = tqdm(pixels.split(16))
    found = [(encoder(encoder.preprocess(part.movedim(1, -1))), classifier.features(part)) for part in parts]
    embeddings, features = (torch.cat(some).half() for some in zip(*found, strict=True))
    tensors = {"encoder": embeddings, "classifier": features, "held_out": data.held_out}
    tensors["labels"] = data.labels.to(torch.uint8)
    metadata = {"encoder": program.encoder_identity(options.encoder), "data_licence": data.licence}
    save_file(tensors, options.export / "bank.safetensors", metadata=metadata)
    small = F.adaptive_avg_pool2d(pixels, THUMBNAIL)
    sheet = to_pil_image(make_grid(small, nrow=33, padding=0, pad_value=1).mul(255).round().byte())
    sheet.save(options.export / "thumbnails.webp", lossless=True, quality=100, method=6)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, folder=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bank", action="store_true", help="only embed the real images")
    parser.add_argument("--export", type=Path, default=HERE, help="where the files go")
    options = parser.parse_args(arguments)
    data = load_pictures(options.folder)
    if not options.bank:
        train(data, options)
    embed(data, options)


if __name__ == "__main__":
    main()
