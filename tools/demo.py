"""Same seeds, images that an encoder finds rarer: the stock sampler and the guided one on a real server, side by side.

    python dev.py demo [--pictures N] [--first SEED] [--strengths S ...]

Starts ComfyUI with this pack, makes an avatar of each kind unguided and guided at two strengths over its HTTP API, and
writes demo/output/contact_sheet.png again after every picture, and figures.json. Takes a minute and a half on two
processor cores.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from research.harness.program import encoder_identity, whole
from tools.demo_sheet import Judge, draw_sheet, said
from tools.server import ExecutionFailed, Server, ServerError

ROOT = Path(__file__).absolute().parents[1]
OUTPUT = ROOT / "demo" / "output"
SHEET = OUTPUT / "contact_sheet.png"
SIDE = 128  # pixels
SAMPLING = {"steps": 14, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
# What keeps a picture to a few seconds on a processor.
SETTINGS = {"interval": 2}
ENCODER_SIDE = 112  # pixels
STRENGTHS = (1.0, 2.0)
PROMPT_SECONDS = 3600.0

Row = dict[str, Any]
Defaults = Callable[[str], Row]


def workflow(defaults: Defaults, seed: int, class_name: str, encoder: str, strength: float) -> Row:
    """One picture and its score in API format, by the stock sampler for strength 0 and by the guided one otherwise.

    Args:
        defaults: the defaults of a node's inputs, by node id. encoder: an option of JEPAEncoderLoader.
    """
    sampling = defaults("KSampler") | SAMPLING | {"seed": seed, "model": ["demo", 0]}
    sampling |= {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    guidance = defaults("JEPAGuidedKSampler") | sampling | {"strength": strength}
    guidance |= {"vae": ["demo", 1], "encoder": ["encoder", 0], "settings": ["settings", 0]}
    nodes: dict[str, tuple[str, Row]] = {
        "demo": ("JEPADemoLoader", {}),
        "positive": ("JEPADemoClass", {"class_name": class_name}),
        "negative": ("JEPADemoClass", {"class_name": "any"}),
        "latent": ("EmptyLatentImage", {"width": SIDE, "height": SIDE, "batch_size": 1}),
        "encoder": ("JEPAEncoderLoader", {"encoder": encoder, "image_size": ENCODER_SIDE}),
        "sampler": ("JEPAGuidedKSampler", guidance) if strength else ("KSampler", sampling),
        "settings": ("JEPAGuidanceSettings", defaults("JEPAGuidanceSettings") | SETTINGS),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["demo", 1]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "jepa-demo"}),
    }
    scoring = {"images": ["decode", 0], "encoder": ["encoder", 0]}
    nodes["score"] = ("JEPAScoreImage", defaults("JEPAScoreImage") | scoring | {"mode": "projected"})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def menu(server: Server, node: str, name: str) -> list[str]:
    """The options of a node's combo input."""
    kind, *more = server.object_info()[node]["input"]["required"][name]
    return list(kind) if isinstance(kind, list) else list(more[0]["options"])


def shown_score(history: Mapping[str, Any], node: str) -> float:
    """The score that JEPAScoreImage shows for its only image."""
    text = "\n".join(history["outputs"][node]["text"])
    match = re.search(r"image 0: score (-?\d+(?:\.\d+)?)", text)
    if match is None:
        raise ValueError(f"JEPAScoreImage shows no score: {text!r}")
    return float(match[1])


def pictures(
    server: Server, seeds: Sequence[int], strengths: Sequence[float], encoder: Path
) -> Iterator[Row]:
    """Make every picture; yields a row for each: seed, class, strength, score, picture."""
    defaults = cache(server.defaults)
    classes = menu(server, "JEPADemoClass", "class_name")[1:]
    name = next(option for option in menu(server, "JEPAEncoderLoader", "encoder") if encoder.name in option)
    arms = [0.0, *strengths]
    order = [(seed, arm) for seed in seeds for arm in arms]
    for seed, strength in order:
        class_name = classes[seed % len(classes)]
        history = server.wait(
            server.queue(workflow(defaults, seed, class_name, name, strength)), PROMPT_SECONDS
        )
        content = server.image(history["outputs"]["save"]["images"][0])
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        row = {"seed": seed, "class": class_name, "strength": strength}
        yield row | {"score": shown_score(history, "score"), "picture": picture}


def run(server: Server, options: argparse.Namespace, judge: Judge) -> list[Row]:
    """Make, judge and show every picture; returns their rows."""
    seeds = range(options.first, options.first + options.pictures)
    arms, rows, begun = (0.0, *options.strengths), [], time.monotonic()
    for row in pictures(server, seeds, options.strengths, options.encoder):
        rows.append(row | judge(row["picture"], row["class"]))
        with whole(SHEET) as partial:
            draw_sheet(rows, arms, seeds, options.encoder.name).save(partial, "PNG", optimize=True)
        spent, total = time.monotonic() - begun, len(seeds) * len(arms)
        left = spent / len(rows) * (total - len(rows))
        what = f"strength {row['strength']:g}" if row["strength"] else "unguided"
        print(
            f"[{len(rows)}/{total}] {row['class']}, {what}: score {row['score']:.2f}, {spent:.0f} s, {left:.0f} s left",
            flush=True,
        )
        if len(rows) == 2:
            print(f"the first pair is in {SHEET}; it is updated after every picture", flush=True)
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python dev.py demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--pictures", type=int, default=6, help="seeds, a kind of avatar each in turn (default: 6)"
    )
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS, help="default: %(default)s")
    parser.add_argument("--encoder", type=Path, default=os.environ.get("JEPA_ENCODER"), help="encoder folder")
    parser.add_argument("--host", type=Path, default=os.environ.get("JEPA_HOST"), help="ComfyUI's folder")
    options = parser.parse_args()
    if options.pictures < 1:
        parser.error("--pictures must be at least 1")
    if 0 in options.strengths:
        parser.error("--strengths must not be 0, which is unguided")
    return options


def main() -> int:
    options = parse()
    # ending the demo ends its server
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    OUTPUT.mkdir(parents=True, exist_ok=True)
    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{options.encoder.name}": options.encoder}
    print("starting ComfyUI ...", flush=True)
    try:
        with Server(options.host, links, cpu=not torch.cuda.is_available()) as server:
            rows = run(server, options, Judge())
    except (ExecutionFailed, ServerError, TimeoutError) as error:
        print(f"\nthe demo failed: {error}", flush=True)
        return 1
    for row in rows:
        row.pop("picture").save(OUTPUT / f"seed{row['seed']:02d}-strength{row['strength']:g}.png")
    words = said(rows, (0.0, *options.strengths))
    settings = {
        **SAMPLING,
        **SETTINGS,
        "image_size": ENCODER_SIDE,
        "encoder": encoder_identity(options.encoder),
    }
    record = {"settings": settings, "images": rows, "said": words}
    (OUTPUT / "figures.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{SHEET}\n{OUTPUT / 'figures.json'}\n")
    print("\n".join(words))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
