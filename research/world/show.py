"""What does the world look like, from its commonest pictures to its rarest?"""

import argparse
import shutil
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
    made.add_argument("--split", choices=("training", "held_out", "rarest"), default="training")
    made.add_argument("--processes", type=int, help="that draw at once (default: one a core)")
    made.add_argument("--again", action="store_true", help="draw what is there already, to measure the speed")
    return made.parse_args()


def sheet(folder: Path, split: str, count: int, side: int, processes: int | None) -> Path:
    """Write a sheet of pictures at half their side: a row a class, evenly spread from the commonest to the rarest."""
    images = data.cached(folder, split, count, side, processes)
    rows = labels.split(split, count)
    logs = labels.log_frequency(rows.attributes)
    pictures, captions = [], []
    for number in range(1, len(labels.CLASSES) + 1):
        mine = (rows.classes == number).nonzero()[:, 0]
        order = mine[logs[mine].argsort(descending=True, stable=True)]
        chosen = order[torch.linspace(0, len(order) - 1, COLUMNS).round().long()]
        small = torch.nn.functional.avg_pool2d(images[chosen].float() / 255, 2)
        pictures.append([to_pil_image(image) for image in small])
        captions.append([f"1 in {(-logs[row]).exp().item():,.0f}" for row in chosen])
    title = f"{split}: {count} pictures, from the commonest combination of attributes to the rarest"
    drawing = contact_sheet(title, labels.CLASSES, pictures, captions, [""] * COLUMNS, side=96)
    out = folder / f"{split}.png"
    drawing.save(out)
    return out


def main() -> None:
    options = _options()
    place = options.folder / data.world_id(options.side)
    if options.again:
        shutil.rmtree(place, ignore_errors=True)
    begun, before = time.perf_counter(), len(list(place.glob("*.xz")))
    data.cached(options.folder, options.split, options.count, options.side, options.processes)
    seconds, files = time.perf_counter() - begun, list(place.glob("*.xz"))
    drawn = data.BLOCK * (len(files) - before)
    size = sum(file.stat().st_size for file in files) / max(1, data.BLOCK * len(files))
    print(f"{drawn} drawn in {seconds:.1f} s ({drawn / seconds:.1f} a second), {size:.0f} bytes a picture")
    print(f"wrote {sheet(options.folder, options.split, options.count, options.side, options.processes)}")


if __name__ == "__main__":
    main()
