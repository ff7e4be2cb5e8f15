"""What does the world look like, from its commonest pictures to its rarest?"""

import argparse
import time
from pathlib import Path

import torch
from torchvision.transforms.functional import to_pil_image

from research.harness import program
from research.harness.sheet import contact_sheet
from research.world import data, labels

COLUMNS = 12


def _options() -> argparse.Namespace:
    made = program.parser(__file__, __doc__, folder=True, encoder=False)
    made.add_argument("--count", type=int, default=1200, help="pictures to draw (default: 1200)")
    made.add_argument("--side", type=int, default=128, help="of a picture in pixels (default: 128)")
    made.add_argument("--split", choices=labels.SPLITS, default="training")
    made.add_argument("--processes", type=int, help="that draw at once (default: one a core)")
    return made.parse_args()


def sheet(folder: Path, split: str, count: int, side: int) -> Path:
    """Write a sheet of pictures at half their side: a row a class, evenly spread from the commonest to the rarest."""
    images = data.read(folder, split, count, side)
    rows = labels.split(split, count)
    tails = labels.tail(rows.classes, rows.attributes)
    pictures, captions = [], []
    for number in range(1, len(labels.CLASSES) + 1):
        mine = (rows.classes == number).nonzero()[:, 0]
        order = mine[tails[mine].argsort(descending=True, stable=True)]
        chosen = order[torch.linspace(0, len(order) - 1, COLUMNS).round().long()]
        small = torch.nn.functional.avg_pool2d(images[chosen].float() / 255, 2)
        pictures.append([to_pil_image(image) for image in small])
        captions.append([f"{100 * tails[row]:.3g} %" for row in chosen])
    title = f"{split}: {count} pictures, and the share of all pictures of the class that are as rare or rarer"
    drawing = contact_sheet(title, labels.CLASSES, pictures, captions, [""] * COLUMNS, side=96)
    out = folder / f"{split}.png"
    drawing.save(out)
    return out


def main() -> None:
    options = _options()
    what = options.folder, options.split, options.count, options.side
    begun = time.perf_counter()
    drawn = data.make(*what, options.processes)
    seconds = time.perf_counter() - begun
    files = list((options.folder / data.world_id(options.side)).glob(f"{options.split}-*.xz"))
    size = sum(file.stat().st_size for file in files) / (data.BLOCK * len(files))
    print(f"{drawn} drawn in {seconds:.1f} s ({drawn / seconds:.0f} a second); {size:.0f} bytes a picture")
    print(f"wrote {sheet(*what)}")


if __name__ == "__main__":
    main()
