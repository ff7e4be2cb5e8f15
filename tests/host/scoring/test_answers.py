"""What is known of pictures is not asked again, and is what would have been answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from jepa_guidance.host.scoring import answers
from jepa_guidance.host.scoring.answers import Answers, digest, known
from jepa_guidance.host.scoring.novelty import novelties
from jepa_guidance.host.scoring.rarity_map import novelty_fields, score_fields
from jepa_guidance.host.scoring.reference import make_reference
from jepa_guidance.host.scoring.scores import score_images

HOW = {"mode": "exact", "fit": "squash", "antialias": "on"}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 28, 28, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def passes(tiny: Any) -> list[int]:
    """How many pictures the encoder sees, from its own forward calls."""
    counted: list[int] = []
    tiny.encoder.patcher.model.model.register_forward_pre_hook(
        lambda _, args, kwargs: counted.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    return counted


def _all(images: torch.Tensor, encoder: Any) -> dict[str, torch.Tensor]:
    """Everything that is kept, of some images."""
    with torch.inference_mode():
        reference = make_reference(list(images[:3]), encoder, HOW)
        part = reference.parts[0]
        return {
            "exact": torch.tensor(score_images(images, encoder)),
            "top 2": torch.tensor(score_images(images, encoder, top_k=2)),
            "projected": torch.tensor(score_images(images, encoder, projection=4)),
            "novelty": torch.tensor(novelties(list(images), encoder, reference, HOW)),
            "embeddings": part.embeddings,
            "smoothed": part.smoothed,
            "scores": part.scores,
            "map": score_fields(images, encoder),
            "novelty map": novelty_fields(images, encoder, reference),
        }


def test_answers_are_those_of_an_encoder_that_is_asked(tiny, images, passes):
    first = _all(images, tiny.encoder)
    assert passes
    passes.clear()
    again = _all(images, tiny.encoder)
    assert not passes
    for name, value in first.items():
        assert torch.equal(value, again[name]), name


def test_the_order_of_questions_changes_nothing_but_rounding(tiny, images):
    first = _all(images, tiny.encoder)
    known.clear()
    _all(images.flip(0)[:2], tiny.encoder)  # another history, in other batches
    for name, value in _all(images, tiny.encoder).items():
        assert torch.allclose(value.double(), first[name].double(), rtol=1e-5, atol=1e-5), name


def test_only_new_pictures_are_asked_about(tiny, images, passes):
    with torch.inference_mode():
        score_images(images[:4], tiny.encoder, projection=4)
        passes.clear()
        together = score_images(images, tiny.encoder, projection=4)
        seen = sum(passes)
        known.clear()
        passes.clear()
        alone = score_images(images[4:], tiny.encoder, projection=4)
    assert seen == sum(passes)
    assert together[0][4:] == alone[0]


@pytest.mark.parametrize("change", ["pixels", "image size", "weights", "settings", "view"])
def test_what_an_answer_depends_on_is_asked_again(tiny, images, passes, change):
    settings: dict[str, Any] = {"projection": 4}
    with torch.inference_mode():
        score_images(images, tiny.encoder, **settings)
        passes.clear()
        encoder = tiny.encoder
        if change == "pixels":
            images = images.clone()
            images[:, 0, 0, 0] = 1 - images[:, 0, 0, 0]
        elif change == "image size":
            encoder = replace(encoder, image_size=42)
        elif change == "weights":
            other = tiny.make_encoder()
            weight = next(other.patcher.model.model.parameters())
            weight.view(-1)[0] += 1
            before = score_images(images, encoder, **settings)
            assert not passes
            assert score_images(images, other, **settings) != before
            return
        elif change == "settings":
            settings = {"projection": 3}
        else:
            settings["fit"] = "crop"
            images = images[:, :20]
        score_images(images, encoder, **settings)
    assert passes


def test_a_picture_that_comes_twice_is_asked_about_once(tiny, images, passes):
    twice = torch.cat([images[:1], images[:1]])
    with torch.inference_mode():
        ((first, second),) = score_images(twice, tiny.encoder, projection=4)
        seen = sum(passes)
        known.clear()
        passes.clear()
        score_images(twice[:1], tiny.encoder, projection=4)
    assert first == second
    assert seen == sum(passes)


def test_after_an_interrupt_nothing_is_asked_again(tiny, images, passes, monkeypatch):
    done: list[None] = []

    def stop() -> None:
        done.append(None)
        if len(done) == 3:
            raise InterruptedError

    with torch.inference_mode():
        with pytest.raises(InterruptedError):
            score_images(images, tiny.encoder, projection=4, on_image=stop)
        per_picture = sum(passes) / 3
        passes.clear()
        score_images(images, tiny.encoder, projection=4)
    assert sum(passes) == 2 * per_picture


def test_memory_is_bounded_and_the_answer_not_used_for_longest_goes_first():
    one = torch.zeros(1000)
    size = 4000 + answers._ENTRY_BYTES
    some = Answers(3 * size)
    for key in "abc":
        some.keep(key, one)
    assert some.get("a") is one
    some.keep("d", one)
    assert some.get("b") is None
    assert [some.get(key) is one for key in "acd"] == [True] * 3
    assert some.bytes == 3 * size
    some.keep("large", torch.zeros(4000))
    assert some.get("large") is None
    assert some.bytes == 0


def test_more_pictures_than_memory_holds_still_get_their_answers(tiny, images, monkeypatch):
    monkeypatch.setattr(answers, "known", Answers(0))
    with torch.inference_mode():
        found = score_images(images, tiny.encoder, projection=4)
        assert found == score_images(images, tiny.encoder, projection=4)


def test_pictures_are_told_apart_by_shape_type_and_values():
    picture = torch.zeros(2, 6, 3)
    different: Iterator[torch.Tensor] = iter(
        (picture.view(6, 2, 3), picture.half(), picture.double(), picture + 1e-7, picture[:1])
    )
    names = {digest(picture), *map(digest, different)}
    assert len(names) == 6
    assert digest(picture.clone()) == digest(picture)
    assert digest(torch.zeros(6, 2, 3).transpose(0, 1)) == digest(picture)
