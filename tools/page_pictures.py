"""Make the pictures of nodes on the pages anew, from ComfyUI's own page with the templates opened and run.

    python dev.py run tools/page_pictures.py [NAME ...]

A NAME is a part of a picture's path; without one, all pictures are made. Needs Chromium or Chrome, installed or named in
CHROMIUM, and the encoder in JEPA_ENCODER. SCENES says what each picture shows.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from research.world.classes import KINDS
from tools.page import Comfy, installed_browser, running_browser
from tools.page_scenes import VIEWPORT, Added, Scene, Sheet, Shot, Studio, Tile, save
from tools.server import Server, has_accelerator

ROOT = Path(__file__).absolute().parents[1]
SCREENSHOTS = ROOT / ".work" / "screenshots"  # git-ignored

HELP, PAGES, THUMBNAILS = "web/docs/images", "docs/images", "workflows"
SMALL = 112  # pixels at which the encoder sees images, where no picture shows it
PREVIEWED = (2, 16, 24, 32)  # sets of tokens, of a D-JEPA's 32
# The sheet of JEPA Rank Images, a row of four, in two rows.
RANKED = (Tile(7, box=(0, 0, 560, 372)), Tile(7, box=(544, 0, 1104, 372)))
# Three strengths of a strip of two rows.
STRIP = (272, 0, 1104, 672)
# A rarity map without the scale below it.
MAP = (0, 0, 256, 256)

SCENES = (
    Scene(
        "01 First try without a checkpoint",
        pictures=(Shot(f"{HELP}/encoder_loader.png", (7,), width=560),),
    ),
    Scene(
        "01 First try without a checkpoint",
        runs=({},),
        added=(Added(101, "JEPAPlotTrace", (1280, 1200), inputs=(("trace", 14, 1),)),),
        pictures=(
            Sheet(
                f"{THUMBNAILS}/01 First try without a checkpoint.jpg",
                tuple(Tile(node, index) for index in (2, 3) for node in (11, 17)),
                width=450,
                columns=2,
            ),
            Sheet(
                f"{HELP}/demo_loader.jpg",
                tuple(Tile(node, index) for node in (11, 17) for index in range(4)),
                width=640,
                columns=4,
            ),
            Shot(f"{PAGES}/node.jpg", (14,), width=440, first="strength"),
            Shot(f"{HELP}/guided_ksampler.png", (14,), width=440, first="strength"),
            Sheet(f"{HELP}/plot_trace.png", (Tile(101),), width=640, columns=1),
        ),
    ),
    Scene(
        "01 First try without a checkpoint",
        runs=({(3, "batch_size"): 1, (101, "strength"): 1.0},),
        added=(
            Added(
                101,
                "JEPAGuidance",
                (430, -900),
                inputs=(("model", 2, 0), ("vae", 2, 1), ("encoder", 7, 0)),
                outputs=((0, 8, "model"),),
            ),
            Added(102, "JEPAGuidanceSettings", (0, -900), inputs=()),
        ),
        off=(12, 13, 14, 15, 16, 17, 18, 19),
        pictures=(
            Shot(f"{HELP}/guidance.png", (101,), width=440),
            Shot(f"{HELP}/guidance_settings.png", (102,), width=440),
        ),
    ),
    Scene(
        "01 First try without a checkpoint",
        runs=({(3, "batch_size"): 1, (101, "text"): "a portrait of a robot"},),
        added=(Added(101, "JEPAMinorityPrompt", (430, -900), inputs=(("model", 2, 0),)),),
        off=(12, 13, 14, 15, 16, 17, 18, 19),
        pictures=(Shot(f"{HELP}/minority_prompt.png", (101,), width=440),),
    ),
    Scene(
        "01 First try without a checkpoint",
        runs=tuple({(3, "batch_size"): 1, (5, "class_name"): kind.name} for kind in KINDS),
        off=(12, 13, 14, 15, 16, 17, 18, 19),
        pictures=(
            Sheet(
                f"{HELP}/demo_class.jpg",
                tuple(Tile(11, run=run, caption=kind.name) for run, kind in enumerate(KINDS)),
                width=640,
                columns=3,
            ),
        ),
    ),
    Scene(
        "01 First try without a checkpoint",
        runs=(
            {
                (101, "count"): 8,
                (101, "cfg"): 2.0,
                (101, "scheduler"): "simple",
                (101, "mode"): "no scores",
                (103, "filename"): "robots",
                (104, "file"): "robots.safetensors",
            },
        ),
        added=(
            Added(
                101,
                "JEPAPromptReference",
                (2600, 0),
                inputs=(
                    ("model", 2, 0),
                    ("vae", 2, 1),
                    ("positive", 5, 0),
                    ("negative", 6, 0),
                    ("latent_image", 3, 0),
                    ("encoder", 7, 0),
                ),
            ),
            Added(102, "PreviewImage", (3100, 0), inputs=(("images", 101, 1),)),
            Added(103, "JEPASaveReference", (3100, 500), inputs=(("reference", 101, 0),)),
            Added(104, "JEPALoadReference", (3600, 0), inputs=()),
            Added(105, "JEPACombineReferences", (3600, 300), inputs=()),
            Added(106, "JEPAReferenceFolder", (3600, 800), inputs=()),
        ),
        off=(*range(8, 20), 21, 22),
        pictures=(
            Sheet(
                f"{HELP}/prompt_reference.jpg",
                tuple(Tile(102, index) for index in range(8)),
                width=640,
                columns=4,
            ),
            Shot(f"{HELP}/save_reference.png", (103,), width=596),
            Shot(f"{HELP}/load_reference.png", (104,), width=596),
            Shot(f"{HELP}/combine_references.png", (105,), width=596),
            Shot(f"{HELP}/reference_folder.png", (106,), width=596),
        ),
    ),
    Scene(
        "13 Keep the rarest",
        runs=({(3, "image_size"): SMALL},),
        pictures=(
            Sheet(f"{HELP}/rank_images.jpg", RANKED, width=560, columns=1, gap=0),
            Sheet(f"{PAGES}/ranked.jpg", RANKED, width=560, columns=1, gap=0),
            Shot(f"{HELP}/reference.png", (10,), width=596),
            Shot(f"{HELP}/score_image.png", (11,), width=640),
            Sheet(
                f"{THUMBNAILS}/13 Keep the rarest.jpg",
                (Tile(8, 0), Tile(9, 0, box=MAP), Tile(8, 1), Tile(9, 1, box=MAP)),
                width=450,
                columns=2,
            ),
        ),
    ),
    Scene(
        "14 Pick by eye",
        runs=({(3, "image_size"): SMALL},),
        picks=(0, 3, 6),
        pictures=(
            Shot(f"{HELP}/pick_images.jpg", (7,), width=410, first="by"),
            Shot(f"{THUMBNAILS}/14 Pick by eye.jpg", (7,), width=450, height=450, first="by"),
        ),
    ),
    Scene(
        "06 Unlike what the prompt usually gives",
        runs=({},),
        pictures=(
            Sheet(
                f"{THUMBNAILS}/06 Unlike what the prompt usually gives.jpg",
                tuple(Tile(node, index) for index in (0, 1) for node in (14, 17)),
                width=450,
                columns=2,
            ),
        ),
    ),
    Scene(
        "18 Redraw the usual part",
        runs=({},),
        pictures=(
            Sheet(
                f"{THUMBNAILS}/18 Redraw the usual part.jpg",
                (Tile(12, 0), Tile(13, 0, box=MAP), Tile(14, 0), Tile(19, 0)),
                width=450,
                columns=2,
            ),
        ),
    ),
    Scene(
        "05 How strong is right",
        runs=({},),
        pictures=(
            Sheet(f"{HELP}/strength_strip.jpg", (Tile(9),), width=640, columns=1),
            Sheet(
                f"{THUMBNAILS}/05 How strong is right.jpg",
                (Tile(9, box=STRIP),),
                width=450,
                columns=1,
            ),
        ),
    ),
    Scene(
        "07 Unlike my last pictures",
        # the output folder has pictures after the first run
        runs=({(8, "folder"): "input"}, {(8, "folder"): "output"}),
        pictures=(
            Sheet(
                f"{THUMBNAILS}/07 Unlike my last pictures.jpg",
                tuple(Tile(node, index, run=1) for index in (0, 1) for node in (14, 17)),
                width=450,
                columns=2,
            ),
        ),
    ),
    Scene(
        "08 Four that differ",
        runs=({},),
        pictures=(
            Sheet(
                f"{THUMBNAILS}/08 Four that differ.jpg",
                tuple(Tile(15, index) for index in range(4)),
                width=450,
                columns=2,
            ),
        ),
    ),
    Scene(
        "10 Rare search",
        runs=({(2, "image_size"): SMALL},),
        pictures=(
            Sheet(
                f"{THUMBNAILS}/10 Rare search.jpg",
                tuple(Tile(10, index) for index in range(4)),
                width=450,
                columns=2,
            ),
            Shot(f"{HELP}/rare_search.png", (7,), width=440, first="count"),
        ),
    ),
    Scene(
        "12 Search then guide",
        runs=({(2, "image_size"): SMALL},),
        pictures=(
            Sheet(
                f"{THUMBNAILS}/12 Search then guide.jpg",
                tuple(Tile(node, index) for index in (0, 1) for node in (16, 12)),
                width=450,
                columns=2,
            ),
        ),
    ),
    Scene(
        "19 Beside other methods",
        runs=({(2, "image_size"): SMALL},),
        pictures=(
            Sheet(
                f"{THUMBNAILS}/19 Beside other methods.jpg",
                tuple(Tile(node, 0) for node in (11, 16, 21, 26)),
                width=450,
                columns=2,
            ),
        ),
    ),
    Scene(
        "11 Rare but right",
        pictures=(
            Shot(f"{THUMBNAILS}/11 Rare but right.jpg", (9,), width=450, height=450, first="count"),
            Shot(f"{HELP}/prompt_fit.png", (8,), width=440),
        ),
    ),
    Scene(
        "20 A JEPA that draws",
        runs=({(3, "batch_size"): 1},),
        off=(7, 8, 9, 10, 11, 12, 13, 14, 15),
        previews=True,
        pictures=(
            Shot(f"{HELP}/djepa_loader.png", (2,), width=636),
            Sheet(
                f"{HELP}/djepa_sampler.png",
                tuple(Tile(3, sets - 1, caption=f"{sets} of 32 sets") for sets in PREVIEWED),
                width=640,
                columns=4,
            ),
            Sheet(
                f"{THUMBNAILS}/20 A JEPA that draws.jpg",
                tuple(Tile(3, sets - 1) for sets in PREVIEWED),
                width=450,
                columns=2,
            ),
        ),
    ),
    Scene(
        "15 How rare is an image",
        runs=({},),
        pictures=(Shot(f"{THUMBNAILS}/15 How rare is an image.jpg", (2,), width=450, height=450),),
    ),
    # Only nodes: of two guides one, and of the checkpoints none, is at hand.
    Scene(
        "09 Two guides from one seed",
        pictures=(Shot(f"{THUMBNAILS}/09 Two guides from one seed.jpg", (7, 8, 9), width=450, height=450),),
    ),
    *(
        Scene(
            name,
            pictures=(Shot(f"{THUMBNAILS}/{name}.jpg", (node,), width=450, height=450, first="strength"),),
        )
        for name, node in (
            ("02 Text to image with SD15", 7),
            ("03 Text to image with SDXL", 7),
            ("04 One seed with and without guidance", 13),
            ("21 SDXL Lightning in four steps", 7),
            ("22 SDXL Turbo in four steps", 7),
            ("23 Z-Image Turbo", 8),
            ("24 Qwen Image", 8),
            ("25 Flux 2", 8),
        )
    ),
)


def chosen(names: Sequence[str]) -> list[tuple[Scene, list[Shot | Sheet]]]:
    """The scenes with pictures whose path has one of the names in it, and those pictures; all without names."""
    wanted = [
        (scene, [one for one in scene.pictures if not names or any(name in one.file for name in names)])
        for scene in SCENES
    ]
    return [(scene, pictures) for scene, pictures in wanted if pictures]


@contextmanager
def open_studio(host: Path, encoder: Path, program: str) -> Iterator[Studio]:
    """A server with this pack and the encoder, and its page in English, with nodes as ComfyUI draws them today."""
    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{encoder.name}": encoder}
    with (
        Server(host, links, cpu=not has_accelerator(sys.executable)) as server,
        running_browser(program) as browser,
    ):
        menu = server.object_info()["JEPAEncoderLoader"]["input"]["required"]["encoder"][1]["options"]
        context = browser.new_context(viewport=VIEWPORT, device_scale_factor=2)
        comfy = Comfy(context.new_page(), server.url, SCREENSHOTS)
        comfy.close_templates()
        comfy.change("Comfy.VueNodes.Enabled", True)
        yield Studio(comfy, server, next(option for option in menu if encoder.name in option))
        context.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="part of a picture's path (default: all pictures)"
    )
    scenes = chosen(parser.parse_args().names)
    program = installed_browser()
    if not scenes or program is None:
        parser.error(
            "no picture has such a name"
            if program
            else "no browser: install chromium, or name one in CHROMIUM"
        )
    host, encoder = (Path(os.environ[name]) for name in ("JEPA_HOST", "JEPA_ENCODER"))
    with open_studio(host, encoder, program) as studio:
        for scene, wanted in scenes:
            for name, picture in studio.play(scene, wanted).items():
                save(picture, ROOT / name)
                size = (ROOT / name).stat().st_size
                print(f"{name}: {picture.width} x {picture.height} pixels, {size} bytes", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
