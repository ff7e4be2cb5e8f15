"""Linked values from stock nodes: the host does not check their range nor, behind a switch node, their type."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.test_fuzz import careless
from tests.server.test_graph import djepa, graph, guided, node, patch, prompted, scored_folder, stock
from tools.server import ExecutionFailed, Server

SOURCES: dict[str, tuple[str, Any]] = {
    "int": ("PrimitiveInt", 9_000_000_000_000_000_000),
    "negative": ("PrimitiveInt", -7),
    "float": ("PrimitiveFloat", 1e18),
    "nan": ("PrimitiveFloat", "nan"),
    "text": ("PrimitiveString", "x"),
}
NUMBERS = ("interval", "rank", "oversampling", "power_iterations")
SIZES = ("strength", "start_percent", "end_percent", "cfg", "denoise")
MENUS = (
    "schedule", "normalisation", "gradient_path", "strength_rule", "fit", "decoder", "denoiser_calls", "range_finder",
    "criterion",
)  # fmt: skip
OBJECTS = ("model", "vae", "encoder", "latent_image", "settings")
CASES = [
    *(("settings", name, source) for name in NUMBERS for source in ("int", "negative")),
    *(("settings", name, "text") for name in (*MENUS, "rank")),
    *(("sample", "steps", source) for source in ("int", "negative")),
    *(("sample", name, source) for name in SIZES for source in ("float", "nan")),
    *(("sample", name, "text") for name in ("preset", "sampler_name", "scheduler", *OBJECTS, "strength")),
    *(("patch", name, "text") for name in ("preset", "settings", "vae", "encoder", "model")),
    *(("score", name, "text") for name in ("mode", "fit", "images", "encoder", "top_k")),
    ("score", "top_k", "int"),
    *(("encoder", "image_size", source) for source in ("int", "negative", "text")),
    *(("encoder", "encoder", source) for source in ("int", "text")),
    ("robot", "class_name", "text"),
    *(
        ("draw", name, source)
        for name in ("steps", "denoising_steps", "batch_size")
        for source in ("int", "negative")
    ),
    *(("draw", name, source) for name in ("cfg", "temperature", "time_shift") for source in ("float", "nan")),
    *(("draw", name, "text") for name in ("djepa", "latent_image", "class_name", "seed")),
    *(("draw", name, "negative") for name in ("seed", "class_name")),
    ("loader", "model", "text"),
    ("loader", "model", "int"),
    ("chart", "trace", "text"),
    *(("rank", name, "text") for name in ("images", "encoder", "keep", "mode", "count", "seeds")),
    *(("rank", "count", source) for source in ("int", "negative")),
    *(("map", name, "text") for name in ("images", "encoder", "fit", "opacity")),
    *(("map", "opacity", source) for source in ("float", "nan")),
    *(("reference", name, "text") for name in ("images", "encoder", "mode", "fit", "top_k")),
    ("score", "reference", "text"),
    ("map", "reference", "text"),
    *(("rank", name, "text") for name in ("reference", "by")),
    *(
        ("prompted", name, "text")
        for name in (
            "model",
            "vae",
            "encoder",
            "latent_image",
            "sampler_name",
            "scheduler",
            "mode",
            "fit",
            "count",
        )
    ),
    *(("prompted", name, "negative") for name in ("first_seed", "count", "steps")),
    *(("prompted", "cfg", source) for source in ("float", "nan")),
    *(("folder", name, "text") for name in ("folder", "encoder", "count", "mode")),
    *(("folder", name, "int") for name in ("folder", "subfolder", "count")),
    *(("both", name, "text") for name in ("reference_1", "reference_2", "keep")),
    *(("both", name, "negative") for name in ("keep", "keep_seed")),
    *(("scored", name, "text") for name in ("folder", "encoder", "mode", "by", "count", "reference")),
    *(("scored", name, "int") for name in ("subfolder", "count", "most_files", "with_subfolders")),
    ("saved", "reference", "text"),
    ("saved", "filename", "int"),
    *(("loaded", "file", source) for source in ("int", "text")),
]


@pytest.fixture(scope="module")
def prompts(server: Server) -> dict[str, dict]:
    """A prompt for each of our nodes, by the id of the node."""
    options = server.object_info()["JEPAEncoderLoader"]["input"]["required"]["encoder"][1]["options"]
    (encoder,) = [name for name in options if name.endswith(".safetensors")]
    simple = graph(encoder, guided())
    judge = {"images": ["decode", 0], "encoder": ["encoder", 0], "mode": "top-k", "top_k": 2}
    judged = {name: judge[name] for name in ("images", "encoder")}
    rank = {"keep": "rarest", "count": 1, "mode": "projected", "seeds": 1}
    view = {"fit": "crop", "antialias": True}
    score = node("JEPAScoreImage", **judge, **view)
    made = {"encoder": ["encoder", 0], "mode": "no scores", "top_k": 2, **view}
    kept = graph(encoder, stock()) | {
        "prompted": prompted(count=1, steps=1, **made),
        "folder": node(
            "JEPAReferenceFolder", folder="input", subfolder="", count=1, with_subfolders=False, **made
        ),
        "both": node(
            "JEPACombineReferences",
            reference_1=["prompted", 0],
            reference_2=["prompted", 0],
            keep=0,
            keep_seed=0,
        ),
        "saved": node("JEPASaveReference", reference=["prompted", 0], filename="links", overwrite=True),
        "scored": scored_folder(
            folder="input", encoder=["encoder", 0], by="novelty", reference=["prompted", 0], **view
        ),
    }
    shown = {name: node("PreviewAny", source=[name, 0]) for name in ("both", "folder", "loaded")}
    return {
        "sample": simple,
        "settings": simple,
        "encoder": simple,
        "robot": simple,
        "patch": graph(encoder, {**patch(), **stock(["patch", 0])}),
        "score": graph(encoder, stock()) | {"score": score},
        "draw": djepa(),
        "loader": djepa(),
        "rank": graph(encoder, stock()) | {"rank": node("JEPARankImages", **judged, **rank)},
        "map": graph(encoder, stock()) | {"map": node("JEPARarityMap", **judged, **view, opacity=0.5)},
        "reference": graph(encoder, stock())
        | {
            "reference": node("JEPAReference", **judge, **view),
            "scores": node("PreviewAny", source=["reference", 1]),
        },
        "prompted": kept,
        "saved": kept,
        "scored": kept,
        "both": kept | {"shown": shown["both"]},
        "folder": kept | {"shown": shown["folder"]},
        "loaded": {"loaded": node("JEPALoadReference", file="links.safetensors"), "shown": shown["loaded"]},
        "chart": simple | {"chart": node("JEPAPlotTrace", trace=["sample", 1])},
    }


@pytest.mark.parametrize(("place", "name", "source"), CASES)
def test_a_linked_value_is_refused_by_a_message_that_names_the_input(server, prompts, place, name, source):
    kind, value = SOURCES[source]
    prompt = prompts[place] | {
        "source": node(kind, value=value),
        # passes any type
        "switch": node("ComfySwitchNode", switch=False, on_false=["source", 0], on_true=["source", 0]),
    }
    changed = prompt[place]
    prompt[place] = changed | {"inputs": changed["inputs"] | {name: ["switch", 0]}}
    before = len(server.log())
    with pytest.raises(ExecutionFailed) as failed:
        server.wait(server.queue(prompt), timeout=60)
    assert failed.value.node_id == place
    assert name.removesuffix("_name") in failed.value.message
    assert not careless(server.log()[before:])


def test_a_linked_value_that_fits_runs(server, prompts):
    prompt = prompts["sample"] | {"source": node("PrimitiveInt", value=4)}
    for place, name in (("sample", "steps"), ("settings", "rank")):
        prompt[place] = prompt[place] | {"inputs": prompt[place]["inputs"] | {name: ["source", 0]}}
    assert server.wait(server.queue(prompt), timeout=120)["outputs"]["save"]["images"]
