"""JEPARareSearch, executed as the host does: all inputs and outputs as lists."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_api.latest import io
from jepa_guidance.host.drawing.pictures import labelled_sheet
from jepa_guidance.host.options import BOOSTED_START
from jepa_guidance.host.search.record import Candidate, SearchRecord
from jepa_guidance.host.search.report import MOST_SHOWN, SearchReporter
from jepa_guidance.jepa_core.novelty import distances_within
from jepa_guidance.nodes import rare_search
from jepa_guidance.nodes.input_checks import inputs_of
from jepa_guidance.nodes.rare_search import JEPARareSearch

from tests.host.search.conftest import LATENT, SAMPLING

NAMES = (
    "latent",
    "scores",
    "indices",
    "qualities",
    "candidates",
    "candidate_scores",
    "sheet",
    "chart",
    "rarer_than",
)


def node(tiny: Any, **changes: Any) -> dict[str, Any]:
    """Run the node with its defaults on six candidates; `changes` are lists, as the host passes them."""
    values = {
        entry.id: [entry.default]
        for entry in inputs_of(JEPARareSearch)
        if getattr(entry, "default", None) is not None
    }
    values |= {name: [value] for name, value in SAMPLING.items()}
    values |= {"model": [tiny.model], "vae": [tiny.vae], "encoder": [tiny.encoder], "latent_image": [LATENT]}
    values |= {"positive": [tiny.positive], "negative": [tiny.negative], "candidates": [6], "count": [2]}
    with torch.inference_mode():
        found = JEPARareSearch.execute(**values | changes)
    return dict(zip(NAMES, found.args, strict=True)) | {"ui": found.ui}


def test_outputs_agree_with_each_other(tiny, search):
    found = node(tiny)
    kept, record = search()
    (latent,) = found["latent"]
    assert torch.equal(latent["samples"], kept["samples"])
    assert latent["batch_index"] == found["indices"] == [one.index for one in record.kept]
    assert found["scores"] == sorted(found["scores"])
    assert found["qualities"] == []
    assert found["candidates"][0].shape == (6, 14, 14, 3) or len(found["candidates"][0]) == 6
    assert [found["candidate_scores"][index] for index in found["indices"]] == found["scores"]
    (search_ui,) = found["ui"]["jepa_search"]
    assert [one["index"] for one in search_ui["candidates"]] == list(range(6))
    assert all(one["picture"].startswith("data:image/jpeg,") for one in search_ui["candidates"])


@pytest.mark.parametrize("images", [1, 6])
def test_entries_of_a_latent_that_are_none_count_as_absent(tiny, images):
    bare = {"samples": torch.ones(images, 4, 8, 8)}
    none = bare | {"noise_mask": None, "batch_index": None}
    (latent,), (other,) = (node(tiny, latent_image=[one])["latent"] for one in (bare, none))
    assert torch.equal(latent["samples"], other["samples"])
    assert latent.keys() == other.keys() == {"samples", "batch_index"}
    assert latent["batch_index"] == other["batch_index"]


def test_a_list_of_seeds_gives_a_search_for_each(tiny):
    both = node(tiny, seed=[5, 6])
    one, other = node(tiny), node(tiny, seed=[6])
    assert len(both["latent"]) == 2
    for latent, alone in zip(both["latent"], (one, other), strict=True):
        assert torch.equal(latent["samples"], alone["latent"][0]["samples"])
    assert both["indices"] == one["indices"] + other["indices"]


def test_each_search_of_a_list_is_noted_in_saved_images(tiny, monkeypatch):
    noted: dict = {}
    monkeypatch.setattr(
        io.ComfyNode, "hidden", SimpleNamespace(unique_id="7", prompt=None, extra_pnginfo=noted)
    )
    monkeypatch.setattr(rare_search, "SearchReporter", lambda _: SearchReporter(None))  # there is no page
    node(tiny)
    node(tiny, seed=[5, 6])
    assert list(noted["jepa_guidance"]) == ["7", "7, search 1", "7, search 2"]
    assert noted["jepa_guidance"]["7, search 2"]["settings"]["seed"] == 6


def test_a_sheet_of_many_candidates_is_no_strip():
    sheet = labelled_sheet([torch.zeros(8, 8, 3)] * 100, ["x"] * 100)
    assert 0.5 < sheet.shape[1] / sheet.shape[2] < 2


def test_a_quality_list_is_one_for_each_candidate(tiny):
    quality = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    found = node(tiny, quality=quality, floor_kind=["value"], floor=[0.5])
    assert set(found["indices"]) <= {1, 3, 4}
    assert found["qualities"] == [1.0, 1.0]
    assert math.isnan(found["candidate_scores"][0])


def test_a_quality_list_may_come_as_one_value(tiny):
    quality = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    how = {"floor_kind": ["value"], "floor": [0.5]}
    assert node(tiny, quality=[quality], **how)["indices"] == node(tiny, quality=quality, **how)["indices"]


def test_novelty_against_a_reference(tiny):
    from tests.host.guide import reference_of

    images = torch.rand(8, 16, 16, 3, generator=torch.Generator().manual_seed(4))
    reference = reference_of([tiny.encoder], images)
    how = {"by": ["novelty"], "reference": [reference]}
    found = node(tiny, **how)
    assert found["scores"] == sorted(found["scores"], reverse=True)
    assert all(score > 0 for score in found["scores"])
    own = distances_within(reference.parts[0].embeddings)
    assert found["rarer_than"] == [100 * (own < score).double().mean().item() for score in found["scores"]]
    both, other = node(tiny, **how, seed=[SAMPLING["seed"], 6]), node(tiny, **how, seed=[6])
    assert both["rarer_than"] == found["rarer_than"] + other["rarer_than"]
    assert node(tiny, reference=[reference])["rarer_than"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"looks": ["0.7, 0.4"]}, r"looks must grow"),
        ({"looks": ["a"]}, r"looks must be numbers"),
        ({"quality": [0.5, 0.6]}, r"quality holds 2 numbers for 6 images"),
        (
            {"floor_kind": ["value"]},
            r"floor_kind value has nothing to measure; connect prompt_fit or quality",
        ),
        (
            {"floor_kind": ["percentile"], "floor": [101.0], "quality": [0.5] * 6},
            r"floor 101 is not a percentile",
        ),
        ({"by": ["novelty"]}, r"reference is needed to search by novelty"),
        (
            {"latent_image": [{"samples": torch.ones(3, 4, 8, 8)}]},
            r"latent_image holds 3 images for 6 candidates",
        ),
        ({"latent_image": [{"samples": torch.full((1, 4, 8, 8), math.nan)}]}, r"latent_image holds NaN"),
        ({"start_at_step": [10]}, r"start_at_step 10 leaves no step"),
        ({"candidates": [0]}, r"candidates 0 is outside 1 to 1024"),
        ({"keep": ["best"]}, r"keep must be one of rarest, most typical"),
        ({"model": [3]}, r"model must be of type MODEL, got int"),
        ({"amount": [math.nan]}, r"amount nan is outside"),
        ({"looks": [0.5]}, r"looks must be text, got 0.5"),
        ({"latent_image": [{"samples": torch.zeros(0, 4, 8, 8)}]}, r"latent_image holds no image"),
        ({"add_noise": [None]}, r"add_noise must be true or false, got None"),
        ({"negative": [None]}, r"negative must be of type CONDITIONING, got NoneType"),
        ({"seed": []}, r"seed is linked to a list that is empty"),
        ({"encoder": [None]}, r"encoder must be of type JEPA_ENCODER, got NoneType"),
        ({"candidates": ["6"], "quality": [0.5] * 6}, r"candidates must be a whole number, got '6'"),
        ({"candidates": [-6], "quality": [0.5] * 6}, r"candidates -6 is outside 1 to 1024"),
        ({"seed": [5, 6], "count": [2, 0]}, r"count 0 is outside 1 to 1024"),
        ({"steps": [10, 2.5]}, r"steps must be a whole number, got 2.5"),
        (
            {"variety": [BOOSTED_START], "add_noise": [False]},
            r"makes the noise of the start stronger, and add_noise is off",
        ),
    ],
)
def test_an_input_that_does_not_fit_is_named_before_work_starts(tiny, changes, message):
    def never(*_: Any) -> None:
        raise AssertionError("the model was called")

    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(never)
    with pytest.raises(ValueError, match=message):
        node(tiny, **{"model": [model]} | changes)


def test_a_part_that_the_scheduler_does_not_reach_is_named(tiny):
    """Some schedulers make fewer steps than they are asked for."""
    part = {"scheduler": ["beta"], "steps": [1000], "start_at_step": [999]}
    with pytest.raises(
        ValueError, match="start_at_step 999 leaves no step: scheduler beta makes fewer than 1000"
    ):
        node(tiny, **part)


def test_a_scheduler_whose_noise_levels_are_not_numbers_is_named(tiny):
    with pytest.raises(ValueError, match="the scheduler gives noise levels that are NaN"):
        node(tiny, scheduler=["kl_optimal"], steps=[1])


def test_candidates_that_are_not_finite_are_pictures_that_other_nodes_take(tiny):
    def broken(args: dict) -> torch.Tensor:
        args["denoised"][1] = math.nan
        return args["denoised"]

    model = tiny.model.clone()
    model.set_model_sampler_post_cfg_function(broken)
    found = node(tiny, model=[model])
    assert 1 not in found["indices"]
    assert found["candidates"][0].isfinite().all()
    assert math.isnan(found["candidate_scores"][1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"looks": ["0.7, 0.4"]}, "looks must grow"),
        ({"cfg": [math.nan]}, "cfg nan is outside"),
        ({"floor": [math.inf]}, "floor inf is outside"),
    ],
)
def test_values_that_do_not_fit_are_named_before_the_search(tiny, values, message):
    with pytest.raises(ValueError, match=message):
        node(tiny, **values)


def test_a_count_above_the_candidates_keeps_all_of_them(tiny):
    found = node(tiny, count=[7])
    assert sorted(found["indices"]) == list(range(6))
    assert found["indices"] == node(tiny, count=[6])["indices"]


def test_a_sampler_is_checked_before_the_queue():
    assert "dpm_adaptive" in JEPARareSearch.validate_inputs(sampler_name=["dpm_adaptive"])
    assert JEPARareSearch.validate_inputs(sampler_name=["euler"]) is True
    # linked
    assert JEPARareSearch.validate_inputs(sampler_name=[None]) is True


def test_each_search_of_a_list_shows_its_own_pictures(tiny):
    both = node(tiny, seed=[1, 2])["ui"]["jepa_search"]
    alone = [node(tiny, seed=[seed])["ui"]["jepa_search"][0] for seed in (1, 2)]
    pictures = [[one["picture"] for one in record["candidates"]] for record in (*both, *alone)]
    assert pictures[:2] == pictures[2:]
    assert pictures[0] != pictures[1]


def test_of_many_candidates_the_kept_ones_are_shown():
    candidates = [
        Candidate(index, 0.0, step=3, picture=torch.zeros(4, 4, 3)) for index in range(MOST_SHOWN + 6)
    ]
    record = SearchRecord("score", "rarest", candidates, steps=3, kept=candidates[-2:])
    found = SearchReporter(None).final(record)["candidates"]
    shown = [one["index"] for one in found if "picture" in one]
    assert shown == [*range(MOST_SHOWN - 2), MOST_SHOWN + 4, MOST_SHOWN + 5]
