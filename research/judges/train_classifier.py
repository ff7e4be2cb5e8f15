"""Train the small classifier that judges the demo generator's images; a few minutes on a CPU.

    python dev.py run research/judges/train_classifier.py --folder WORK

It sees the generator's training images, augmented more strongly (slight blur and noise as well, so that a
generated image is not out of its depth for being soft), and is tested on the images held out from both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tqdm import tqdm

from research.harness import program
from research.judges.measures import HERE, Classifier
from research.training.emoji.data import load_pictures
from research.training.pictures import Pictures, augment, class_weights


def soften(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur half of the images (B, 3, 64, 64) in [0, 1] a little; add noise of up to 5 % to all."""
    count = len(pixels)
    blur = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    pixels = torch.where(blur, F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1), pixels)
    strength = 0.05 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randn(pixels.shape, generator=generator)
    return (pixels + strength * noise).clamp(0, 1)


@torch.no_grad()
def accuracy(model: Classifier, data: Pictures) -> float:
    """Share of pictures whose class the model names."""
    return (model(data.pixels()).argmax(1) + 1 == data.labels).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = program.parser(__file__, __doc__, folder=True, encoder=False)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, default=HERE, help="where the weights go")
    options = parser.parse_args(arguments)
    data = load_pictures(options.folder)
    seen, unseen = data.trained_on(), data.unseen()
    # Small classes are seen as often as large ones.
    weights = class_weights(seen.labels, 1.0).float()
    torch.manual_seed(options.seed)
    model = Classifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.peak, options.steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(options.seed)
    bar = tqdm(range(1, options.steps + 1))
    for step in bar:
        rows = torch.multinomial(weights, options.batch, replacement=True, generator=generator)
        pixels = soften(augment(seen.images[rows], generator), generator)
        loss = F.cross_entropy(model(pixels), seen.labels[rows] - 1, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            bar.set_postfix(loss=loss.item(), held_out=accuracy(model, unseen))
    model.eval()
    found = {"held_out": accuracy(model, unseen), "trained_on": accuracy(model, seen)}
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    header = {"classes": json.dumps(data.classes), "training": json.dumps(settings)}
    metadata = header | {"data_licence": data.licence}
    save_file(tensors, options.export / "classifier64.safetensors", metadata=metadata)
    images = {"trained_on": len(seen.labels), "held_out": len(unseen.labels)}
    record = {"settings": settings, "accuracy": found, "images": images}
    (options.export / "classifier.json").write_text(json.dumps(record) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
