"""JEPAPickImages without a page, on a small random encoder: what it shows and keeps is what ranking gives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comfy_api.latest import ui
from jepa_guidance.host.comfy.required import ExecutionBlocker
from jepa_guidance.host.options import ASK_ALWAYS, ASK_ONCE
from jepa_guidance.host.scoring.by_eye import MOST_SHOWN, Viewing, workflow_of
from jepa_guidance.host.scoring.rarity import Rarity
from jepa_guidance.nodes.pick_images import JEPAPickImages
from jepa_guidance.nodes.rank_images import JEPARankImages

from tests.host.scoring.test_rank_images import reference_of

LISTS = ("seeds", "latents")


@pytest.fixture
def pictures() -> torch.Tensor:
    """Five very different images."""
    smooth = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(smooth, size=(28, 28), mode="bilinear").movedim(1, -1)


@pytest.fixture(autouse=True)
def previews(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Put the small pictures into a folder of the test."""
    monkeypatch.setattr("folder_paths.get_temp_directory", lambda: str(tmp_path))


def pick(images: list, encoder: Any, **changes: Any) -> tuple[tuple, dict]:
    """The node's outputs, and what the page gets. Inputs are lists, as the host passes them."""
    values = {"keep": "rarest", "count": 3, "mode": "exact", "by": "score", "timeout": 60}
    values |= {"on_timeout": "stop", "ask": "once"} | changes
    given = {name: values.pop(name) for name in LISTS if name in values}
    lists = {name: [value] for name, value in values.items()}
    with torch.inference_mode():
        output = JEPAPickImages.execute(images=images, encoder=[encoder], **given, **lists)
    (record,) = output.ui["jepa_pick"]
    return output.args, record


def rank(images: list, encoder: Any, **changes: Any) -> tuple:
    lists = {
        name: [value] for name, value in ({"keep": "rarest", "count": 3, "mode": "exact"} | changes).items()
    }
    with torch.inference_mode():
        return JEPARankImages.execute(images=images, encoder=[encoder], **lists).args


@pytest.mark.parametrize("keep", ["rarest", "most typical"])
@pytest.mark.parametrize("by", ["score", "novelty"])
def test_the_first_are_those_that_ranking_keeps(tiny, pictures, keep, by):
    reference = reference_of(pictures.flip(1), tiny.encoder)
    settings = {"keep": keep, "by": by, "reference": reference}
    (kept, scores, indices, seeds, missing), record = pick(
        [pictures[:2], pictures[2:]], tiny.encoder, **settings
    )
    (ranked,), values, places, *_ = rank([pictures], tiny.encoder, **settings)
    assert indices == places
    assert scores == values
    assert torch.equal(kept[0], ranked)
    assert seeds == []
    assert isinstance(missing, ExecutionBlocker)
    assert missing.message == "JEPA Pick Images has no latents to give: link its input latents"
    assert (record["state"], record["kept"], record["count"], record["total"]) == ("unasked", indices, 3, 5)
    assert [image["index"] for image in record["images"]][:3] == indices
    shares = [image["rarer"] for image in record["images"]]
    assert shares == sorted(shares, reverse=keep == "rarest")


def test_seeds_and_latents_go_along(tiny, pictures):
    samples = torch.arange(5.0)[:, None, None, None].expand(5, 4, 2, 2)
    huge = [2**64 - 1, 1, 2, 3, 4]
    (_, _, indices, seeds, latents), record = pick(
        [pictures], tiny.encoder, seeds=huge, latents=[{"samples": samples}], count=2
    )
    assert seeds == [huge[index] for index in indices]
    assert latents[0]["samples"][:, 0, 0, 0].tolist() == indices
    assert latents[0]["batch_index"] == indices
    assert [int(image["seed"]) for image in record["images"]] == [
        huge[one["index"]] for one in record["images"]
    ]


def test_entries_of_latents_that_are_none_count_as_absent(tiny, pictures):
    latent = {"samples": torch.zeros(5, 4, 2, 2), "noise_mask": None, "batch_index": None}
    (_, _, indices, _, (kept,)), _ = pick([pictures], tiny.encoder, latents=[latent])
    assert kept.keys() == {"samples", "batch_index"}
    assert kept["batch_index"] == indices


def test_the_page_tells_images_of_one_seed_by_their_place_in_their_batch(tiny, pictures):
    (_, _, _, seeds, _), record = pick([pictures[:2], pictures[2:]], tiny.encoder, seeds=[5])
    assert seeds == [5, 5, 5]  # the seed that drew the batch, not one that drew nothing
    shown = {image["index"]: (image["seed"], image["place"]) for image in record["images"]}
    assert shown == {0: ("5", 0), 1: ("5", 1), 2: ("5", 0), 3: ("5", 1), 4: ("5", 2)}
    _, record = pick([pictures], tiny.encoder, seeds=[5, 6, 7, 8, 9])
    assert {image["place"] for image in record["images"]} == {None}


def viewing(**changes: Any) -> Viewing:
    settings = {"keep": "rarest", "by": "score", "node": None, "workflow": None}
    return Viewing(**settings | {"count": 2, "seconds": 5, "stops": True} | changes)


def test_images_without_a_score_and_those_after_the_first_256_are_not_shown():
    assert viewing().order(Rarity([3.0, math.nan, 1.0], [])) == [2, 0]
    many = [float(-number) for number in range(MOST_SHOWN + 9)]
    assert viewing().order(Rarity(many, [])) == list(range(MOST_SHOWN + 8, 8, -1))


def test_a_single_image_is_kept_whatever_the_count(tiny, pictures):
    (kept, _, indices, *_), record = pick([pictures[:1]], tiny.encoder, count=9)
    assert indices == [0]
    assert len(kept[0]) == 1
    assert record["count"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count 0 is outside 1 to 256"),
        ({"timeout": 4}, "timeout 4 is outside 5 to 86400"),
        ({"timeout": math.inf}, "timeout must be a whole number"),
        ({"on_timeout": "x"}, "on_timeout must be one of keep the first, stop"),
        ({"ask": None}, "ask must be one of once, at every run"),
        ({"by": "novelty"}, "reference is needed to rank by novelty"),
        ({"seeds": [1, 2]}, "seeds holds 2 seeds for 5 images"),
        ({"latents": [{"samples": torch.zeros(4, 4, 2, 2)}]}, "latents holds 4 for 5 images"),
    ],
)
def test_bad_input_is_refused_before_anything_is_shown(tiny, pictures, monkeypatch, changes, message):
    monkeypatch.setattr(ui, "PreviewImage", None)
    with pytest.raises(ValueError, match=message):
        pick([pictures], tiny.encoder, **changes)


def test_the_host_runs_it_again_only_if_asked_to():
    assert JEPAPickImages.fingerprint_inputs(ask=[ASK_ONCE]) == JEPAPickImages.fingerprint_inputs(
        images=(None,)
    )
    one, other = (JEPAPickImages.fingerprint_inputs(ask=[ASK_ALWAYS]) for _ in range(2))
    assert one != other


@pytest.mark.parametrize(
    "extra", [None, [], {}, {"workflow": None}, {"workflow": {"id": 3}}, {"workflow": ["id"]}]
)
def test_what_a_prompt_says_of_its_workflow_may_be_anything(extra):
    assert workflow_of(extra) is None
    assert workflow_of({"workflow": {"id": "a"}}) == "a"
