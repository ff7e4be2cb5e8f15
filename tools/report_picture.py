"""Make the picture of a report on docs/folders.md anew: drawings of the demo's world, and copies of some of them.

    python dev.py run tools/report_picture.py --folder WORK

WORK keeps the pictures and what was scored. Needs Chromium or Chrome, installed or named in CHROMIUM, and the encoder in
JEPA_ENCODER.
"""

import argparse
import io
import os
from pathlib import Path

from PIL import Image
from torchvision.transforms.functional import to_pil_image

from jepa_core.folders.commands import main as run_command
from research.world import data, labels
from tools.page import installed_browser, running_browser
from tools.page_scenes import save

OUT = Path(__file__).absolute().parents[1] / "docs" / "images" / "report.jpg"
COUNT, COPIES, SIDE = 120, 6, 128
WIDTH = 1280


def draw(folder: Path, world: Path) -> None:
    """Held-out drawings, in a folder for each class, and copies of the first ones at half the size."""
    data.make(world, "held_out", COUNT, SIDE)
    drawn = labels.split("held_out", COUNT)
    for number, pixels in enumerate(data.read(world, "held_out", COUNT, SIDE)):
        kind = labels.CLASSES[int(drawn.classes[number]) - 1]
        picture = to_pil_image(pixels)
        (folder / kind).mkdir(parents=True, exist_ok=True)
        picture.save(folder / kind / f"{number:03}.png")
        if number < COPIES:
            picture.resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS).save(
                folder / kind / f"{number:03} small.png"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="keeps the pictures and what was scored")
    folder = parser.parse_args().folder
    program = installed_browser()
    if program is None:
        parser.error("no browser: install chromium, or name one in CHROMIUM")
    pictures, table, report = folder / "drawings", folder / "drawings.parquet", folder / "report.html"
    if not pictures.exists():
        draw(pictures, folder)
    report.unlink(missing_ok=True)
    encoder = os.environ["JEPA_ENCODER"]
    for line in (
        ["score", str(pictures), "--encoder", encoder, "--image-size", "112", "--out", str(table)],
        ["report", str(table), "--out", str(report), "--distance", "0.005"],
    ):
        if code := run_command(line):
            return code
    with running_browser(program) as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": 1290})
        page.goto(report.as_uri())
        page.wait_for_selector("#grid .body [role=row]")
        picture = Image.open(io.BytesIO(page.screenshot()))
    save(picture.convert("RGB"), OUT)
    print(f"{OUT}: {picture.width} x {picture.height} pixels, {OUT.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
