"""Untrusted names, links and values: refused with a message, or harmless."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jepa_guidance.host.encoders.menu import encoder_file, encoder_names
from jepa_guidance.host.guidance.patch import apply_guidance
from jepa_guidance.host.scoring.scores import score_images
from jepa_guidance.nodes.combine_encoders import JEPACombineEncoders
from jepa_guidance.nodes.demo import JEPADemoClass
from jepa_guidance.nodes.encoder_loader import JEPAEncoderLoader
from jepa_guidance.nodes.guidance import JEPAGuidance
from jepa_guidance.nodes.guidance_inputs import check_guidance, config_of, guidance_inputs
from jepa_guidance.nodes.guidance_presets import PRESETS
from jepa_guidance.nodes.guidance_settings import JEPAGuidanceSettings, settings_inputs
from jepa_guidance.nodes.guided_ksampler import JEPAGuidedKSampler
from jepa_guidance.nodes.input_checks import check_values, value_message
from jepa_guidance.nodes.sampling_inputs import sampler_message
from jepa_guidance.nodes.score_image import JEPAScoreImage
from safetensors.torch import save_file

from tests.host.guide import reference_of

QUICK = settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# --- names and links ----------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model folder with one file, next to a folder that must not be read."""
    folder = tmp_path / "models" / "jepa"
    folder.mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for place in (folder, tmp_path / "secret"):
        save_file({"x": torch.zeros(1)}, place / "weights.safetensors")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "jepa", ([str(folder)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


def test_a_linked_file_is_not_read(models):
    (models / "linked.safetensors").symlink_to(models.parents[1] / "secret" / "weights.safetensors")
    assert "linked.safetensors" in encoder_names()  # the host lists it
    with pytest.raises(
        ValueError, match=r"linked\.safetensors is a link that leads out of the model folders"
    ):
        encoder_file("linked.safetensors")
    assert encoder_file("weights.safetensors") == models / "weights.safetensors"


def test_a_file_in_a_linked_folder_is_not_read(models):
    (models / "linked").symlink_to(models.parents[1] / "secret")
    with pytest.raises(ValueError, match="leads out of the model folders"):
        encoder_file(os.path.join("linked", "weights.safetensors"))


def test_a_linked_configuration_is_not_read(models):
    (models / "one").mkdir()
    save_file({"x": torch.zeros(1)}, models / "one" / "model.safetensors")
    (models / "one" / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"config\.json is a link"):
        encoder_file(os.path.join("one", "model.safetensors"))


def test_a_configuration_that_links_to_itself_counts_as_missing(models):
    (models / "config.json").symlink_to(models / "config.json")
    assert encoder_file("weights.safetensors") == models / "weights.safetensors"


def test_nothing_is_downloaded_through_a_link_that_leads_out(models):
    (models / "dinov2-base").symlink_to(models.parents[1] / "secret")
    with pytest.raises(ValueError, match="leads out of the model folders"):
        encoder_file("dinov2-base")
    assert [file.name for file in (models.parents[1] / "secret").iterdir()] == ["weights.safetensors"]


def test_a_linked_folder_of_a_hub_encoder_is_not_read(models):
    (models.parents[1] / "secret" / "model.safetensors").write_bytes(b"")
    (models / "dinov2-small").symlink_to(models.parents[1] / "secret")
    with pytest.raises(ValueError, match="leads out of the model folders"):
        encoder_file("dinov2-small")


def test_the_model_folder_itself_may_be_a_link_and_so_may_a_link_within_it(models, monkeypatch):
    (models / "again.safetensors").symlink_to(models / "weights.safetensors")
    assert encoder_file("again.safetensors").is_file()
    elsewhere = models.parents[1] / "elsewhere"
    elsewhere.symlink_to(models)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "jepa", ([str(elsewhere)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    assert encoder_file("weights.safetensors").is_file()


def test_a_link_to_a_folder_in_the_users_configuration_is_read(models, monkeypatch):
    secret = models.parents[1] / "secret"
    (models / "linked.safetensors").symlink_to(secret / "weights.safetensors")
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "jepa", ([str(models), str(secret)], {".safetensors"})
    )
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    assert encoder_file("linked.safetensors").is_file()


def test_a_loop_of_links_does_not_hang_the_menu(models):
    (models / "loop").symlink_to(models)
    names = encoder_names()
    assert "weights.safetensors" in names


@QUICK
@given(st.text() | st.sampled_from(["..", ".", "/", "\\", "\0", "~"]).flatmap(lambda s: st.just(s * 3)))
@example("../../secret/weights.safetensors")
@example("/etc/passwd")
@example("weights.safetensors/../../../secret/weights.safetensors")
@example("..\\..\\secret\\weights.safetensors")
@example("weights.safetensors\0.pt")
@example("dinov2-small/../../../secret")
@example("a" * 5000)
@example(None)
@example(7)
@example(["dinov2-small"])
@example({"name": "dinov2-small"})
def test_names_that_are_not_in_the_menu_are_refused(models, name):
    if name in encoder_names():
        return
    with pytest.raises(ValueError, match="There is no encoder"):
        encoder_file(name)


# --- values of inputs ---------------------------------------------------------------------------------------------

numbers = (
    st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.sampled_from([0, 1, -1, 0.2, 0.8, 1e300, 2**63, -(2**63), math.nan, math.inf])
)
junk = numbers | st.booleans() | st.text(max_size=8) | st.none() | st.lists(st.integers(), max_size=2)


@QUICK
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("strength", "start_percent", "end_percent"), junk)))
@example({"strength": math.nan})
@example({"strength": True})
@example({"start_percent": "0.2"})
@example({"start_percent": math.nan, "end_percent": math.nan})
@example({"start_percent": 0.8, "end_percent": 0.3})
def test_settings_make_a_valid_schedule_or_get_a_message(inputs):
    refused = None
    try:
        check_guidance(guidance_inputs(), inputs)
        config_of(defaults() | inputs)
    except ValueError as error:
        refused = str(error)
    assert refused is None or any(name in refused for name in inputs)


@QUICK
@given(junk)
@example("dpm_adaptive")
@example("")
@example("__class__")
def test_a_sampler_name_is_valid_or_gets_a_message(name):
    message = sampler_message(name)
    assert message is None or "sampler" in message


ENTRIES = [*guidance_inputs(), *settings_inputs()]


def defaults() -> dict[str, Any]:
    found = {entry.id: entry.default for entry in ENTRIES if getattr(entry, "default", None) is not None}
    return found | {"preset": "custom"}  # other presets set some of the inputs


CHOICES = {entry.id: entry.options for entry in ENTRIES if getattr(entry, "options", None)}
SWITCHES = ("antialias", "checkpointing", "apart", "smooth", "keep_appearance", "agree")
WHOLE = {"rank": (1, 16), "oversampling": (0, 16), "power_iterations": (0, 3), "interval": (1, 100)}


@settings(QUICK, max_examples=12)
@given(
    st.fixed_dictionaries(
        {name: st.sampled_from(options) for name, options in CHOICES.items()}
        | {name: st.integers(*ends) for name, ends in WHOLE.items()}
        | {name: st.booleans() for name in SWITCHES}
        | {"strength": st.floats(-10, 10), "start_percent": st.floats(0, 1), "end_percent": st.floats(0, 1)}
    ),
    st.booleans(),
)
def test_every_choice_of_the_menu_runs_or_says_why_not(tiny, stock, chosen, referred):
    """Every option that the page offers gives an image, or a message about an input."""
    images = torch.rand(6, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    fit = "crop" if chosen["fit"] == "auto" else chosen["fit"]
    reference = reference_of([tiny.encoder], images, top_k=3, fit=fit) if referred else None
    inputs = {**defaults(), **chosen, "vae": tiny.vae, "encoder": tiny.encoder, "reference": reference}
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    refusal = ""
    try:
        model = apply_guidance(tiny.model, tiny.vae, tiny.encoder, config_of(inputs), reference=reference)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert any(name in refusal for name in inputs)
        return
    assert stock(model, tiny, steps=3, latent_image=latent).isfinite().all()


def test_the_test_above_covers_every_option_of_the_menus():
    assert set(defaults()) == {*CHOICES, *WHOLE, *SWITCHES, "strength", "start_percent", "end_percent"}
    assert set(CHOICES["preset"]) == {"custom", *PRESETS}


# --- linked values, which the host does not check -----------------------------------------------------------------

NODES = [
    JEPAEncoderLoader,
    JEPAGuidedKSampler,
    JEPAGuidance,
    JEPAGuidanceSettings,
    JEPAScoreImage,
    JEPADemoClass,
    JEPACombineEncoders,
]


@QUICK
@given(
    st.sampled_from(NODES), st.integers(0, 40), junk | st.dictionaries(st.text(max_size=3), junk, max_size=1)
)
def test_a_value_fits_its_input_or_gets_a_message_that_names_it(models, node, which, value):
    inputs = node.define_schema().inputs
    entry = inputs[which % len(inputs)]
    message = value_message(entry, value)
    assert message is None or entry.id in message
    assert len(message or "") < 3000
    low, high = getattr(entry, "min", None), getattr(entry, "max", None)
    if message is None and low is not None:
        assert low <= value <= high
    if message is None and getattr(entry, "options", None):
        assert value in entry.options


@pytest.mark.parametrize("node", NODES)
def test_the_default_of_every_input_fits(models, node):
    inputs = node.define_schema().inputs
    check_values(
        inputs, {entry.id: entry.default for entry in inputs if getattr(entry, "default", None) is not None}
    )


def test_whole_numbers_of_other_kinds_fit():
    (rank,) = [entry for entry in settings_inputs() if entry.id == "rank"]
    assert value_message(rank, np.int64(9)) is None
    assert value_message(rank, np.float32(9)) == f"rank must be a whole number, got {np.float32(9)!r}"


LINKED = {
    "power_iterations": 10**9,  # would run for days
    "oversampling": -1,
    "rank": 2.5,
    "interval": 0,
    "strength": "0.5",
    "start_percent": math.nan,
    "schedule": "x",  # would count as constant
    "normalisation": "x",  # would count as rms
    "gradient_path": "x",
    "strength_rule": None,
    "range_finder": [],
    "preset": [],
    "denoiser_calls": "x",
    "criterion": "x",
    "reference": "x",
    "target": 0.05,
    "vae": "x",
    "encoder": None,
    "model": torch.zeros(1),
}
SAMPLED = {
    "cfg": math.nan,
    "denoise": 2.0,
    "steps": -1,
    "sampler_name": None,  # the host would use its first sampler
    "scheduler": "x",
    "latent_image": {"samples": None},
}


@pytest.mark.parametrize("name", [*LINKED, *SAMPLED])
def test_a_linked_value_that_the_input_would_not_take_is_refused_by_name(tiny, name):
    core = {"model": tiny.model, "vae": tiny.vae, "encoder": tiny.encoder}
    guided = {**defaults(), **core}
    sampling = {
        "seed": 0,
        "steps": 2,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    sampling |= {"positive": tiny.positive, "negative": tiny.negative}
    sampling |= {"latent_image": {"samples": torch.zeros(1, 4, 8, 8)}}
    with torch.inference_mode(), pytest.raises(ValueError, match=rf"^{name} "):
        JEPAGuidedKSampler.execute(**guided | sampling | {name: (LINKED | SAMPLED)[name]})
    if name in LINKED:
        with pytest.raises(ValueError, match=rf"^{name} "):
            JEPAGuidance.execute(**guided | {name: LINKED[name]})


OFF = ({"strength": 0.0}, {"start_percent": 0.5, "end_percent": 0.5})


@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize(
    "name", ["rank", "interval", "normalisation", "preset", "vae", "encoder", "reference"]
)
def test_guidance_that_is_off_refuses_nothing_and_is_the_stock_sampler(tiny, stock, name, off):
    guided = {**defaults(), "vae": tiny.vae, "encoder": tiny.encoder, name: LINKED[name], **off}
    assert JEPAGuidance.execute(model=tiny.model, **guided).result[0] is tiny.model
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    sampling = {"seed": 5, "steps": 2, "cfg": 3.0, "sampler_name": "dpm_adaptive", "scheduler": "normal"}
    sampling |= {"denoise": 1.0, "latent_image": latent}
    conds = {"positive": tiny.positive, "negative": tiny.negative}
    with torch.inference_mode():
        image, trace = JEPAGuidedKSampler.execute(model=tiny.model, **sampling, **conds, **guided).result
    assert torch.equal(image["samples"], stock(tiny.model, tiny, **sampling))
    assert trace.steps == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("mode", "x"), ("top_k", 2.5), ("top_k", 10**9), ("fit", 3), ("encoder", "x"), ("images", "x")],
)
def test_a_linked_value_that_scoring_would_not_take_is_refused_by_name(tiny, name, value):
    inputs = {"images": torch.rand(1, 28, 28, 3), "encoder": tiny.encoder, "mode": "top-k", "top_k": 2}
    with torch.inference_mode(), pytest.raises(ValueError, match=rf"^{name} "):
        JEPAScoreImage.execute(**inputs | {"fit": "squash", "antialias": True, name: value})


@pytest.mark.parametrize("shape", [(), (3,), (28, 28, 3), (1, 28, 28, 5), (1, 0, 4, 3)])
def test_the_score_node_refuses_anything_but_a_batch_of_images(tiny, shape):
    with torch.inference_mode(), pytest.raises(ValueError, match="images must be"):
        JEPAScoreImage.execute(torch.zeros(shape), tiny.encoder, "top-k", 2, "squash", True)


# --- images -------------------------------------------------------------------------------------------------------


@settings(QUICK, max_examples=30)
@given(
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=6).map(tuple)
    | st.tuples(st.integers(1, 2), st.integers(1, 300), st.integers(1, 3), st.sampled_from([1, 2, 3, 4])),
    fit=st.sampled_from(["squash", "crop"]),
    value=st.sampled_from([0.0, 1.0, -5.0, 1e30, math.nan, math.inf]),
)
@example(shape=(1, 1, 1, 3), fit="crop", value=0.5)
@example(shape=(1, 300, 1, 4), fit="squash", value=0.5)
@example(shape=(0, 8, 8, 3), fit="squash", value=0.5)
def test_any_image_is_scored_or_refused_with_a_message(tiny, shape, fit, value):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator) * 0.01 + value
    refusal = ""
    try:
        with torch.inference_mode():
            (scores,) = score_images(images, tiny.encoder, fit=fit)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert "image" in refusal
        return
    assert len(scores) == shape[0]
    assert all(math.isfinite(score) for score in scores)


def test_the_score_node_refuses_a_rank_larger_than_the_embedding(tiny):
    images = torch.rand(1, 28, 28, 3, generator=torch.Generator().manual_seed(0))
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match="top_k 200 is larger than the embedding of tiny, 16"),
    ):
        JEPAScoreImage.execute(images, tiny.encoder, "top-k", 200, "squash", True)


@pytest.mark.parametrize("size", [0, -14, 13, 15, 1023, 14 * 10**4, 28.0, "28", None])
def test_an_image_size_that_is_no_multiple_of_the_patch_size_is_refused(models, encoder_dir, size):
    (models / "real").mkdir()
    for name in ("model.safetensors", "config.json"):
        (models / "real" / name).write_bytes((encoder_dir / name).read_bytes())
    with pytest.raises(ValueError, match="image_size"):
        JEPAEncoderLoader.execute(os.path.join("real", "model.safetensors"), size)
