"""Untrusted workflows: a live server answers mutated prompts and keeps running."""

from __future__ import annotations

import io
import json
import math
import random
import re
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import HOST, ROOT
from tests.core.conftest import save_clip
from tests.server.test_graph import (
    djepa,
    graph,
    guided,
    node,
    patch,
    prompted,
    scored_folder,
    search,
    stock,
    strip,
)
from tests.server.test_workflows import api_prompt, small, workflow
from tools.server import ExecutionFailed, Server

RECORD = Path(__file__).with_name("fuzz.json")
# Longer prompts are stopped: the fuzzer may ask for ten thousand steps.
SECONDS = 4.0
CLIP = "clip/model.safetensors"
SMALL = {"rank": 2, "oversampling": 0, "power_iterations": 0}

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 257, 10**6, 2**31, 2**63, -(2**63), 2**70, 0.5, -0.5, 1.0000001, 1e308, -1e308,
    1e-320, math.nan, math.inf, -math.inf, "", " ", "nan", "1", "-1", "0.5", "true", "../../secret.safetensors",
    "/etc/passwd", "..\\..\\secret", "model.safetensors\0.pt", "a" * 10_000, "\u202e\u0000\ud7ff\U0001f600", "{{7*7}}",
    "__import__('os')", "%s%n", "DPM_ADAPTIVE", "dpm_adaptive", "uni_pc", "euler", "custom", "faithful", "fast", "crop",
    "tiny autoencoder", "through denoiser", {}, {"__value__": [1, 2]}, {"__value__": "x"}, {"a": {"b": [None]}}, [], [1],
    [[]], ["demo"], ["demo", 0], ["demo", 99], ["demo", -1], ["demo", "0"], ["nope", 0], [None, None], ["sample", 0],
    ["encoder", 0], ["any", 0], [["demo"], 0], [1, 2, 3],
]  # fmt: skip
OURS = (
    "JEPAEncoderLoader", "JEPAGuidedKSampler", "JEPAGuidance", "JEPAScoreImage", "JEPADemoLoader", "JEPADemoClass",
    "JEPACombineEncoders", "DJEPALoader", "DJEPASampler", "JEPAPlotTrace",
    "JEPARankImages", "JEPARarityMap", "JEPAReference", "JEPAReferenceFolder", "JEPAPromptReference", "JEPASaveReference",
    "JEPALoadReference", "JEPACombineReferences", "JEPARareSearch", "JEPAPromptFit", "JEPAPromptMap",
    "JEPABoostAndSkip", "JEPACads", "JEPASelfGuidedMinority", "JEPAMinorityPrompt",
    "JEPAScoreFolder",
    "JEPAPickImages",
    "JEPAStrengthStrip",
    "JEPAGuidanceSettings",
)  # fmt: skip
CLASSES = [*OURS, "KSampler", "VAEDecode", "EmptyLatentImage", "SaveImage", "PreviewAny", "", "Nope", None, 3]


def seeds_of(encoder: str) -> list[dict[str, dict]]:
    """Small valid prompts that use every node of the pack."""
    score = node(
        "JEPAScoreImage",
        images=["decode", 0],
        encoder=["encoder", 0],
        mode="top-k",
        top_k=2,
        fit="crop",
        antialias=True,
    )
    more = {
        "decoder": "full", "denoiser_calls": "one", "checkpointing": True, "range_finder": "tracked",
    }  # fmt: skip
    prompts = [
        graph(encoder, guided(**SMALL)),
        graph(encoder, guided(**SMALL, **more)) | {"chart": node("JEPAPlotTrace", trace=["sample", 1])},
        graph(encoder, {**patch(**SMALL), **stock(["patch", 0])}),
        graph(encoder, stock()) | {"score": score},
    ]
    for prompt in prompts:
        prompt["encoder"]["inputs"]["image_size"] = 28
        prompt["sample"]["inputs"]["steps"] = 2
    rank = node(
        "JEPARankImages",
        images=["decode", 0],
        encoder=["encoder", 0],
        keep="rarest",
        count=1,
        mode="projected",
    )
    waits = {"timeout": 5, "on_timeout": "stop", "ask": "at every run"}
    pick = node("JEPAPickImages", **rank["inputs"], **waits, by="score")
    encoder_only = {"encoder": prompts[0]["encoder"]}
    drawn = djepa(batch_size=1, steps=2, denoising_steps=2)
    judged = {"images": ["decode", 0], "encoder": ["encoder", 0]}
    view = {"fit": "squash", "antialias": True}
    mode = {"mode": "top-k", "top_k": 2}
    compared = {
        "map": node("JEPARarityMap", **judged, **view, opacity=0.5),
        "map_beside": node(
            "JEPARarityMap",
            **judged,
            **view,
            opacity=0.5,
            reference=["reference", 0],
            ignore_flat=0.03,
            threshold_kind="percentile",
            threshold=80.0,
            grow=2,
            blur=1.0,
            invert=True,
            one_scale=True,
            palette="sea",
        ),
        "reference": node("JEPAReference", **judged, **view, **mode),
        "score": node("JEPAScoreImage", **judged, **view, **mode, reference=["reference", 0]),
    }
    made = {"mode": "no scores", "top_k": 2, **view}
    kept = {
        "prompted": prompted(count=2, steps=1, **made),
        "folder": node(
            "JEPAReferenceFolder",
            folder="output",
            subfolder="",
            count=2,
            encoder=["encoder", 0],
            with_subfolders=True,
            **made,
        ),
        "both": node(
            "JEPACombineReferences",
            reference_1=["prompted", 0],
            reference_2=["folder", 0],
            keep=3,
            keep_seed=0,
        ),
        "saved": node("JEPASaveReference", reference=["both", 0], filename="fuzz", overwrite=True),
        "scored": scored_folder(encoder=["encoder", 0], mode="top-k", reference=["folder", 0]),
    }
    loaded = {
        "loaded": node("JEPALoadReference", file="fuzz.safetensors"),
        "rank": rank | {"inputs": rank["inputs"] | {"reference": ["loaded", 0], "by": "novelty"}},
    }
    found = {
        "sample": search(candidates=3, count=2, steps=2, looks="0.5", prompt_fit=["fit", 2]),
        "fit": node("JEPAPromptFit", text="a robot", model=CLIP),
        "map": node(
            "JEPAPromptMap", images=["sample", 4], encoder=["encoder", 0], groups=2, mode="projected"
        ),
    }
    searched = graph(encoder, found)
    searched["encoder"]["inputs"]["image_size"] = 28
    patches = {
        "boosted": node("JEPABoostAndSkip", model=["demo", 0], gamma=1.5, skip=0),
        "noisy": node("JEPACads", model=["boosted", 0], scale=0.1, tau1=0.6, tau2=0.9, mix=1.0, seed=1),
        "own": node(
            "JEPASelfGuidedMinority",
            model=["noisy", 0],
            strength=0.3,
            interval=1,
            level=0.8,
            start_percent=0.0,
            end_percent=1.0,
        ),
    }
    compared_methods = graph(encoder, {**patches, **stock(["own", 0])})
    compared_methods["sample"]["inputs"]["steps"] = 3
    stripped = {"sample": strip(strengths="0, 1", **SMALL, **more)}
    stripped = graph(encoder, stripped, latent=["sample", 2])
    stripped["encoder"]["inputs"]["image_size"] = 28
    return [
        *prompts,
        searched,
        stripped,
        compared_methods,
        drawn,
        drawn | encoder_only | {"rank": rank, "pick": pick},
        drawn | encoder_only | compared,
        prompts[3] | kept,
        drawn | encoder_only | loaded,
    ]


def template(name: str, info: dict, encoder: str) -> dict[str, dict]:
    """A template as a small prompt, with additional stock nodes to link inputs to."""
    prompt = small(api_prompt(workflow(name), info), encoder)
    for key, one in list(prompt.items()):
        changes = {
            "steps": 2,
            "image_size": 28,
            "rank": 2,
            "power_iterations": 0,
            "mode": "top-k",
            "top_k": 2,
        }
        one["inputs"] |= {name: value for name, value in changes.items() if name in one["inputs"]}
        if one["class_type"] == "EmptyLatentImage" and isinstance(one["inputs"]["batch_size"], int):
            one["inputs"]["batch_size"] = 1
            prompt = json.loads(json.dumps(prompt).replace(f'"{key}"', '"empty"'))
    prompt["huge"] = node("PrimitiveInt", value=9 * 10**18)
    prompt["nan"] = node("PrimitiveFloat", value="nan")
    prompt["text"] = node("PrimitiveString", value="x")
    # passes any type to any input
    prompt["switch"] = node("ComfySwitchNode", switch=False, on_false=["text", 0], on_true=["huge", 0])
    return prompt


def mutated(prompt: dict, rng: random.Random) -> dict:
    """One to three changes of a prompt. Image sizes stay small; limiting them is the host's job."""
    prompt = deepcopy(prompt)
    for _ in range(rng.randint(1, 3)):
        ours = [name for name, one in prompt.items() if one.get("class_type") in OURS] or list(prompt)
        name = rng.choice(ours if rng.random() < 0.8 else list(prompt))
        inputs = prompt[name].get("inputs")
        change = rng.random()
        if change < 0.08:
            prompt[name]["class_type"] = rng.choice(CLASSES)
        elif change < 0.12 and len(prompt) > 2:
            del prompt[name]
        elif change < 0.15:
            prompt[name]["inputs"] = rng.choice(NASTY)
        elif isinstance(inputs, dict) and name != "empty":
            key = rng.choice([*inputs, "unknown"])
            if change < 0.22:
                inputs.pop(key, None)
            elif change < 0.35 and len(inputs) > 1:
                other = rng.choice(list(inputs))
                inputs[key], inputs[other] = inputs[other], inputs.get(key)
            elif change < 0.5:
                inputs[key] = [rng.choice(list(prompt)), rng.randint(0, 2)]
            else:
                inputs[key] = rng.choice(NASTY)
    return prompt


def spared(prompt: dict, info: dict) -> dict:
    """Drop links whose name is not an input of their node: they can crash the host's worker, whatever the nodes.

    It follows such links without validation (an IndexError in its execution list).
    """
    for one in prompt.values():
        inputs, kind = one.get("inputs"), one.get("class_type")
        if isinstance(inputs, dict) and isinstance(kind, str) and kind in info:
            known = {name for section in info[kind]["input"].values() for name in section}
            for name in [name for name in inputs if name not in known and isinstance(inputs[name], list)]:
                del inputs[name]
    return prompt


# --- what the server made of it -----------------------------------------------------------------------------------


def post(server: Server, prompt: dict) -> tuple[int, dict]:
    """The status and the JSON answer to a prompt."""
    try:
        return 200, json.loads(
            server._request("/prompt", json.dumps({"prompt": prompt}).encode(), "application/json")
        )
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else {
            "text": text.decode(errors="replace")
        }


def outcome(server: Server, prompt: dict) -> tuple[str, str]:
    """What became of a prompt, and the message. Long runs are interrupted."""
    status, answer = post(server, prompt)
    if status >= 500:
        return "the host's own error", str(answer)[:300]
    if status != 200 or answer.get("node_errors"):
        if "prompt_id" in answer:  # the other outputs run
            finish(server, answer["prompt_id"])
        return "refused by validation", json.dumps(answer)
    return finish(server, answer["prompt_id"])


def finish(server: Server, prompt_id: str) -> tuple[str, str]:
    try:
        server.wait(prompt_id, timeout=SECONDS)
    except TimeoutError:
        server.interrupt()
        try:
            server.wait(prompt_id, timeout=60)
        except ExecutionFailed as failure:
            return ("interrupted" if failure.event == "execution_interrupted" else "failed", failure.message)
    except ExecutionFailed as failure:
        return "failed", failure.message
    return "ran", ""


def tracebacks(log: str) -> Iterator[tuple[list[str], str]]:
    """The final tracebacks in a log: the files of their frames, and the exception line."""
    for block in re.split(r"^Traceback \(most recent call last\):\n", log, flags=re.M)[1:]:
        lines = block.splitlines()
        end = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), len(lines) - 1)
        rest = "\n".join(lines[end + 1 : end + 4])
        if "direct cause of the following exception" in rest or "another exception occurred" in rest:
            continue  # the traceback after it is the one that was raised
        yield re.findall(r'^  File "([^"]+)"', "\n".join(lines[:end]), flags=re.M), lines[end]


# The pack's folders, as they appear in the log. Not all of ROOT, since the host may be inside it.
PACK = tuple(str(ROOT / folder / "x")[:-1] for folder in ("nodes", "host", "jepa_core"))
MESSAGES = (
    "ValueError",
    "EncoderFileError",
    "EncoderDownloadError",
    "DemoFileError",
    "DJEPAFileError",
    "ReferenceFileError",
)


def careless(log: str) -> list[str]:
    """Tracebacks through this pack that do not end in one of the pack's own messages."""
    found = []
    for files, exception in tracebacks(log):
        ours = [file.startswith(PACK) or "custom_nodes/jepa-guidance" in file for file in files]
        if any(ours) and not (ours[-1] and exception.split(":")[0].split(".")[-1] in MESSAGES):
            found.append("\n".join([*files[-4:], exception]))
    return found


# --- the tests ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzed(encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A separate server, since its log is read, with a small random CLIP."""
    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{encoder_dir.name}": encoder_dir}
    links["models/jepa/clip"] = save_clip(tmp_path_factory.mktemp("clip"))
    with Server(HOST, links, cpu=not torch.cuda.is_available()) as server:
        yield server


def picture(server: Server, prompt: dict) -> np.ndarray:
    entry = server.wait(server.queue(prompt), timeout=120)
    return np.asarray(Image.open(io.BytesIO(server.image(entry["outputs"]["save"]["images"][0]))))


def fuzz(server: Server, count: int, seed: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """Send `count` mutated prompts, of these templates if any are given; returns how often each outcome occurred."""
    info = server.object_info()
    options = info["JEPAEncoderLoader"]["input"]["required"]["encoder"][1]["options"]
    (encoder,) = [name for name in options if name.endswith(".safetensors") and name != CLIP]
    prompts = seeds_of(encoder)
    before = [picture(server, prompt) for prompt in prompts[:3]]
    seeds = [template(name, info, encoder) for name in names] or prompts
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for number in range(count):
        prompt = spared(mutated(rng.choice(seeds), rng), info)
        try:
            what, said = outcome(server, prompt)
        except TimeoutError as error:
            raise AssertionError(f"prompt {number} never ended: {json.dumps(prompt)}") from error
        outcomes[what] += 1
        # every refusal and failure has a message
        assert what in ("ran", "interrupted") or said, (number, prompt)
        assert server.process.poll() is None, (number, prompt)
    found = careless(server.log())
    assert not found, "\n\n".join(found)
    # another output name, so that the server does not use its cache
    for prompt, expected in zip(prompts, before, strict=False):
        server._request(
            "/free", json.dumps({"unload_models": True, "free_memory": True}).encode(), "application/json"
        )
        prompt["sample"]["inputs"][
            "end_percent" if "end_percent" in prompt["sample"]["inputs"] else "denoise"
        ] = 0.9999
        assert np.array_equal(picture(server, prompt), expected)
    return {"prompts": count, **dict(sorted(outcomes.items()))}


def test_a_server_survives_mutated_prompts(fuzzed):
    outcomes = fuzz(fuzzed, 40, seed=1)
    assert outcomes["refused by validation"] > 6
    assert outcomes["ran"] > 3


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_a_server_survives_two_thousand_mutated_prompts(fuzzed):
    begun = time.monotonic()
    outcomes = fuzz(fuzzed, 2000, seed=2)
    RECORD.write_text(json.dumps(outcomes | {"seconds": round(time.monotonic() - begun)}, indent=1) + "\n")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_server_survives_mutated_templates_with_links_to_anything(fuzzed, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "jepa_example.jpg")
    fuzzed.upload(tmp_path / "jepa_example.jpg")
    outcomes = fuzz(
        fuzzed, 300, seed=3, names=["01 First try without a checkpoint", "15 How rare is an image"]
    )
    assert outcomes["ran"] > 5
    assert outcomes["failed"] > 5
    print(outcomes)


CARELESS = """Traceback (most recent call last):
  File "/somewhere/execution.py", line 1, in run
    node()
  File "/base/custom_nodes/jepa-guidance/nodes/guidance.py", line 2, in execute
    work()
{more}{exception}

"""


@pytest.mark.parametrize(
    ("more", "exception", "expected"),
    [
        ("", "ValueError: strength must be smaller", 0),
        ("", "jepa_guidance.jepa_core.encoder.EncoderFileError: x is damaged", 0),
        ("", "TypeError: unsupported operand", 1),
        ('  File "/site-packages/torch/x.py", line 3, in mul\n    y\n', "ValueError: bad split", 1),
    ],
)
def test_tracebacks_without_a_message_are_found_in_the_log(more, exception, expected):
    log = "start\n" + CARELESS.format(more=more, exception=exception) + "end\n"
    assert len(careless(log)) == expected
