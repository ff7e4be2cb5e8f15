"""Same seeds, rarer images: the stock sampler and the guided one on a real ComfyUI server, side by side.

    python dev.py demo [--seeds N] [--exact]

Starts ComfyUI with this pack, makes an emoji for each seed unguided and guided over its HTTP API, and writes
contact_sheet.png and figures.json to demo/output/. Takes about a minute a seed on two processor cores.

Guidance runs through the denoiser, as in the paper and by default: with the denoiser held constant the score falls too,
but this small generator's images change less visibly (research/figures/evaluation.json). power_iterations is 1 instead
of the default 2, which takes two thirds of the time; the gradient's cosine with the exact one is still 0.99.
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
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from jepa_core import load_encoder
from research.harness.program import encoder_identity
from research.harness.sheet import contact_sheet
from research.harness.summary import mean_and_error
from research.judges.measures import Bank, Embed, judge, judge_held_out, load_bank, load_classifier
from tools.server import ExecutionFailed, Server, ServerError

ROOT = Path(__file__).absolute().parents[1]
OUTPUT = ROOT / "demo" / "output"
ARMS = ("unguided", "guided")
SAMPLING = {"steps": 10, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
GUIDANCE = {"strength": 0.5, "gradient_path": "through denoiser", "power_iterations": 1}
TOP_K = 9
PROMPT_SECONDS = 3600.0
# Ids of the nodes whose output is fetched, by arm.
SAVE = {arm: f"save {arm}" for arm in ARMS}
SCORE = {arm: f"score {arm}" for arm in ARMS}

Row = dict[str, Any]
Defaults = Callable[[str], Row]


def comparison(defaults: Defaults, seed: int, class_name: str, encoder: str, exact: bool) -> Row:
    """The workflow of one seed in API format: the stock sampler beside the guided one.

    Args:
        defaults: the defaults of a node's inputs, by node id. encoder: an option of JEPAEncoderLoader.
        exact: score with all singular values.
    """
    sampling = defaults("KSampler") | SAMPLING | {"seed": seed, "model": ["demo", 0]}
    sampling |= {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    guidance = defaults("JEPAGuidedKSampler") | sampling | GUIDANCE
    guidance |= {"vae": ["demo", 1], "encoder": ["encoder", 0]}
    scoring = defaults("JEPAScoreImage") | {"mode": "exact" if exact else "top-k", "top_k": TOP_K}
    nodes: dict[str, tuple[str, Row]] = {
        "demo": ("JEPADemoLoader", {}),
        "positive": ("JEPADemoClass", {"class_name": class_name}),
        "negative": ("JEPADemoClass", {"class_name": "any"}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "encoder": ("JEPAEncoderLoader", {"encoder": encoder, "image_size": 224}),
        "unguided": ("KSampler", sampling),
        "guided": ("JEPAGuidedKSampler", guidance),
    }
    for arm in ARMS:
        picture = f"decode {arm}"
        nodes[picture] = ("VAEDecode", {"samples": [arm, 0], "vae": ["demo", 1]})
        nodes[SAVE[arm]] = ("SaveImage", {"images": [picture, 0], "filename_prefix": f"jepa-demo-{arm}"})
        nodes[SCORE[arm]] = ("JEPAScoreImage", {**scoring, "images": [picture, 0], "encoder": ["encoder", 0]})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def menu(server: Server, node: str, name: str) -> list[str]:
    """The options of a node's combo input."""
    kind, *more = server.object_info()[node]["input"]["required"][name]
    return list(kind) if isinstance(kind, list) else list(more[0]["options"])


def shown_score(history: Mapping[str, Any], node: str) -> float:
    """The score that JEPAScoreImage shows for its only image."""
    text = "\n".join(history["outputs"][node]["text"])
    match = re.search(r"image 0: (-?\d+(?:\.\d+)?)", text)
    if match is None:
        raise ValueError(f"JEPAScoreImage shows no score: {text!r}")
    return float(match[1])


def run_seeds(server: Server, seeds: int, encoder: Path, exact: bool) -> list[Row]:
    """Make and score both images of every seed; a row for each: seed, class, arm, score, picture."""
    defaults = cache(server.defaults)
    classes = menu(server, "JEPADemoClass", "class_name")[1:]
    name = next(option for option in menu(server, "JEPAEncoderLoader", "encoder") if encoder.name in option)
    rows: list[Row] = []
    begun = time.monotonic()
    for seed in range(seeds):
        class_name = classes[seed % len(classes)]
        print(f"[{seed + 1}/{seeds}] {class_name}, seed {seed} ...", end="", flush=True)
        prompt_id = server.queue(comparison(defaults, seed, class_name, name, exact))
        history = server.wait(prompt_id, PROMPT_SECONDS)
        for arm in ARMS:
            content = server.image(history["outputs"][SAVE[arm]]["images"][0])
            picture = Image.open(io.BytesIO(content)).convert("RGB")
            score = shown_score(history, SCORE[arm])
            rows.append({"seed": seed, "class": class_name, "arm": arm, "score": score, "picture": picture})
        left = (time.monotonic() - begun) / (seed + 1) * (seeds - seed - 1) / 60
        print(f" score {rows[-2]['score']:.2f} -> {rows[-1]['score']:.2f}, {left:.1f} min left", flush=True)
    return rows


def add_measures(rows: Sequence[Row], classes: Sequence[str], bank: Bank, embed: Embed | None) -> Row:
    """Add the independent measures to every row; returns those of real held-out images."""
    classifier = load_classifier()
    pictures = torch.stack([pil_to_tensor(row["picture"]).float() / 255 for row in rows])
    labels = torch.tensor([classes.index(row["class"]) + 1 for row in rows])
    for name, values in judge(pictures, labels, bank, classifier, embed).items():
        for row, value in zip(rows, values.tolist(), strict=True):
            row[name] = value
    return judge_held_out(bank, classifier)


def make_embed(folder: Path, bank: Bank) -> Embed | None:
    """The guiding encoder as a function of images; None if the bank was made with another encoder."""
    if encoder_identity(folder) != bank.encoder_name:
        return None
    encoder = load_encoder(folder)

    def embed(images: Tensor) -> Tensor:
        return encoder(encoder.preprocess(images.movedim(1, -1)))

    return embed


def summarise(rows: Sequence[Row]) -> Row:
    """For each measure: the mean of each arm, and the mean paired difference, guided minus unguided."""
    names = [name for name in rows[0] if name not in ("seed", "class", "arm", "picture")]
    values = {name: {arm: [row[name] for row in rows if row["arm"] == arm] for arm in ARMS} for name in names}
    for both in values.values():
        both["difference"] = [g - u for u, g in zip(both["unguided"], both["guided"], strict=True)]
    return {name: {key: mean_and_error(of) for key, of in both.items()} for name, both in values.items()}


def sentences(summary: Row, rows: Sequence[Row], exact: bool) -> list[str]:
    """What the figures say, in words."""
    count = len(rows) // 2
    pairs = list(zip(rows[0::2], rows[1::2], strict=True))
    rarer = sum(guided["score"] < unguided["score"] for unguided, guided in pairs)
    farther = sum(guided["rarity_classifier"] > unguided["rarity_classifier"] for unguided, guided in pairs)
    named = {arm: sum(row["recognised"] for row in rows if row["arm"] == arm) for arm in ARMS}
    distance = summary["rarity_classifier"]
    how = "exact score" if exact else f"score (top {TOP_K} singular values)"
    return [
        f"Under the guiding encoder, the {how} of {rarer} of {count} guided images is lower, which means rarer; "
        f"the mean difference is {summary['score']['difference']['mean']:+.2f}.",
        f"Under a separately trained classifier, {farther} of {count} guided images are farther from the "
        f"training images than their unguided twins (mean {distance['guided']['mean']:.3f} against "
        f"{distance['unguided']['mean']:.3f}); it recognises the class of {named['guided']:.0f} guided and "
        f"{named['unguided']:.0f} unguided images.",
        f"{count} seeds are an illustration; research/figures/evaluation.json has more, with controls.",
    ]


def draw(rows: Sequence[Row], notes: Sequence[str]) -> Image.Image:
    """The contact sheet: unguided above guided, each with its score and measures."""
    by_arm = [[row for row in rows if row["arm"] == arm] for arm in ARMS]
    return contact_sheet(
        "Same seeds, same classes: the stock sampler above, JEPA guidance below",
        ["unguided\n(KSampler)", "guided\n(JEPA Guided\nKSampler)"],
        [[row["picture"] for row in some] for some in by_arm],
        [[caption(row) for row in some] for some in by_arm],
        [f"{row['class']}, seed {row['seed']}" for row in by_arm[0]],
        notes=notes,
    )


def caption(row: Row) -> str:
    """The text below a picture."""
    seen = "recognised" if row["recognised"] else "not recognised"
    return f"score {row['score']:.2f}\ndistance {row['rarity_classifier']:.3f}\n{seen}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--exact", action="store_true", help="exact scores, a minute more per image")
    parser.add_argument("--encoder", type=Path, default=os.environ.get("JEPA_ENCODER"), help="encoder folder")
    parser.add_argument("--host", type=Path, default=os.environ.get("JEPA_HOST"), help="ComfyUI's folder")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    # ending the demo ends its server
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bank = load_bank()
    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{options.encoder.name}": options.encoder}
    print("starting ComfyUI ...", flush=True)
    try:
        with Server(options.host, links, cpu=not torch.cuda.is_available()) as server:
            classes = menu(server, "JEPADemoClass", "class_name")[1:]
            rows = run_seeds(server, options.seeds, options.encoder, options.exact)
    except (ExecutionFailed, ServerError, TimeoutError) as error:
        print(f"\nthe demo failed: {error}", flush=True)
        return 1
    real = add_measures(rows, classes, bank, make_embed(options.encoder, bank))
    summary = summarise(rows)
    said = sentences(summary, rows, options.exact)
    score = "exact" if options.exact else f"top {TOP_K}"
    OUTPUT.mkdir(parents=True, exist_ok=True)
    notes = [
        f"score: JEPA score ({score}) under the guiding encoder ({options.encoder.name}); lower is rarer.",
        "distance: to the 5 nearest training images in the features of a separately trained classifier; larger is rarer.",
        "recognised: whether that classifier names the class.",
    ]
    draw(rows, notes).save(OUTPUT / "contact_sheet.png", optimize=True)
    for row in rows:
        row.pop("picture").save(OUTPUT / f"seed{row['seed']:02d}-{row['arm']}.png")
    record = {
        "settings": {
            **SAMPLING,
            **GUIDANCE,
            "score": score,
            "encoder": encoder_identity(options.encoder),
        },
        "summary": summary,
        "real_held_out": real,
        "images": rows,
        "said": said,
    }
    (OUTPUT / "figures.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{OUTPUT / 'contact_sheet.png'}\n{OUTPUT / 'figures.json'}\n")
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
