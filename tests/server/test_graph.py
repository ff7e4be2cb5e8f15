"""Real graphs on a real server over HTTP: the demo generator and a real encoder, guided and scored."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepa_core.hub import ENCODERS
from tools.server import ExecutionFailed, PromptRefused, Server

DJEPA_DEMO = "avatars (comes with this pack)"
SNAPSHOT = Path(__file__).with_name("schema.json")
NODES = (
    "JEPAEncoderLoader",
    "JEPAGuidedKSampler",
    "JEPAGuidance",
    "JEPAScoreImage",
    "JEPADemoLoader",
    "JEPADemoClass",
    "JEPACombineEncoders",
    "DJEPALoader",
    "DJEPASampler",
    "JEPAPlotTrace",
    "JEPARankImages",
    "JEPARarityMap",
    "JEPAReference",
    "JEPAReferenceFolder",
    "JEPAPromptReference",
    "JEPASaveReference",
    "JEPALoadReference",
    "JEPACombineReferences",
    "JEPARareSearch",
    "JEPAPromptFit",
    "JEPAPromptMap",
    "JEPABoostAndSkip",
    "JEPACads",
    "JEPASelfGuidedMinority",
    "JEPAMinorityPrompt",
    "JEPAScoreFolder",
    "JEPAPickImages",
    "JEPAStrengthStrip",
    "JEPAGuidanceSettings",
)
# What people type into the search for nodes, and a node that it must find.
SEARCHED = {
    **dict.fromkeys(("rare", "rarity", "diversity", "variation", "seed variance"), "JEPAGuidedKSampler"),
    **dict.fromkeys(("unusual", "novelty", "minority", "same face", "strength"), "JEPAGuidance"),
    **dict.fromkeys(("best of", "pick", "sort", "filter", "aesthetic"), "JEPARankImages"),
    **dict.fromkeys(("heatmap", "saliency", "attention", "inpaint mask"), "JEPARarityMap"),
    **dict.fromkeys(("dino", "clip"), "JEPAEncoderLoader"),
    **dict.fromkeys(("gallery", "curate", "csv", "outliers"), "JEPAScoreFolder"),
}
GUIDANCE = {"strength": 2.0, "preset": "custom", "start_percent": 0.2, "end_percent": 1.0}
SETTINGS = {
    **{"criterion": "auto", "interval": 1, "strength_rule": "spread", "schedule": "constant"},
    **{"normalisation": "max", "fit": "squash", "antialias": True, "smooth": False, "keep_appearance": False},
    **{"agree": False, "gradient_path": "denoiser constant", "decoder": "full", "denoiser_calls": "two"},
    **{
        "checkpointing": False,
        "range_finder": "tracked",
        "rank": 3,
        "oversampling": 2,
        "power_iterations": 0,
    },
}
SAMPLING = {"seed": 3, "steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
CONDS = {"positive": ["robot", 0], "negative": ["any", 0], "latent_image": ["empty", 0]}


def node(kind: str, **inputs: Any) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(
    encoder: str, sampler: dict[str, dict], latent: list | None = None, batch: int = 1
) -> dict[str, dict]:
    """A prompt: the demo generator, the nodes `sampler` (by id; LATENT comes from `latent`), and saved images."""
    return {
        "demo": node("JEPADemoLoader"),
        "robot": node("JEPADemoClass", class_name="robot"),
        "any": node("JEPADemoClass", class_name="any"),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=batch),
        # small, to keep the test short; everything else is as users run it
        "encoder": node("JEPAEncoderLoader", encoder=encoder, image_size=56),
        **sampler,
        "decode": node("VAEDecode", samples=latent or ["sample", 0], vae=["demo", 1]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="test"),
    }


def with_settings(name: str, kind: str, inputs: dict[str, Any], changes: dict[str, Any]) -> dict[str, dict]:
    """A guiding node under this name and its settings, with changes of either."""
    technical = {key: changes.get(key, value) for key, value in SETTINGS.items()}
    own = {key: value for key, value in changes.items() if key not in SETTINGS}
    links = {"model": ["demo", 0], "vae": ["demo", 1], "encoder": ["encoder", 0], "settings": ["settings", 0]}
    return {
        name: node(kind, **links | GUIDANCE | inputs | own),
        "settings": node("JEPAGuidanceSettings", **technical),
    }


def guided(**changes: Any) -> dict[str, dict]:
    return with_settings("sample", "JEPAGuidedKSampler", CONDS | SAMPLING, changes)


def strip(**changes: Any) -> dict:
    """JEPAStrengthStrip as prompts were saved before JEPAGuidanceSettings: with its settings on it."""
    own = {name: value for name, value in (GUIDANCE | SETTINGS).items() if name != "strength"}
    own |= {"model": ["demo", 0], "vae": ["demo", 1], "encoder": ["encoder", 0], "strengths": "-1, 0, 2"}
    return node("JEPAStrengthStrip", **CONDS, **SAMPLING, **own | changes)


def stock(model: list | None = None, **changes: Any) -> dict[str, dict]:
    return {"sample": node("KSampler", model=model or ["demo", 0], **CONDS, **SAMPLING | changes)}


def patch(**changes: Any) -> dict[str, dict]:
    return with_settings("patch", "JEPAGuidance", {}, changes)


def search(**changes: Any) -> dict:
    """JEPARareSearch, with one candidate in each call of the denoiser."""
    own = {"model": ["demo", 0], "vae": ["demo", 1], "encoder": ["encoder", 0], "candidates": 4, "count": 2}
    own |= {
        "keep": "rarest",
        "looks": "0.5",
        "by": "score",
        "variety": "none",
        "amount": 1.0,
        "rows_at_once": 1,
    }
    own |= {"floor_kind": "none", "floor": 50.0, "start_at_step": 0, "end_at_step": 10000, "add_noise": True}
    return node("JEPARareSearch", **CONDS, **SAMPLING | own | changes)


def prompted(**inputs: Any) -> dict:
    own = {"model": ["demo", 0], "vae": ["demo", 1], "encoder": ["encoder", 0], "first_seed": 5, "cfg": 2.0}
    own |= {"sampler_name": "euler", "scheduler": "normal", "fit": "squash", "antialias": True}
    return node("JEPAPromptReference", **CONDS, **own | inputs)


def scored_folder(**inputs: Any) -> dict:
    """JEPAScoreFolder of the output folder, not of those within it."""
    own = {"folder": "output", "subfolder": "", "with_subfolders": False, "count": 2, "mode": "projected"}
    own |= {"top_k": 2, "fit": "squash", "antialias": True, "by": "score", "most_files": 3}
    return node("JEPAScoreFolder", **own | inputs)


def score(**inputs: Any) -> dict:
    return node("JEPAScoreImage", images=["decode", 0], fit="squash", antialias=True, **inputs)


@pytest.fixture(scope="module")
def encoder(server: Server) -> str:
    options = server.object_info()["JEPAEncoderLoader"]["input"]["required"]["encoder"][1]["options"]
    (local,) = [name for name in options if name.endswith(".safetensors")]
    return local


@pytest.fixture(scope="module")
def run(server: Server):
    """Run a prompt to its end and return its images as arrays (N, 128, 128, 3) uint8."""
    return lambda prompt: saved_images(server, server.wait(server.queue(prompt), timeout=300)["outputs"])


def saved_images(server: Server, outputs: dict) -> np.ndarray:
    images = outputs["save"]["images"]
    return np.stack([np.asarray(Image.open(io.BytesIO(server.image(ref)))) for ref in images])


def alone(prompt: dict, latents: list, place: int) -> dict:
    """The prompt with one of a batch of latents decoded and saved."""
    one = {"alone": node("LatentFromBatch", samples=latents, batch_index=place, length=1)}
    return prompt | one | {"decode": node("VAEDecode", samples=["alone", 0], vae=["demo", 1])}


def schema_of(info: dict[str, Any]) -> dict[str, Any]:
    """The schema that saved workflows depend on: ids, order, types, defaults and ranges; not menus or tooltips."""
    inputs = []
    for section in ("required", "optional"):
        for name in info["input_order"].get(section, []):
            kind, *rest = info["input"][section][name]
            options = rest[0] if rest else {}
            kept = {key: options[key] for key in ("default", "min", "max", "step") if key in options}
            inputs.append([name, section, kind if isinstance(kind, str) else "COMBO", kept])
    return {"inputs": inputs, "outputs": list(zip(info["output_name"], info["output"], strict=True))}


def test_ids_order_and_defaults_are_the_frozen_ones(server):
    info = server.object_info()
    found = json.loads(json.dumps({name: schema_of(info[name]) for name in NODES}))
    assert found == json.loads(SNAPSHOT.read_text()), (
        "A node's schema changed. Saved workflows depend on ids and order: append, never reorder or rename. "
        "If the change only appends, update tests/server/schema.json."
    )


def test_every_input_and_output_has_a_tooltip(server):
    info = server.object_info()
    for name in NODES:
        for section in info[name]["input"].values():
            for key, (_, *rest) in section.items():
                if key != "unique_id" and name != "hidden" and isinstance(rest, list) and rest:
                    assert rest[0].get("tooltip"), f"{name}.{key}"
        assert all(info[name]["output_tooltips"]), name


def test_every_node_is_found_by_the_words_that_people_use(server):
    info = server.object_info()
    words = {name: info[name]["search_aliases"] for name in NODES}
    assert all(words.values())
    for found in words.values():
        assert len(set(found)) == len(found)
        assert all(word == word.strip() != "" for word in found)
    assert not {word: name for word, name in SEARCHED.items() if word not in words[name]}


def test_the_same_seed_gives_another_image_when_guided_and_the_same_one_again(run, encoder):
    plain = run(graph(encoder, stock()))
    first = run(graph(encoder, guided()))
    assert first.shape == plain.shape == (1, 128, 128, 3)
    difference = np.abs(first.astype(int) - plain.astype(int))
    assert difference.max(axis=(1, 2, 3)).min() > 10
    # another end of the range that guides the same steps makes the server run again instead of using its cache
    again = run(graph(encoder, guided(end_percent=0.999)))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("off", [{"strength": 0.0}, {"start_percent": 0.5, "end_percent": 0.5}])
def test_strength_zero_or_an_empty_range_is_the_stock_image_bit_for_bit(run, encoder, off):
    plain = run(graph(encoder, stock()))
    assert np.array_equal(run(graph(encoder, guided(**off))), plain)
    assert np.array_equal(run(graph(encoder, {**patch(**off), **stock(["patch", 0])})), plain)


def test_a_strip_holds_the_images_of_each_strength_bit_for_bit(run, server, encoder):
    one = graph(encoder, {"sample": strip()}, latent=["sample", 2])
    one |= {"strip": node("SaveImage", images=["sample", 1], filename_prefix="strip")}
    outputs = server.wait(server.queue(one), timeout=300)["outputs"]
    assert saved_images(server, outputs).shape == (3, 128, 128, 3)
    (sheet,) = outputs["strip"]["images"]
    assert Image.open(io.BytesIO(server.image(sheet))).width == 3 * 256 + 4 * 16
    for place, strength in enumerate((-1.0, 0.0, 2.0)):
        other = graph(encoder, guided(strength=strength) if strength else stock())
        # the VAE's rounding depends on how many it decodes together
        assert np.array_equal(run(other)[0], run(alone(one, ["sample", 2], place))[0])


def test_the_patch_guides_the_stock_sampler_like_the_guided_node(run, encoder):
    assert np.array_equal(
        run(graph(encoder, {**patch(), **stock(["patch", 0])})), run(graph(encoder, guided()))
    )


def test_the_patch_guides_sampler_custom_advanced(run, encoder):
    advanced = {
        **patch(),
        "guider": node(
            "CFGGuider", model=["patch", 0], positive=["robot", 0], negative=["any", 0], cfg=SAMPLING["cfg"]
        ),
        "noise": node("RandomNoise", noise_seed=SAMPLING["seed"]),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["patch", 0], scheduler="normal", steps=4, denoise=1.0),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["euler", 0],
            sigmas=["sigmas", 0],
            latent_image=["empty", 0],
        ),
    }
    assert np.array_equal(run(graph(encoder, advanced)), run(graph(encoder, guided())))


def test_through_the_denoiser_is_another_image(run, encoder):
    through = run(graph(encoder, guided(gradient_path="through denoiser")))
    assert not np.array_equal(through, run(graph(encoder, guided())))


COMPARED = {
    "JEPABoostAndSkip": {"gamma": 2.0, "skip": 0},
    "JEPACads": {"scale": 0.5, "tau1": 0.6, "tau2": 0.9, "mix": 1.0, "seed": 1},
    "JEPASelfGuidedMinority": {
        **{"strength": 1.0, "interval": 1, "level": 0.8},
        **{"start_percent": 0.0, "end_percent": 1.0},
    },
}


@pytest.mark.parametrize("method", COMPARED)
def test_a_compared_method_changes_the_images_of_the_stock_sampler(run, encoder, method):
    patched = {"patch": node(method, model=["demo", 0], **COMPARED[method]), **stock(["patch", 0])}
    assert not np.array_equal(run(graph(encoder, patched)), run(graph(encoder, stock())))


@pytest.mark.parametrize("path", ["denoiser constant", "through denoiser"])
def test_a_model_is_the_stock_one_again_once_the_patch_is_removed_or_bypassed(run, encoder, path):
    plain = graph(encoder, stock())
    before = run(plain)
    patched = graph(encoder, patch(gradient_path=path, denoiser_calls="two") | stock(model=["patch", 0]))
    assert not np.array_equal(run(patched), before)
    # the host keeps the results of one prompt only, so this one is sampled again, with the model that was patched
    assert np.array_equal(run(plain), before)


def test_a_batch_with_a_mask_is_guided_inside_the_mask_only(run, encoder):
    masked = {
        "none": node("SolidMask", value=0.0, width=128, height=128),
        "half": node("SolidMask", value=1.0, width=64, height=128),
        "mask": node(
            "MaskComposite", destination=["none", 0], source=["half", 0], x=64, y=0, operation="add"
        ),
        "first": stock()["sample"],
        "masked": node("SetLatentNoiseMask", samples=["first", 0], mask=["mask", 0]),
    }

    def inpainted(sampler: dict[str, dict]) -> np.ndarray:
        sampler["sample"]["inputs"] |= {"latent_image": ["masked", 0], "seed": 4}
        return run(graph(encoder, masked | sampler, batch=2))

    found, kept = inpainted(guided()), run(graph(encoder, stock(), batch=2))
    assert found.shape == kept.shape == (2, 128, 128, 3)
    change = np.abs(found.astype(float) - kept).mean((1, 3))  # of each column
    assert (change[:, 80:].mean(1) > 10).all()
    assert (change[:, :48].mean(1) < 0.2 * change[:, 80:].mean(1)).all()
    assert not np.array_equal(inpainted(stock()), found)


@pytest.mark.parametrize(("method", "off"), [("JEPACads", "scale"), ("JEPASelfGuidedMinority", "strength")])
def test_a_compared_method_at_0_is_the_stock_image_bit_for_bit(run, encoder, method, off):
    inputs = COMPARED[method] | {off: 0.0}
    patched = {"patch": node(method, model=["demo", 0], **inputs), **stock(["patch", 0])}
    assert np.array_equal(run(graph(encoder, patched)), run(graph(encoder, stock())))


def test_every_image_of_a_batch_is_scored_and_ranked(server, encoder):
    prompt = graph(encoder, stock(), batch=2)
    prompt["encoder"]["inputs"]["image_size"] = 28
    prompt["score"] = score(encoder=["encoder", 0], mode="exact", top_k=32)
    prompt["show"] = node("PreviewAny", source=["score", 0])
    entry = server.wait(server.queue(prompt), timeout=300)
    (text,) = entry["outputs"]["score"]["text"]
    lines = text.splitlines()
    assert lines[0].startswith("rarest first; exact, ")
    assert len(lines) == 3
    shown = [float(value) for value in entry["outputs"]["show"]["text"]]
    ranked = [float(line.rsplit(" ", 1)[1]) for line in lines[1:]]
    assert ranked == sorted(ranked)
    assert sorted(shown) == pytest.approx(ranked, abs=0.01)
    assert all(-2000 < score < 0 for score in shown)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strength": 1e9}, "1000000000.0 bigger than max of 10"),
        ({"strength": "0,5"}, "could not convert string to float"),
        ({"sampler_name": "nope"}, "not in list"),
    ],
)
def test_a_value_out_of_its_range_gets_one_error_on_its_input_before_anything_runs(
    server, encoder, changes, reason
):
    prompt = graph(encoder, guided())
    prompt["sample"]["inputs"] |= changes
    with pytest.raises(PromptRefused) as refused:
        server.queue(prompt)
    (error,) = refused.value.answer["node_errors"]["sample"]["errors"]
    assert {error["extra_info"]["input_name"]} == changes.keys()
    assert reason in f"{error['message']} {error['details']}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"start_percent": 0.8, "end_percent": 0.3},
            "start_percent 0.8 is larger than end_percent 0.3; swap",
        ),
        (
            {"sampler_name": "dpm_adaptive"},
            "does not support the sampler 'dpm_adaptive': it chooses its steps",
        ),
    ],
)
def test_settings_that_do_not_go_together_get_one_error_before_the_node_begins(
    server, encoder, changes, reason
):
    prompt = graph(encoder, guided())
    prompt["sample"]["inputs"] |= changes
    with pytest.raises(ExecutionFailed) as failed:
        server.wait(server.queue(prompt), timeout=60)
    assert reason in failed.value.message
    assert failed.value.node_id == "sample"


def test_a_rank_larger_than_the_embedding_is_refused_with_a_message(server, encoder):
    prompt = graph(encoder, guided())
    prompt["score"] = node(
        "JEPAScoreImage", images=["decode", 0], encoder=["encoder", 0], mode="top-k", top_k=256
    )
    prompt["settings"]["inputs"]["rank"] = 257
    with pytest.raises(Exception, match="rank"):
        server.queue(prompt)


def test_an_encoder_that_is_not_in_the_menu_is_refused(server):
    with pytest.raises(Exception, match="encoder"):
        server.queue(graph("../../secret.safetensors", guided()))


def test_an_encoder_that_cannot_be_fetched_names_file_and_folder(server):
    prompt = graph("dinov2-with-registers-small", guided())
    with pytest.raises(Exception, match=r"model\.safetensors") as error:
        server.wait(server.queue(prompt), timeout=120)
    assert "dinov2-with-registers-small" in str(error.value)
    assert "MB" in str(error.value)


def test_the_server_runs_on_after_a_refusal(run, encoder):
    assert run(graph(encoder, guided())).shape == (1, 128, 128, 3)


def test_two_guides_a_judge_and_scores_under_each(server, run, encoder):
    """The same file at two sizes: two encoders that share the weights."""
    pair = {
        "other": node("JEPAEncoderLoader", encoder=encoder, image_size=42),
        "both": node(
            "JEPACombineEncoders",
            encoder_1=["encoder", 0],
            weight_1=1.0,
            encoder_2=["other", 0],
            weight_2=3.0,
        ),
    }
    alone = run(graph(encoder, guided(judge=["other", 0]) | pair))
    assert np.array_equal(alone, run(graph(encoder, guided(end_percent=0.99))))
    together = guided(encoder=["both", 0], judge=["both", 0]) | pair
    assert not np.array_equal(run(graph(encoder, together)), alone)
    prompt = graph(encoder, stock() | pair, batch=2)
    prompt["score"] = score(encoder=["both", 0], mode="top-k", top_k=4)
    prompt["each"] = node("PreviewAny", source=["score", 2])
    entry = server.wait(server.queue(prompt), timeout=300)
    (text,) = entry["outputs"]["score"]["text"]
    rows = {int(line.split()[2].rstrip(":")): line for line in text.splitlines()[1:]}
    assert len(rows) == 2
    each = [float(value) for value in entry["outputs"]["each"]["text"]]
    assert len(each) == 4
    for index in (0, 1):
        first, second = each[index], each[2 + index]
        assert f"{0.25 * first + 0.75 * second:.2f} ({first:.2f}, {second:.2f})" in rows[index]


def test_weights_for_non_commercial_use_are_not_downloaded_without_consent(server, encoder):
    prompt = graph(encoder, guided())
    prompt["encoder"]["inputs"]["encoder"] = "ijepa_vith14_1k"
    with pytest.raises(ExecutionFailed) as failed:
        server.wait(server.queue(prompt), timeout=60)
    assert "CC-BY-NC-4.0: not for commercial use" in str(failed.value)
    assert "non_commercial" in str(failed.value)


def test_the_menu_shows_sizes_and_licences_before_any_download(server):
    section = server.object_info()["JEPAEncoderLoader"]["input"]
    options = section["required"]["encoder"][1]
    assert list(options["jepa_installed"]) == options["options"]
    for name, source in ENCODERS.items():
        assert options["jepa_installed"][name] == {
            "installed": False,
            "megabytes": source.megabytes,
            "gated": source.gated,
            "commercial": source.commercial,
        }
    assert section["optional"]["non_commercial"][1]["default"] is False


def test_an_encoder_that_is_not_here_is_refused_by_name_before_the_run(server, encoder):
    prompt = graph(encoder, stock())
    prompt["encoder"]["inputs"]["encoder"] = "theirs/model.safetensors"
    prompt["score"] = score(encoder=["encoder", 0], mode="projected", top_k=2)
    with pytest.raises(PromptRefused) as refused:
        server.queue(prompt)
    (error,) = refused.value.answer["node_errors"]["encoder"]["errors"]
    assert error["extra_info"]["input_name"] == "encoder"
    assert "There is no encoder 'theirs/model.safetensors' here" in error["details"]
    assert f"or choose {encoder}, which is installed" in error["details"]


DJEPA = {"class_name": "robot", "seed": 5, "batch_size": 2, "steps": 4, "cfg": 2.0, "temperature": 1.0}


def djepa(**changes: Any) -> dict[str, dict]:
    """A prompt: an image of this pack's D-JEPA, decoded and saved."""
    return {
        "loader": node("DJEPALoader", model=DJEPA_DEMO),
        "draw": node("DJEPASampler", djepa=["loader", 0], **DJEPA | {"denoising_steps": 4} | changes),
        "decode": node("VAEDecode", samples=["draw", 0], vae=["loader", 1]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="test"),
    }


def test_a_djepa_draws_the_same_images_again_and_others_for_another_seed(run):
    first = run(djepa())
    assert first.shape == (2, 128, 128, 3)
    (second,) = run(djepa(seed=6, batch_size=1))
    # image 1 of seed 5 is the image of seed 6, up to rounding that depends on the batch size
    assert np.abs(first[1].astype(int) - second.astype(int)).max() <= 2
    assert np.abs(first[0].astype(int) - second.astype(int)).max() > 10
    warm = run(djepa(temperature=1.2))
    assert not np.array_equal(warm, first)


def test_a_djepa_refuses_a_class_that_its_model_does_not_have(server):
    with pytest.raises(ExecutionFailed, match="class_name 'dragon' is not a class of avatars"):
        server.wait(server.queue(djepa(class_name="dragon")), timeout=60)


@pytest.mark.parametrize(
    ("name", "value"), [("cfg", -1), ("temperature", "inf"), ("steps", 0), ("denoising_steps", 1001)]
)
def test_a_djepa_refuses_numbers_out_of_range_before_anything_runs(server, name, value):
    with pytest.raises(PromptRefused):
        server.queue(djepa(**{name: value}))


def test_a_trace_is_drawn_as_a_picture(server, encoder):
    prompt = graph(encoder, guided()) | {"chart": node("JEPAPlotTrace", trace=["sample", 1])}
    entry = server.wait(server.queue(prompt), timeout=300)
    (shown,) = entry["outputs"]["chart"]["images"]
    chart = np.asarray(Image.open(io.BytesIO(server.image(shown))))
    assert chart.shape[1] == 1024
    blue = (chart[..., :3] == (0, 0x72, 0xB2)).all(-1)
    assert blue.sum() > 200  # a curve over several guided steps


def test_the_rarest_of_a_batch_are_kept_with_their_scores_and_indices(server, encoder):
    keep = {"images": ["decode", 0], "encoder": ["encoder", 0], "count": 2, "mode": "projected"}
    prompt = djepa(batch_size=4) | {
        "encoder": node("JEPAEncoderLoader", encoder=encoder, image_size=56),
        "rank": node("JEPARankImages", **keep, keep="rarest"),
        "saved": node("SaveImage", images=["rank", 0], filename_prefix="rank"),
        "score": score(encoder=["encoder", 0], mode="projected", top_k=1),
        **{f"out{output}": node("PreviewAny", source=["rank", output]) for output in (1, 2)},
    }
    outputs = server.wait(server.queue(prompt), timeout=300)["outputs"]
    ranked = [line.split() for line in outputs["score"]["text"][0].splitlines()[1:]]
    expected = [int(words[2].rstrip(":")) for words in ranked[:2]]
    assert [int(text) for text in outputs["out2"]["text"]] == expected
    scores = [float(text) for text in outputs["out1"]["text"]]
    assert scores == pytest.approx([float(words[4]) for words in ranked[:2]], abs=0.01)
    every, kept = (
        [np.asarray(Image.open(io.BytesIO(server.image(ref)))) for ref in outputs[name]["images"]]
        for name in ("save", "saved")
    )
    assert all(np.array_equal(kept[place], every[index]) for place, index in enumerate(expected))
    assert len(outputs["rank"]["images"]) == 1


def test_latents_go_along_with_the_kept_images_and_masks_that_are_missing_stop_only_who_needs_them(
    server, encoder
):
    rank = {"images": ["decode", 0], "encoder": ["encoder", 0], "count": 2, "mode": "projected"}
    prompt = djepa(batch_size=4) | {
        "encoder": node("JEPAEncoderLoader", encoder=encoder, image_size=56),
        "rank": node("JEPARankImages", **rank, keep="rarest", latents=["draw", 0]),
        "kept": node("SaveImage", images=["rank", 0], filename_prefix="rank"),
        "decoded": node("VAEDecode", samples=["rank", 5], vae=["loader", 1]),
        "again": node("SaveImage", images=["decoded", 0], filename_prefix="rank"),
        "chart": node("SaveImage", images=["rank", 8], filename_prefix="rank"),
    }
    masked = {
        "mask": node("MaskToImage", mask=["rank", 6]),
        "stopped": node("SaveImage", images=["mask", 0], filename_prefix="rank"),
    }
    outputs = server.wait(server.queue(prompt | masked), timeout=300)["outputs"]
    assert "stopped" not in outputs
    kept, again = (
        [np.asarray(Image.open(io.BytesIO(server.image(ref)))).astype(int) for ref in outputs[name]["images"]]
        for name in ("kept", "again")
    )
    assert len(kept) == 2
    # rounding depends on the batch size
    assert max(np.abs(one - other).max() for one, other in zip(kept, again, strict=True)) <= 2
    assert len(outputs["chart"]["images"]) == 1


def test_a_rarity_map_is_drawn_and_its_mask_can_be_used(server, encoder):
    prompt = djepa(batch_size=2) | {
        "encoder": node("JEPAEncoderLoader", encoder=encoder, image_size=56),
        "map": node(
            "JEPARarityMap",
            images=["decode", 0],
            encoder=["encoder", 0],
            opacity=0.6,
            fit="squash",
            antialias=True,
        ),
        "seen": node("MaskToImage", mask=["map", 1]),
        "masks": node("SaveImage", images=["seen", 0], filename_prefix="mask"),
    }
    outputs = server.wait(server.queue(prompt), timeout=300)["outputs"]
    assert len(outputs["map"]["images"]) == 2
    masks = [np.asarray(Image.open(io.BytesIO(server.image(ref)))) for ref in outputs["masks"]["images"]]
    assert all(mask.min() == 0 and mask.max() == 255 for mask in masks)
    assert not np.array_equal(*masks)
    # beside a reference, of the same pictures
    view = {"fit": "squash", "antialias": True}
    judged = {"images": ["decode", 0], "encoder": ["encoder", 0], **view}
    prompt["reference"] = node("JEPAReference", **judged, mode="no scores", top_k=1)
    prompt["map"]["inputs"]["reference"] = ["reference", 0]
    outputs = server.wait(server.queue(prompt), timeout=300)["outputs"]
    beside = [np.asarray(Image.open(io.BytesIO(server.image(ref)))) for ref in outputs["masks"]["images"]]
    assert all(mask.min() == 0 and mask.max() == 255 for mask in beside)
    assert not any(np.array_equal(*pair) for pair in zip(masks, beside, strict=True))


def test_a_score_is_placed_among_reference_images(server, encoder):
    mode = {"mode": "projected", "top_k": 1}
    reference = node(
        "JEPAReference",
        images=["decode", 0],
        encoder=["encoder", 0],
        fit="squash",
        antialias=True,
        **mode,
    )
    prompt = djepa(batch_size=3) | {
        "encoder": node("JEPAEncoderLoader", encoder=encoder, image_size=56),
        "reference": reference,
        "score": score(encoder=["encoder", 0], **mode, reference=["reference", 0]),
        "rarer": node("PreviewAny", source=["score", 3]),
    }
    outputs = server.wait(server.queue(prompt), timeout=300)["outputs"]
    # the reference is the images themselves
    assert sorted(float(text) for text in outputs["rarer"]["text"]) == pytest.approx([100 / 6, 50, 500 / 6])
    assert "1. image" in outputs["score"]["text"][0]
    assert "rarer than 83 % of 3 reference images" in outputs["score"]["text"][0]


def test_what_guidance_did_is_written_into_the_saved_image(server, encoder):
    noted = metadata_of(server, graph(encoder, guided(), batch=2))
    (entry,) = json.loads(noted["jepa_guidance"]).values()
    assert entry["settings"]["strength"] == GUIDANCE["strength"]
    assert entry["settings"]["seed"] == SAMPLING["seed"]
    steps = entry["trace"]["steps"]
    assert [step["guided"] for step in steps] == [False, True, True, True]
    assert all(len(step["score"]) == 2 for step in steps[1:])
    assert entry["trace"]["total"] == 4


def test_each_run_of_a_list_of_latents_is_in_the_saved_images(server, encoder):
    apart = {"apart": node("RebatchLatents", latents=["empty", 0], batch_size=1)}
    prompt = graph(encoder, apart | guided(), batch=2)
    prompt["sample"]["inputs"]["latent_image"] = ["apart", 0]
    queued = server.queue(prompt, {"extra_pnginfo": {"workflow": {"nodes": []}}})
    saved = server.wait(queued, timeout=300)["outputs"]["save"]["images"]
    noted = [json.loads(Image.open(io.BytesIO(server.image(one))).text["jepa_guidance"]) for one in saved]
    assert len(noted) == 2
    assert noted[0] == noted[1]
    assert list(noted[0]) == ["sample, run 1", "sample, run 2"]
    one, other = ([step["score"] for step in run["trace"]["steps"][1:]] for run in noted[0].values())
    assert one != other
    assert all(len(score) == 1 for score in one + other)


@pytest.mark.parametrize("kind", ["guided", "search"])
def test_an_image_of_a_result_from_the_cache_is_saved_with_what_guidance_did(server, encoder, kind):
    """As the page queues it again with another file name: the sampler does not run, and its result is the same."""
    # settings of no other test, so that the first run is not from the cache
    sampler = guided(end_percent=0.97) if kind == "guided" else {"sample": search(amount=0.97)}
    first = graph(encoder, sampler)
    again = json.loads(json.dumps(first))
    again["save"]["inputs"]["filename_prefix"] = "again"
    other = json.loads(json.dumps(first))
    other["robot"]["inputs"]["class_name"] = "bust"
    notes = [json.loads(metadata_of(server, prompt)["jepa_guidance"]) for prompt in (first, again, other)]
    assert notes[0] == notes[1]
    assert notes[2].keys() == notes[0].keys()
    assert notes[2] != notes[0]


def test_a_run_that_is_not_guided_says_so_in_the_saved_image(server, encoder):
    noted = metadata_of(server, graph(encoder, guided(strength=0.0)))
    (entry,) = json.loads(noted["jepa_guidance"]).values()
    assert entry["trace"]["steps"] == []
    assert "off" in entry["trace"]["message"]


def metadata_of(server: Server, prompt: dict) -> dict[str, str]:
    """The metadata of the first image that a prompt saves, queued as the page does."""
    queued = server.queue(prompt, {"extra_pnginfo": {"workflow": {"nodes": []}}})
    (first, *_) = server.wait(queued, timeout=300)["outputs"]["save"]["images"]
    return Image.open(io.BytesIO(server.image(first))).text


def test_the_pictures_of_a_prompt_are_those_of_its_seeds_and_become_a_file(server, encoder, run):
    mode = {"mode": "projected", "top_k": 1}
    reference = {
        "prompted": prompted(count=2, steps=4, **mode),
        "saved": node("JEPASaveReference", reference=["prompted", 0], filename="robots", overwrite=True),
        "preview": node("SaveImage", images=["prompted", 1], filename_prefix="reference"),
    }
    prompt = graph(encoder, stock(seed=6)) | reference
    outputs = server.wait(server.queue(prompt), timeout=300)["outputs"]
    pictures = [np.asarray(Image.open(io.BytesIO(server.image(ref)))) for ref in outputs["preview"]["images"]]
    assert np.array_equal(run(graph(encoder, stock(seed=6)))[0], pictures[1])
    loaded = {
        "loaded": node("JEPALoadReference", file="robots.safetensors"),
        "both": node(
            "JEPACombineReferences", reference_1=["loaded", 0], reference_2=["loaded", 0], keep=3, keep_seed=1
        ),
        "score": score(encoder=["encoder", 0], **mode, reference=["both", 0]),
        "rank": node(
            "JEPARankImages",
            images=["decode", 0],
            encoder=["encoder", 0],
            keep="rarest",
            count=1,
            mode="exact",
            reference=["loaded", 0],
            by="novelty",
        ),
    }
    loaded["loaded"]["inputs"]["file"] = outputs["saved"]["text"][0].split()[-1]
    found = server.wait(server.queue(graph(encoder, stock()) | loaded), timeout=300)["outputs"]
    # two pictures, each of which is there again
    assert "% of 2 reference images, more novel than" in found["score"]["text"][0]
    assert len(found["rank"]["images"]) == 1


def test_a_reference_from_a_folder_is_made_again_when_the_folder_changes(server, encoder):
    made = {"encoder": ["encoder", 0], "mode": "no scores", "top_k": 1, "fit": "squash", "antialias": True}
    prompt = djepa(batch_size=2) | {
        "encoder": node("JEPAEncoderLoader", encoder=encoder, image_size=56),
        "images": node("SaveImage", images=["decode", 0], filename_prefix="folder/picture"),
    }
    folder = {
        "encoder": prompt["encoder"],
        "folder": node(
            "JEPAReferenceFolder", folder="output", subfolder="folder", count=9, with_subfolders=False, **made
        ),
        "text": node("PreviewAny", source=["folder", 1]),
    }

    def text() -> str:
        shown = server.wait(server.queue(folder), timeout=300)["outputs"]["text"]["text"][0]
        return shown.splitlines()[0]

    server.wait(server.queue(prompt), timeout=300)
    assert [text(), text()] == ["2 reference images"] * 2
    prompt["images"]["inputs"]["filename_prefix"] = "folder/more"
    server.wait(server.queue(prompt), timeout=300)
    assert text() == "4 reference images"


def test_a_folder_is_scored_once_and_gives_its_rarest(server, encoder):
    prompt = djepa(batch_size=3) | {
        "encoder": node("JEPAEncoderLoader", encoder=encoder, image_size=56),
        "images": node("SaveImage", images=["decode", 0], filename_prefix="scored/picture"),
    }
    own = {"subfolder": "scored", "most_files": 100}
    folder = {
        "encoder": prompt["encoder"],
        "scored": scored_folder(encoder=["encoder", 0], **own),
        "kept": node("PreviewImage", images=["scored", 0]),
        "csv": node("PreviewAny", source=["scored", 3]),
        "text": node("PreviewAny", source=["scored", 6]),
        "again": scored_folder(encoder=["encoder", 0], **own, by="novelty", reference=["scored", 5]),
        "novelty": node("PreviewAny", source=["again", 4]),
    }

    def outputs() -> dict[str, Any]:
        return server.wait(server.queue(folder), timeout=300)["outputs"]

    server.wait(server.queue(prompt), timeout=300)
    first = outputs()
    assert len(first["kept"]["images"]) == 2
    assert len(first["scored"]["images"]) == 1  # the sheet
    assert first["text"]["text"][0].startswith("3 pictures, 3 scored now")
    header, *rows = first["csv"]["text"][0].splitlines()
    assert header == "file,score,novelty,more_novel_than,width,height,bytes,error,hash"
    scores = [float(row.split(",")[1]) for row in rows]
    assert scores == sorted(scores)
    pictures = json.loads(first["novelty"]["text"][0])["pictures"]
    assert {row["file"] for row in pictures} == {f"scored/picture_{number:05}_.png" for number in (1, 2, 3)}
    assert all(row["novelty"] > 0 for row in pictures)  # each beside the others, not beside itself
    prompt["images"]["inputs"]["filename_prefix"] = "scored/more"
    server.wait(server.queue(prompt), timeout=300)
    # the same images with another name and prompt in the file: other contents
    assert outputs()["text"]["text"][0].startswith("6 pictures, 3 scored now")


def test_a_search_keeps_images_of_the_stock_sampler(server, run, encoder):
    prompt = graph(encoder, {"sample": search()})
    prompt["places"] = node("PreviewAny", source=["sample", 2])
    prompt["scores"] = node("PreviewAny", source=["sample", 1])
    kept = run(prompt)
    outputs = server.wait(server.queue(prompt), timeout=300)["outputs"]
    places = [int(text) for text in outputs["places"]["text"]]
    scores = [float(text) for text in outputs["scores"]["text"]]
    assert len(places) == len(kept) == 2
    assert scores == sorted(scores)
    # alone, with the noise of its place
    whole = graph(encoder, stock(), batch=4)
    whole["sample"]["inputs"]["latent_image"] = ["place", 0]
    whole["place"] = node("LatentFromBatch", samples=["empty", 0], batch_index=places[0], length=1)
    # the VAE's rounding depends on how many it decodes together
    assert np.array_equal(run(whole)[0], run(alone(prompt, ["sample", 0], 0))[0])
    assert np.abs(run(whole)[0].astype(int) - kept[0].astype(int)).max() <= 1


def test_a_search_writes_what_it_did_into_the_saved_image(server, encoder):
    (noted,) = json.loads(
        metadata_of(server, graph(encoder, {"sample": search(seed=4)}))["jepa_guidance"]
    ).values()
    assert noted["settings"]["candidates"] == 4
    assert [one["index"] for one in noted["trace"]["candidates"]] == [0, 1, 2, 3]
    assert len(noted["trace"]["kept"]) == 2


def test_a_search_begins_with_the_finds_of_another(server, encoder):
    prompt = graph(encoder, {"first": search(), "sample": search()}, latent=["sample", 0])
    prompt["sample"]["inputs"] |= {"latent_image": ["first", 0], "candidates": 2, "count": 1, "denoise": 0.5}
    prompt["places"] = node("PreviewAny", source=["sample", 2])
    outputs = server.wait(server.queue(prompt), timeout=300)["outputs"]
    assert len(outputs["save"]["images"]) == 1
    assert outputs["places"]["text"][0] in ("0", "1")
