"""References from images, and what JEPAScoreImage and JEPARankImages say beside them, against plain computations."""

from __future__ import annotations

import time
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from jepa_guidance.host.encoders.host_encoder import HostEncoder, combined, use_encoder
from jepa_guidance.host.scoring import novelty
from jepa_guidance.host.scoring.answers import known
from jepa_guidance.host.scoring.novelty import novelties, sorted_novelties
from jepa_guidance.host.scoring.reference import check_comparable, make_reference, part_of, sorted_scores
from jepa_guidance.host.scoring.scores import score_images
from jepa_guidance.jepa_core.novelty import NEIGHBOURS, SAMPLE, Distances, distances_within
from jepa_guidance.jepa_core.reference import NO_SCORE, Reference, ReferencePart, merged, percentile
from jepa_guidance.jepa_core.views import views
from jepa_guidance.nodes.rank_images import JEPARankImages
from jepa_guidance.nodes.rarity_map import JEPARarityMap
from jepa_guidance.nodes.reference import JEPAReferenceNode
from jepa_guidance.nodes.score_image import JEPAScoreImage

SETTINGS = {"mode": "exact", "top_k": 2, "fit": "squash", "antialias": True}
HOW = {"mode": "exact", "fit": "squash", "antialias": "on"}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(9, 28, 28, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def both(tiny: Any) -> Any:
    """Two sizes of the same encoder, as a set."""
    return combined([(tiny.encoder, 3.0), (replace(tiny.encoder, image_size=42), 1.0)])


def reference_of(batches: list, encoder: Any, **changes: Any) -> tuple:
    lists = {name: [value] for name, value in (SETTINGS | changes).items()}
    with torch.inference_mode():
        return JEPAReferenceNode.execute(images=batches, encoder=[encoder], **lists).args


def score(images: torch.Tensor, encoder: Any, **changes: Any) -> tuple:
    with torch.inference_mode():
        return JEPAScoreImage.execute(images, encoder, **(SETTINGS | changes)).args


def rank(images: list, encoder: Any, **changes: Any) -> tuple:
    values = {"keep": "rarest", "count": 3, "mode": "exact"} | changes
    with torch.inference_mode():
        return JEPARankImages.execute(
            images=images, encoder=[encoder], **{k: [v] for k, v in values.items()}
        ).args


@torch.inference_mode()
def embedded(encoder: HostEncoder, images: torch.Tensor) -> torch.Tensor:
    """Embeddings one by one, without the pack's own batching."""
    judge = use_encoder(encoder)
    return torch.cat([judge(judge.preprocess(image)) for image in images.split(1)])


def far(z: torch.Tensor, points: torch.Tensor) -> float:
    """The mean distance to the five nearest."""
    return (points - z).norm(dim=1).sort().values[:NEIGHBOURS].mean().item()


def others(points: torch.Tensor, index: int) -> torch.Tensor:
    return torch.cat([points[:index], points[index + 1 :]])


# --- making -------------------------------------------------------------------------------------------------------


def test_a_reference_holds_what_the_encoder_makes_of_each_picture(tiny, images):
    reference, scores, own = reference_of([images[:3], images[3:]], tiny.encoder)
    (part,) = reference.parts
    assert (part.encoder, part.image_size) == ("tiny", 28)
    assert part.fingerprint == tiny.encoder.encoder.fingerprint
    expected = embedded(tiny.encoder, images)
    torch.testing.assert_close(part.embeddings, expected, **CLOSE)
    each = [embedded(tiny.encoder, view) for view in views(images)]
    torch.testing.assert_close(part.smoothed, torch.stack(each).mean(0), **CLOSE)
    assert scores == score_images(images, tiny.encoder)[0]
    assert part.scores.tolist() == scores
    assert own == pytest.approx([far(expected[i], others(expected, i)) for i in range(9)], rel=1e-4)
    assert reference.how == HOW
    # made under inference mode, and yet gradients can use them
    assert not any(tensor.is_inference() for tensor in (part.embeddings, part.smoothed, part.scores))


def test_without_scores_no_score_is_computed(tiny, images, monkeypatch):
    monkeypatch.setattr("jepa_guidance.host.scoring.scores.jepa_score", None)
    reference, scores, own = reference_of([images], tiny.encoder, mode=NO_SCORE)
    assert scores == []
    assert len(own) == 9
    assert reference.parts[0].scores is None
    assert reference.how["mode"] == NO_SCORE


def test_pictures_of_any_size_and_transparent_ones(tiny, images):
    large = torch.nn.functional.interpolate(images[:2].movedim(-1, 1), size=(42, 56)).movedim(1, -1)
    alpha = torch.linspace(0, 1, 28)[:, None].expand(9, 28, 28)[..., None]
    reference, *_ = reference_of([torch.cat([images, alpha], -1), large], tiny.encoder, mode=NO_SCORE)
    seen = torch.cat([embedded(tiny.encoder, images * alpha + 1 - alpha), embedded(tiny.encoder, large)])
    torch.testing.assert_close(reference.parts[0].embeddings, seen, **CLOSE)


def test_a_set_of_encoders_gives_a_part_for_each(tiny, images, both):
    reference, scores, own = reference_of([images], both)
    assert [part.image_size for part in reference.parts] == [28, 42]
    each = score_images(images, both)
    assert scores == pytest.approx([0.75 * a + 0.25 * b for a, b in zip(*each, strict=True)])
    assert sorted_scores(reference, both) == sorted(scores)
    # either of them alone can use it
    assert sorted_scores(reference, tiny.encoder) == sorted(each[0])
    assert part_of(reference, tiny.encoder) is reference.parts[0]
    units = []
    for member in both.members:
        z = embedded(member.encoder, images)
        distances = torch.tensor([far(z[i], others(z, i)) for i in range(9)])
        units.append(member.weight * distances / distances.median())
    assert own == pytest.approx(sum(units).tolist(), rel=1e-4)


@pytest.mark.parametrize("mode", [NO_SCORE, "exact"])
def test_of_large_pictures_few_are_held_at_a_time(tiny, mode, monkeypatch):
    held: set[int] = set()
    most = 0

    def read() -> Any:
        nonlocal most
        for seed in range(9):
            picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(seed))
            held.add(seed)
            weakref.finalize(picture, held.remove, seed)
            most = max(most, len(held))
            yield picture
            del picture

    whole = make_reference(list(read()), tiny.encoder, HOW | {"mode": mode})
    known.clear()
    most = 0
    monkeypatch.setattr("jepa_guidance.host.scoring.reference._HELD_BYTES", 2 * 64 * 64 * 3 * 4)
    few = make_reference(read(), tiny.encoder, HOW | {"mode": mode})
    assert most <= 3
    assert torch.equal(few.parts[0].embeddings, whole.parts[0].embeddings)


def test_pictures_that_change_between_two_encoders_are_refused(images, both):
    class Shrinking:
        left = 4

        def __iter__(self) -> Any:
            self.left -= 1
            return iter(images[: self.left])

    with pytest.raises(ValueError, match="the pictures changed"):
        make_reference(Shrinking(), both, HOW | {"mode": NO_SCORE})


# --- comparing ----------------------------------------------------------------------------------------------------


def test_shares_count_the_images_that_are_less_rare(tiny, images):
    reference, *_ = reference_of([images[:3], images[3:8]], tiny.encoder)
    (own,) = score_images(images, tiny.encoder)
    scores, text, _, rarer, distances, shares = score(images, tiny.encoder, reference=reference)
    above = [(np.array(own[:8]) > value).sum() for value in own]
    same = [(np.array(own[:8]) == value).sum() for value in own]
    assert rarer == pytest.approx([100 * (a + s / 2) / 8 for a, s in zip(above, same, strict=True)])
    assert scores == own
    z = embedded(tiny.encoder, images)
    among = [
        far(z[i], others(z[:8], i)) for i in range(8)
    ]  # a picture of the reference is not its own neighbour
    assert distances == pytest.approx([*among, far(z[8], z[:8])], rel=1e-4)
    assert sorted(shares[:8]) == pytest.approx([100 * (i + 0.5) / 8 for i in range(8)])
    assert shares[8] == pytest.approx(100 * (np.array(among) < distances[8]).mean())
    line = f"image 0: rarer than {rarer[0]:.0f} % of 8 reference images, more novel than {shares[0]:.0f} % "
    assert f"{line}(score {own[0]:.2f}, novelty {distances[0]:.2f})" in text


def test_a_picture_far_from_the_reference_is_rarer_than_all_of_it(tiny, images):
    near = images[:1] + 0.01 * torch.randn(6, 28, 28, 3, generator=torch.Generator().manual_seed(1))
    reference, *_ = reference_of([near.clamp(0, 1)], tiny.encoder, mode=NO_SCORE)
    *_, rarer, distances, shares = score(images[[0, 5]], tiny.encoder, reference=reference)
    assert rarer == []
    assert distances[1] > distances[0]
    assert shares[1] == 100
    assert shares[0] < 50


def test_a_set_of_encoders_is_compared_with_its_own_parts(images, both):
    reference, *_ = reference_of([images[:8]], both)
    *_, distances, shares = score(images[8:], both, reference=reference)
    expected = 0.0
    for member in both.members:
        z = embedded(member.encoder, images)
        own = torch.tensor([far(z[i], others(z[:8], i)) for i in range(8)]).median().item()
        expected += member.weight * far(z[8], z[:8]) / own
    assert distances == pytest.approx([expected], rel=1e-4)
    assert shares == pytest.approx([percentile(expected, sorted_novelties(reference, both))])


def repeated(reference: Reference) -> Reference:
    """Every picture three times, as from overlapping folders."""
    return merged([reference, reference, reference])


def test_pictures_that_repeat_count_once(tiny, images):
    once, *_ = reference_of([images[:8]], tiny.encoder)
    _, text, *expected = score(images, tiny.encoder, reference=once)
    _, again, *found = score(images, tiny.encoder, reference=repeated(once))
    assert found == expected
    assert again == text
    assert sorted_novelties(repeated(once), tiny.encoder) == sorted_novelties(once, tiny.encoder)
    assert sorted_scores(repeated(once), tiny.encoder) == sorted_scores(once, tiny.encoder)


def test_every_image_is_told_its_novelty_though_some_repeat(tiny, images):
    _, _, once = reference_of([images[:8]], tiny.encoder)
    reference, scores, own = reference_of([images[:8], images[:3]], tiny.encoder)
    assert (len(reference), len(scores)) == (11, 11)
    assert own == pytest.approx([*once, *once[:3]], rel=1e-5)


def test_of_images_that_are_all_the_same_none_is_novel(tiny, images):
    _, _, own = reference_of([images[[0, 0, 0]]], tiny.encoder, mode=NO_SCORE)
    assert own == pytest.approx([0, 0, 0], abs=1e-3)


def test_a_picture_of_the_reference_that_was_saved_is_compared_with_the_others(tiny, images):
    reference, _, own = reference_of([images], tiny.encoder, mode=NO_SCORE)
    saved = (images * 255).floor() / 255  # as the host saves pictures
    *_, distances, _ = score(saved, tiny.encoder, reference=reference)
    assert distances == pytest.approx(own, rel=0.05)


def test_without_a_reference_there_is_nothing_beside_a_score(tiny, images):
    _, text, _, *beside = score(images[:1], tiny.encoder)
    assert beside == [[], [], []]
    assert "reference" not in text
    assert "novel" not in text


def test_a_reference_of_one_picture_gives_distances_but_no_share(tiny, images):
    reference, _, own = reference_of([images[:1]], tiny.encoder)
    assert own == []
    _, text, _, rarer, distances, shares = score(images[1:3], tiny.encoder, reference=reference)
    assert (len(rarer), len(distances), shares) == (2, 2, [])
    assert "more novel" not in text


def test_the_distances_among_the_pictures_are_the_mathematics_and_remembered(tiny, images, monkeypatch):
    reference, *_ = reference_of([images], tiny.encoder, mode=NO_SCORE)
    found = sorted_novelties(reference, tiny.encoder)
    assert found == sorted(distances_within(reference.parts[0].embeddings).tolist())
    monkeypatch.setattr(novelty, "Distances", None)
    assert sorted_novelties(reference, tiny.encoder) == found


def test_the_percentile_by_hand():
    scores = [-3.0, -2.0, -2.0, 5.0]
    assert [percentile(value, scores) for value in (-4.0, -3.0, -2.0, 0.0, 6.0)] == [0, 12.5, 50, 75, 100]


# --- ranking ------------------------------------------------------------------------------------------------------


OTHERWISE = ({"mode": "top-k"}, {"fit": "crop"}, {"antialias": False})
AUTO = {"mode": "auto", "top_k": 7, "fit": "auto", "antialias": True}


@pytest.mark.parametrize("made", OTHERWISE, ids=str)
def test_a_reference_brings_how_its_pictures_were_seen_and_scored(tiny, made):
    wide = torch.rand(6, 28, 40, 3, generator=torch.Generator().manual_seed(5))
    reference, *_ = reference_of([wide[:5]], tiny.encoder, **made)
    found = score(wide, tiny.encoder, reference=reference, **AUTO)
    assert found == score(wide, tiny.encoder, reference=reference, **made)
    assert found[3][:5] == pytest.approx(
        [100 - percentile(one, sorted(found[0][:5])) for one in found[0][:5]]
    )
    scores, novelty = (
        rank([wide], tiny.encoder, mode="auto", by=by, count=6, reference=reference)
        for by in ("score", "novelty")
    )
    assert scores[1] == sorted(found[0])
    assert novelty[1] == sorted(found[4], reverse=True)
    with torch.inference_mode():
        views = [
            {name: settings[name] for name in ("fit", "antialias")} for settings in (AUTO, SETTINGS | made)
        ]
        maps = [
            JEPARarityMap.execute(wide, tiny.encoder, 0.5, reference=reference, **view).args[1]
            for view in views
        ]
    assert torch.equal(*maps)


def test_without_a_reference_auto_is_projected_and_squashed(tiny, images, monkeypatch):
    monkeypatch.setattr("jepa_guidance.host.scoring.modes.PROJECTION", 5)
    wide = images[:, :20]
    assert score(wide, tiny.encoder, **AUTO) == score(wide, tiny.encoder, mode="projected")
    # a reference without scores says only how pictures are seen
    reference, *_ = reference_of([wide[:4]], tiny.encoder, mode=NO_SCORE, fit="crop")
    found = score(wide, tiny.encoder, reference=reference, **AUTO)
    assert found[0] == score(wide, tiny.encoder, mode="projected", fit="crop")[0]


@pytest.mark.parametrize("made", OTHERWISE, ids=str)
def test_what_is_chosen_otherwise_than_the_reference_is_refused_before_work(tiny, images, made, monkeypatch):
    reference, *_ = reference_of([images[:5]], tiny.encoder, **made)
    monkeypatch.setattr("jepa_guidance.nodes.score_image.score_images", None)
    (name,) = made
    with pytest.raises(ValueError, match=f"reference was made with {name} .*, this node has"):
        score(images, tiny.encoder, reference=reference)


@pytest.mark.parametrize("keep", ["rarest", "most typical"])
def test_images_are_ranked_by_novelty_without_a_score(tiny, images, keep, monkeypatch):
    reference, *_ = reference_of([images[:5]], tiny.encoder, mode=NO_SCORE)
    expected = novelties(list(images), tiny.encoder, reference, HOW)
    monkeypatch.setattr("jepa_guidance.host.scoring.rarity.score_batches", None)
    (kept,), values, indices, *_ = rank(
        [images[:4], images[4:]], tiny.encoder, keep=keep, by="novelty", reference=reference
    )
    assert indices == np.argsort(expected)[:: -1 if keep == "rarest" else 1][:3].tolist()
    assert values == [expected[index] for index in indices]
    assert torch.equal(kept, images[indices])


def test_ranking_by_score_is_the_same_with_a_reference_and_says_rarer_than(tiny, images):
    reference, *_ = reference_of([images[:5]], tiny.encoder)
    plain, beside = (rank([images], tiny.encoder, **more) for more in ({}, {"reference": reference}))
    assert plain[1:3] == beside[1:3]
    assert beside[4].shape[1] > plain[4].shape[1]  # one line more


@pytest.mark.parametrize(
    ("changes", "made", "message"),
    [
        ({"by": "novelty"}, None, "reference is needed to rank by novelty"),
        ({"by": "beauty"}, None, "by must be one of score, novelty"),
        ({}, {"mode": "top-k"}, "mode top 2, this node has exact"),
    ],
)
def test_a_ranking_that_cannot_be_is_refused_before_work(tiny, images, changes, made, message, monkeypatch):
    if made is not None:
        changes = changes | {"reference": reference_of([images[:2]], tiny.encoder, **made)[0]}
    monkeypatch.setattr("jepa_guidance.host.scoring.rarity.score_batches", None)
    with pytest.raises(ValueError, match=message):
        rank([images], tiny.encoder, **changes)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "top-k"}, "mode exact, this node has top 2"),
        ({"fit": "crop"}, "fit squash, this node has crop"),
        ({"antialias": False}, "antialias on, this node has off"),
    ],
)
def test_what_was_made_with_other_settings_is_not_compared(tiny, images, changes, message, monkeypatch):
    reference, *_ = reference_of([images[:2]], tiny.encoder)
    monkeypatch.setattr("jepa_guidance.nodes.score_image.score_images", None)
    with pytest.raises(ValueError, match=message):
        score(images[:1], tiny.encoder, reference=reference, **changes)


def test_another_encoder_or_size_is_refused_before_work(tiny, images, both, monkeypatch):
    reference, *_ = reference_of([images[:2]], tiny.encoder)
    monkeypatch.setattr("jepa_guidance.nodes.score_image.score_images", None)
    other = replace(tiny.encoder, image_size=42)
    for encoder in (other, both):
        with pytest.raises(ValueError, match="made with tiny at 28 px, this node's is at 42 px"):
            score(images[:1], encoder, reference=reference)
    stranger = tiny.make_encoder()
    with torch.inference_mode():
        stranger.encoder.model.layernorm.weight.mul_(1.5)
    with pytest.raises(ValueError, match="tiny at 28 px, this node has tiny at 28 px with other weights"):
        score(images[:1], stranger, reference=reference)
    check_comparable(reference, tiny.make_encoder(), HOW)  # loaded again, the same


def test_no_image_and_several_settings_are_refused(tiny, images):
    with pytest.raises(ValueError, match="holds no image"):
        reference_of([images[:0]], tiny.encoder)
    lists = {name: [value] for name, value in SETTINGS.items()} | {"mode": ["exact"] * 2}
    with pytest.raises(ValueError, match="mode must be one value, got a list of 2"):
        JEPAReferenceNode.execute(images=[images], encoder=[tiny.encoder], **lists)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "top-k", "top_k": 17}, "top_k 17 is larger than the embedding of tiny, 16"),
        ({"mode": "projected"}, "projection 48 is larger than the embedding of tiny"),
        ({"mode": "none"}, "mode must be one of projected, exact, top-k, no scores"),
        ({"fit": "stretch"}, "fit must be one of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, images, changes, message):
    with pytest.raises(ValueError, match=message):
        reference_of([images], tiny.encoder, **changes)


@pytest.mark.parametrize("spoil", [lambda x: x[0], lambda x: x[..., :2], lambda x: x / 0, lambda x: "text"])
def test_what_is_not_an_image_is_refused(tiny, images, spoil):
    with pytest.raises(ValueError, match="images"):
        reference_of([images, spoil(images)], tiny.encoder)


# --- size ---------------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_pictures_are_searched_quickly():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(100_000, 384, generator=generator)
    distances = Distances(points)
    begun = time.process_time()
    found = distances.of(points[:4] + 1)
    assert time.process_time() - begun < 2
    expected = torch.cdist(points[:4] + 1, points).sort(1).values[:, :NEIGHBOURS].mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    begun = time.process_time()
    assert len(distances.own) == SAMPLE
    assert time.process_time() - begun < 60


def test_embeddings_of_another_length_are_refused(tiny):
    points = torch.zeros(3, 8)
    key = (tiny.encoder.encoder.fingerprint, 28)
    reference = Reference((ReferencePart("tiny", *key, points, points),), HOW | {"mode": NO_SCORE})
    with pytest.raises(
        ValueError, match="its embeddings have another length than those of tiny at 28 px, 16"
    ):
        sorted_novelties(reference, tiny.encoder)
