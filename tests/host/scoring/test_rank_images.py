"""JEPARankImages on a small random encoder, compared with sorting by hand."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jepa_guidance.host.comfy.required import ExecutionBlocker
from jepa_guidance.host.drawing.pictures import labelled_sheet, rows_that_fit
from jepa_guidance.host.encoders.host_encoder import combined
from jepa_guidance.host.options import FLOORS
from jepa_guidance.host.scoring.ranked import as_csv, as_json, ranked_images, shortened
from jepa_guidance.host.scoring.rarity import Rarity, rarity_of
from jepa_guidance.host.scoring.scores import score_images
from jepa_guidance.nodes.input_checks import seed_words, seeds_of
from jepa_guidance.nodes.rank_images import JEPARankImages
from jepa_guidance.nodes.reference import JEPAReferenceNode


@pytest.fixture
def images() -> torch.Tensor:
    """Five very different images."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(5, 2, 2, 3, generator=generator).movedim(-1, 1)
    return torch.nn.functional.interpolate(smooth, size=(28, 28), mode="bilinear").movedim(1, -1)


OUTPUTS = [output.display_name for output in JEPARankImages.define_schema().outputs]
LISTS = ("seeds", "quality", "latents", "masks", "names")


def rank(images: list, encoder: Any, **changes: Any) -> tuple:
    """The node's outputs. Inputs are lists, as the host passes them."""
    values = {"keep": "rarest", "count": 3, "mode": "exact"} | changes
    given = {name: values.pop(name) for name in LISTS if name in values}
    lists = {name: [value] for name, value in values.items()}
    with torch.inference_mode():
        return JEPARankImages.execute(images=images, encoder=[encoder], **given, **lists).args


def named(*args: Any, **changes: Any) -> SimpleNamespace:
    """As rank, by the outputs' names."""
    return SimpleNamespace(**dict(zip(OUTPUTS, rank(*args, **changes), strict=True)))


def reference_of(images: torch.Tensor, encoder: Any, mode: str = "exact") -> Any:
    lists = {"mode": [mode], "top_k": [9], "fit": ["squash"], "antialias": [True]}
    with torch.inference_mode():
        return JEPAReferenceNode.execute(images=[images], encoder=[encoder], **lists).args[0]


@pytest.mark.parametrize("keep", ["rarest", "most typical"])
def test_the_order_is_that_of_the_scores(tiny, images, keep):
    (expected,) = score_images(images, tiny.encoder)
    order = np.argsort(expected)[:: 1 if keep == "rarest" else -1][:3].tolist()
    (kept,), scores, indices, seeds, sheet, *_ = rank([images], tiny.encoder, keep=keep)
    assert indices == order
    assert scores == [expected[index] for index in order]
    assert torch.equal(kept, images[order])
    assert seeds == []
    assert sheet.shape[0] == 1


def test_a_transparent_picture_is_scored_as_it_looks_on_white(tiny, images):
    alpha = torch.linspace(0, 1, 28)[:, None].expand(5, 28, 28)[..., None]
    transparent = torch.cat([images, alpha], -1)
    assert score_images(transparent, tiny.encoder) == score_images(images * alpha + (1 - alpha), tiny.encoder)
    assert score_images(transparent, tiny.encoder) != score_images(images, tiny.encoder)
    opaque = torch.cat([images, torch.ones_like(alpha)], -1)
    assert score_images(opaque, tiny.encoder) == score_images(images, tiny.encoder)


def test_a_list_of_batches_is_ranked_together(tiny, images):
    (_, scores, indices, seeds, *_) = rank(
        [images[:2], images[2:]], tiny.encoder, count=9, seeds=[7, 8, 9, 10, 2**64 - 1]
    )
    (expected,) = score_images(images, tiny.encoder)
    assert scores == sorted(expected)
    assert sorted(indices) == [0, 1, 2, 3, 4]
    assert seeds == [[7, 8, 9, 10, 2**64 - 1][index] for index in indices]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_other_floating_types_are_scored(tiny, images, dtype):
    found = rank([images.to(dtype)], tiny.encoder, count=5)[1]
    assert found == pytest.approx(rank([images.to(dtype).float()], tiny.encoder, count=5)[1], rel=1e-3)


def test_empty_batches_in_a_list_count_nothing(tiny, images):
    lists = [images[:0], images[:2], images[:0], images[2:]]
    samples = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 4, 2, 2)
    along = {
        "latents": [{"samples": samples[:0]}, {"samples": samples}],
        "masks": [images[:0, ..., 0], images[..., 0]],
    }
    found = named(lists, tiny.encoder, count=5, **along)
    expected = named([images], tiny.encoder, count=5)
    assert found.scores == expected.scores
    assert found.indices == expected.indices
    assert found.latents[0]["samples"][:, 0, 0, 0].tolist() == found.indices


def test_images_of_several_sizes_come_out_one_by_one(tiny, images):
    larger = torch.nn.functional.interpolate(images.movedim(-1, 1), size=(42, 56)).movedim(1, -1)
    kept, scores, indices, seeds, *_ = rank([images, larger], tiny.encoder, count=10, seeds=[3])
    assert len(kept) == 10
    assert {tuple(image.shape) for image in kept} == {(1, 28, 28, 3), (1, 42, 56, 3)}
    assert seeds == [3] * 10
    everything = [*images.split(1), *larger.split(1)]
    assert all(torch.equal(image, everything[index]) for image, index in zip(kept, indices, strict=True))
    assert scores == sorted(scores)


def test_several_encoders_rank_by_their_mean_score(tiny, images):
    other = replace(tiny.encoder, image_size=42)  # the same weights, with another image size
    first, second = (score_images(images, one)[0] for one in (tiny.encoder, other))
    assert first != second
    expected = sorted(0.75 * a + 0.25 * b for a, b in zip(first, second, strict=True))
    both = combined([(tiny.encoder, 3.0), (other, 1.0)])
    assert rank([images], both, count=5)[1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count 0 is outside 1 to 4096"),
        ({"keep": "best"}, "keep must be one of rarest, most typical"),
        ({"mode": "top-k"}, "mode must be one of auto, projected, exact"),
        ({"seeds": [1, 2]}, "seeds holds 2 seeds for 5 images"),
        ({"seeds": [1.5]}, "seeds must be whole numbers"),
        ({"quality": [0.5, 0.5]}, "quality holds 2 numbers for 5 images"),
        ({"quality": ["good"] * 5}, "quality must be a list of numbers"),
        ({"floor_kind": "value"}, "quality is needed, with floor_kind value"),
        ({"floor_kind": "best"}, "floor_kind must be one of none, value, percentile"),
        (
            {"quality": [0.1, 0.2, 0.3, 0.2, 0.1], "floor_kind": "value", "floor": 0.5},
            "the best quality is 0.3",
        ),
        ({"quality": [0.1] * 5, "floor_kind": "percentile", "floor": 150}, "floor 150 is not a percentile"),
        ({"floor": 2e6}, "floor 2000000.0 is outside -1000000.0 to 1000000.0"),
        ({"threshold": 50}, "threshold 50 needs a reference"),
        ({"threshold": 101}, "threshold 101 is outside 0.0 to 100.0"),
        ({"places": "0, 5"}, "places names image 5, but there are only images 0 to 4"),
        ({"places": "0, -1"}, "places must be whole numbers from 0, such as 0, 3, 5; got '-1'"),
        ({"places": "2 2"}, "places names image 2 twice"),
        ({"places": 3}, "places must be text, got 3"),
        ({"latents": [{"samples": torch.zeros(4, 4, 2, 2)}]}, "latents holds 4 for 5 images"),
        ({"latents": [torch.zeros(5, 4, 2, 2)]}, "latents must be of type LATENT"),
        ({"masks": [torch.zeros(28, 28)]}, "masks holds 1 for 5 images"),
        ({"masks": ["text"]}, "masks must be of type MASK"),
        ({"names": ["a", "b"]}, "names holds 2 names for 5 images"),
        ({"names": ["a\nb\nc"]}, "names holds 3 names for 5 images"),
        ({"names": [1, 2, 3, 4, 5]}, "names must be text, got 1"),
        ({"columns": 65}, "columns 65 is outside 0 to 64"),
        ({"caption_size": 0}, "caption_size 0 is outside 10 to 64"),
    ],
)
def test_values_that_do_not_fit_are_refused(tiny, images, changes, message):
    with pytest.raises(ValueError, match=message):
        rank([images], tiny.encoder, **changes)


def test_what_does_not_fit_is_refused_before_an_image_is_scored(tiny, images, monkeypatch):
    monkeypatch.setattr("jepa_guidance.nodes.rank_images.rarity_of", None)
    for changes in (
        {"quality": [0.5]},
        {"places": "9"},
        {"threshold": 1},
        {"masks": [torch.zeros(2, 28, 28)]},
        {"names": ["one"]},
    ):
        with pytest.raises(ValueError):
            rank([images], tiny.encoder, **changes)


@pytest.mark.parametrize("keep", ["rarest", "most typical"])
@pytest.mark.parametrize("kind", FLOORS)
def test_no_kept_image_is_below_the_floor(tiny, images, kind, keep):
    (scores,) = score_images(images, tiny.encoder)
    order = np.argsort(scores)[:: 1 if keep == "rarest" else -1].tolist()
    # the best ones by rarity are the worst by quality
    quality = [float(order.index(index)) for index in range(5)]
    floor = {"none": 0, "value": 1.5, "percentile": 50}[kind]
    found = named([images], tiny.encoder, keep=keep, quality=quality, floor_kind=kind, floor=floor, count=5)
    least = {"none": 0.0, "value": 1.5, "percentile": np.median(quality)}[kind]
    assert found.indices == [index for index in order if quality[index] >= least]
    assert found.qualities == [quality[index] for index in found.indices]
    assert sorted(found.indices + found.rejected) == list(range(5))
    assert found.chart.shape[-1] == 3


def test_a_quality_that_is_no_number_passes_no_floor(tiny, images):
    quality = [float("nan"), 1.0, float("nan"), 1.0, 0.0]
    assert len(named([images], tiny.encoder, quality=quality, count=5).indices) == 5
    found = named([images], tiny.encoder, quality=[quality], count=5, floor_kind="value", floor=0.5)
    assert sorted(found.indices) == [1, 3]


def test_images_without_a_score_are_never_the_best(tiny, images, monkeypatch):
    values = [1.0, float("nan"), 3.0, 2.0, float("nan")]
    monkeypatch.setattr("jepa_guidance.nodes.rank_images.rarity_of", lambda *_: Rarity(values, []))
    assert named([images], tiny.encoder, count=5).indices == [0, 3, 2]
    assert named([images], tiny.encoder, count=5, keep="most typical").indices == [2, 3, 0]
    monkeypatch.setattr(
        "jepa_guidance.nodes.rank_images.rarity_of", lambda *_: Rarity([float("nan")] * 5, [])
    )
    with pytest.raises(ValueError, match="encoder gives NaN for every image"):
        rank([images], tiny.encoder)


@pytest.mark.parametrize("by", ["score", "novelty"])
def test_a_threshold_keeps_what_is_rarer_than_a_share_of_the_reference(tiny, images, by):
    usual = torch.rand(40, 28, 28, 3, generator=torch.Generator().manual_seed(4)) * 0.2 + 0.4
    reference = reference_of(torch.cat([usual, images[:1]]), tiny.encoder)
    more = {"reference": reference, "by": by, "count": 5}
    rarity = rarity_of([images], tiny.encoder, "exact", by, reference)
    shares = rarity.rarer_than
    threshold = sorted(shares)[2]
    kept = named([images], tiny.encoder, threshold=threshold, **more).indices
    every = named([images], tiny.encoder, **more).indices
    assert kept == [index for index in every if shares[index] >= threshold]
    assert 0 < len(kept) < 5


def test_a_threshold_that_no_image_reaches_names_the_rarest(tiny, images):
    reference = reference_of(images, tiny.encoder)
    with pytest.raises(
        ValueError, match=r"rarer than 100 % of the reference; the rarest that may be kept is rarer than"
    ):
        rank([images[:1]], tiny.encoder, reference=reference, threshold=100)
    bare = reference_of(images, tiny.encoder, "no scores")
    with pytest.raises(ValueError, match="threshold 20 has nothing to compare with"):
        rank([images], tiny.encoder, reference=bare, threshold=20)


def test_places_are_kept_in_their_order(tiny, images):
    (scores,) = score_images(images, tiny.encoder)
    found = named(
        [images], tiny.encoder, places=" 4\u30010,2 ", count=1, keep="most typical", seeds=[1, 2, 3, 4, 5]
    )
    assert found.indices == [4, 0, 2]
    assert found.scores == [scores[index] for index in (4, 0, 2)]
    assert found.seeds == [5, 1, 3]
    assert found.rejected == [1, 3]
    assert torch.equal(found.images[0], images[[4, 0, 2]])
    quality = {"quality": [1.0, 0.0, 1.0, 0.0, 0.2], "floor_kind": "value", "floor": 0.5}
    with pytest.raises(ValueError, match=r"places names image 4, whose quality 0\.2 is below the floor 0\.5"):
        rank([images], tiny.encoder, places="4, 0", **quality)


def test_latents_and_masks_come_along_in_the_order_of_the_images(tiny, images):
    latent = {"samples": torch.arange(5.0).view(5, 1, 1, 1).expand(5, 4, 2, 3), "type": "kept"}
    masks = torch.arange(5.0).view(5, 1, 1).expand(5, 28, 28)
    found = named([images], tiny.encoder, latents=[latent], masks=[masks])
    (kept,), (mask,) = found.latents, found.masks
    assert kept["samples"][:, 0, 0, 0].tolist() == found.indices
    assert kept["samples"].shape == (3, 4, 2, 3)
    assert kept["batch_index"] == found.indices
    assert kept["type"] == "kept"
    assert "noise_mask" not in kept
    assert mask[:, 0, 0].tolist() == found.indices
    assert latent.keys() == {"samples", "type"}


def test_latents_of_several_batches_keep_their_batch_index_and_their_mask(tiny, images):
    samples = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 4, 2, 2)
    first = {"samples": samples[:2], "batch_index": [7, 9], "noise_mask": torch.tensor([[[[5.0]]]])}
    second = {"samples": samples[2:], "noise_mask": torch.tensor([6.0, 8.0]).view(2, 1, 1)}
    kept = named([images], tiny.encoder, latents=[first, second], places="3, 0, 4").latents
    # masks of other shapes do not fit into one batch
    assert [one["samples"][0, 0, 0, 0].item() for one in kept] == [3, 0, 4]
    assert [one["batch_index"] for one in kept] == [[1], [7], [2]]
    assert [one["noise_mask"].flatten().tolist() for one in kept] == [[8.0], [5.0], [6.0]]
    assert [one["noise_mask"].shape for one in kept] == [(1, 1, 1), (1, 1, 1, 1), (1, 1, 1)]
    (together,) = named([images], tiny.encoder, latents=[first, second], places="4, 3").latents
    assert together["noise_mask"].flatten().tolist() == [6.0, 8.0]
    assert together["batch_index"] == [2, 1]


def test_entries_of_latents_that_are_none_count_as_absent(tiny, images):
    samples = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 4, 2, 2)
    bare, none = {"samples": samples[:2]}, {"samples": samples[2:], "noise_mask": None, "batch_index": None}
    (kept,) = named([images], tiny.encoder, latents=[bare, none], places="3, 0").latents
    assert kept.keys() == {"samples", "batch_index"}
    assert kept["samples"][:, 0, 0, 0].tolist() == [3, 0]
    assert kept["batch_index"] == [1, 0]


def test_kept_latents_draw_the_noise_of_their_batch(tiny, images):
    from comfy.sample import prepare_noise

    latent = {"samples": torch.zeros(5, 4, 2, 2)}
    (kept,) = named([images], tiny.encoder, latents=[latent]).latents
    everything = prepare_noise(latent["samples"], 3)
    assert torch.equal(
        prepare_noise(kept["samples"], 3, kept["batch_index"]), everything[kept["batch_index"]]
    )


def test_latents_and_masks_of_several_sizes_come_out_one_by_one(tiny, images):
    latents = [{"samples": torch.full((1, 4, 2, 2 + size), float(size))} for size in range(5)]
    masks = [torch.full((28, 28 + size), float(size)) for size in range(5)]
    found = named([images], tiny.encoder, latents=latents, masks=masks)
    assert [one["samples"].flatten()[0].item() for one in found.latents] == found.indices
    assert [one.flatten()[0].item() for one in found.masks] == found.indices
    assert {one.ndim for one in found.masks} == {3}


def test_without_latents_and_masks_their_outputs_stop_who_needs_them(tiny, images):
    found = named([images], tiny.encoder)
    assert isinstance(found.latents, ExecutionBlocker)
    assert found.masks.message == "JEPA Rank Images has no masks to give: link its input masks"
    assert found.qualities == []


def test_no_images_and_several_encoders_in_a_list_are_refused(tiny, images):
    with pytest.raises(ValueError, match="images holds no image"):
        rank([images[:0]], tiny.encoder)
    lists = {"keep": ["rarest"], "count": [1], "mode": ["exact"]}
    with pytest.raises(ValueError, match="encoder must be one value, got a list of 2"):
        JEPARankImages.execute(images=[images], encoder=[tiny.encoder] * 2, **lists)
    with pytest.raises(ValueError, match="images must be of type IMAGE"):
        rank(["text"], tiny.encoder)


def test_one_seed_counts_for_all_images():
    assert seeds_of([5], 3) == [5, 5, 5]
    assert seeds_of(None, 3) == []


def test_images_of_one_seed_are_told_by_their_place_in_their_batch():
    batches = [torch.zeros(2, 4, 4, 3), torch.zeros(1, 4, 4, 3)]
    one = ["seed 5, place 0", "seed 5, place 1", "seed 5, place 0"]
    assert seed_words(seeds_of([5], 3), batches) == one
    # of a node that draws each from its own
    assert seed_words([5, 6, 7], batches) == ["seed 5", "seed 6", "seed 7"]
    assert seed_words([5], [torch.zeros(1, 4, 4, 3)]) == ["seed 5"]
    assert seed_words([], batches) == []


def test_the_sheet_shows_every_picture_completely():
    red, wide = torch.zeros(8, 8, 3), torch.zeros(4, 16, 4)
    red[..., 0], wide[..., 2], wide[..., 3] = 1, 1, 0.5
    sheet = labelled_sheet([red, wide], ["1. image 0\n-3.20", "2. image 1\n-1.00\nseed 4"])[0]
    assert sheet.shape == (16 + 256 + 3 * 28 + 16, 2 * (256 + 16) + 16, 3)
    pixels = (sheet * 255).round().int().numpy()
    assert (pixels == (255, 0, 0)).all(-1).sum() == 256 * 256
    # half transparent blue over white
    assert (pixels == (128, 128, 255)).all(-1).sum() == 256 * 64
    assert (pixels[290:] < 100).any()  # labels


# --- names, the sheet's layout, lists ------------------------------------------------------------------------------

NAMES = ["a.png", "b.png", "=1+1", 'caf\u00e9, "best".png', "e.png"]


def test_rejected_images_are_those_that_are_not_kept(tiny, images):
    found = named([images], tiny.encoder, count=2)
    (out,) = found.rejected_images
    assert torch.equal(out, images[found.rejected])
    assert isinstance(named([images], tiny.encoder, count=5).rejected_images, ExecutionBlocker)


def test_names_go_along_with_the_kept_images(tiny, images):
    found = named([images], tiny.encoder, names=NAMES)
    assert found.names == [NAMES[index] for index in found.indices]
    lines = named([images], tiny.encoder, names=["\n".join(NAMES)])
    assert lines.names == found.names
    assert named([images], tiny.encoder).names == []


@pytest.mark.parametrize("by", ["score", "novelty"])
def test_the_lists_hold_every_image_the_kept_first(tiny, images, by):
    reference = reference_of(
        torch.rand(6, 28, 28, 3, generator=torch.Generator().manual_seed(1)), tiny.encoder
    )
    quality = [0.5, float("nan"), 0.25, 1.0, 0.0]
    more = {
        "reference": reference,
        "by": by,
        "names": NAMES,
        "quality": quality,
        "seeds": [1, 2, 3, 4, 2**64 - 1],
    }
    found = named([images], tiny.encoder, **more)
    rarity = rarity_of([images], tiny.encoder, "exact", by, reference)
    order = found.indices + found.rejected
    rows = list(csv.DictReader(io.StringIO(found.csv)))
    assert [int(row["index"]) for row in rows] == order
    assert [row["rank"] for row in rows] == ["1", "2", "3", "", ""]
    assert [row["kept"] for row in rows] == ["yes"] * 3 + ["no"] * 2
    assert [float(row[by]) for row in rows] == [rarity.values[index] for index in order]
    assert [float(row["rarer_than"]) for row in rows] == [rarity.rarer_than[index] for index in order]
    assert found.rarer_than == [rarity.rarer_than[index] for index in found.indices]
    assert [row["name"].removeprefix("./") for row in rows] == [NAMES[index] for index in order]
    told = json.loads(found.json)
    assert {name: told[name] for name in ("by", "keep", "mode")} == {
        "by": by,
        "keep": "rarest",
        "mode": "exact",
    }
    assert [one["index"] for one in told["images"]] == order
    assert [one["seed"] for one in told["images"]] == [more["seeds"][index] for index in order]
    qualities = [None if math.isnan(quality[index]) else quality[index] for index in order]
    assert [one["quality"] for one in told["images"]] == qualities


def test_a_name_is_no_formula_in_a_spreadsheet():
    names = ["=HYPERLINK(1)", "+1", "-1", "@sum", "\t=1", "plain"]
    rows = list(csv.reader(io.StringIO(as_csv(ranked_images(Rarity([-1.0] * 6, []), [0], names), "score"))))
    assert [row[2] for row in rows[1:]] == ["./=HYPERLINK(1)", "./+1", "./-1", "./@sum", "./\t=1", "plain"]
    assert rows[1][4] == "-1.0"  # a number stays one


def test_numbers_that_are_not_finite_are_valid_json():
    every = ranked_images(Rarity([float("nan"), float("-inf")], []), [0])
    assert [one["score"] for one in json.loads(as_json(every, "score"))["images"]] == [None, None]


def test_a_caption_begins_with_the_place_in_the_reference():
    with_reference = Rarity([-12.345], [97.0])
    (one,) = ranked_images(with_reference, [0], ["cat.png"], [0.5], [7], ["seed 7, place 1"])
    assert one.label("score").splitlines() == [
        "rarer than 97 %",
        "1. image 0",
        "cat.png",
        "score -12.35",
        "quality 0.5",
        "seed 7, place 1",
    ]
    (one,) = ranked_images(Rarity([3.456], []), [0])
    assert one.label("novelty").splitlines() == ["novelty 3.46", "1. image 0"]


def test_a_long_name_keeps_its_ends_on_one_line():
    assert shortened("a short name.png") == "a short name.png"
    assert shortened("several\nlines\tof it") == "several lines of it"
    name = shortened("the beginning of a very long name and its end.png")
    assert name == "the beginnin... its end.png"
    assert len(name) <= 28


@pytest.mark.parametrize(
    ("settings", "least"),
    [({"columns": 1}, 2), ({"columns": 1, "caption_size": 64, "names": ["x"] * 300}, 3)],
)
def test_a_sheet_that_would_be_too_high_is_refused_before_work(tiny, images, monkeypatch, settings, least):
    monkeypatch.setattr("jepa_guidance.nodes.rank_images.rarity_of", None)
    many = [images.repeat(60, 1, 1, 1)]
    message = (
        f"columns 1 makes the sheet of 300 images higher than 65535 pixels, .* set columns to {least} or more"
    )
    with pytest.raises(ValueError, match=message):
        rank(many, tiny.encoder, count=4096, **settings)
    with pytest.raises(TypeError):  # goes on to work
        rank(many, tiny.encoder, count=4096, **settings | {"columns": least})


def test_the_highest_sheet_is_one_that_other_programs_open():
    rows = rows_that_fit(1)
    high = labelled_sheet([torch.zeros(8, 8, 3)] * rows, ["x"] * rows, columns=1).shape[1]
    assert 65535 - 300 < high <= 65535


@pytest.mark.parametrize("seeds", [[np.int64(5)], list(np.arange(5, 10)), [5]])
def test_seeds_are_whole_numbers_of_any_kind(tiny, images, seeds):
    found = named([images], tiny.encoder, seeds=seeds, count=5)
    assert sorted(found.seeds) == (list(range(5, 10)) if len(seeds) > 1 else [5] * 5)
    assert {type(seed) for seed in found.seeds} == {int}
    assert json.loads(found.json)["images"][0]["seed"] == found.seeds[0]


def test_columns_and_caption_size_lay_out_the_sheet(tiny, images):
    for columns, across, rows in ((0, 5, 1), (2, 2, 3), (9, 5, 1)):
        for size in (22, 44):
            sheet = named([images], tiny.encoder, count=5, columns=columns, caption_size=size).sheet
            line = size * 28 // 22
            assert sheet.shape == (1, rows * (256 + 2 * line + 16) + 16, across * 272 + 16, 3)
    letters = [
        (named([images], tiny.encoder, caption_size=size).sheet < 0.3).all(-1).sum() for size in (11, 33)
    ]
    assert letters[1] > letters[0]
