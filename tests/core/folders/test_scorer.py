"""What a scorer makes of a picture, against the library's functions called one by one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from jepa_core import jepa_score
from jepa_core.folders.scorer import Scorer, Settings, part_from, settings_of
from jepa_core.reference import NO_SCORE
from jepa_core.transparency import over_white
from jepa_core.views import views
from tests.core.folders.conftest import scorer_of


def pictures(count: int, channels: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(30 + 7 * i, 40 + i, channels, generator=generator) for i in range(count)]


@pytest.mark.parametrize("mode", ["projected on 8 outputs", "exact", "top 3", NO_SCORE])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_picture_has_the_score_and_embeddings_that_the_library_gives(encoder_folder, mode, channels):
    scorer = scorer_of(encoder_folder, mode=mode, fit="crop", antialias="off")
    encoder = scorer.encoder
    each = pictures(3, channels)
    found = scorer.score([scorer.prepare(picture) for picture in each])
    for picture, one in zip(each, found, strict=True):
        shown = over_white(picture[None])
        seen = [encoder.preprocess(view, fit="crop", antialias=False) for view in views(shown)]
        embeddings = torch.cat([encoder(x) for x in seen])
        torch.testing.assert_close(one.embedding, embeddings[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.smoothed, embeddings.mean(0), rtol=1e-4, atol=1e-5)
        if mode == NO_SCORE:
            assert one.score is None
        else:
            assert one.score == jepa_score(encoder, seen[0], **scorer.settings.scoring).item()
    part = part_from(found, scorer.settings)
    assert torch.equal(part.embeddings, torch.stack([one.embedding for one in found]))
    assert (part.scores is None) == (mode == NO_SCORE)


def test_what_is_found_does_not_depend_on_the_pictures_beside_it(scorer):
    prepared = [scorer.prepare(picture) for picture in pictures(5)]
    together = scorer.score(prepared)
    for alone, one in zip((scorer.score([x])[0] for x in prepared), together, strict=True):
        assert alone.score == one.score
        assert torch.equal(alone.embedding, one.embedding)
        assert torch.equal(alone.smoothed, one.smoothed)


def test_numbers_that_are_not_finite_are_refused(scorer):
    broken = scorer.prepare(pictures(1)[0] * torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        scorer.score([broken])


def test_more_outputs_than_an_embedding_has_are_refused(encoder_folder):
    for mode, name in (("top 65", "top_k 65"), ("projected on 65 outputs", "projection 65")):
        with pytest.raises(ValueError, match=f"{name} is larger than the embedding of .*, 64; lower it"):
            scorer_of(encoder_folder, mode=mode)


def test_settings_come_back_and_their_key_depends_on_all_but_the_name(scorer):
    settings = scorer.settings
    assert settings_of(settings.text) == settings
    changes = {"fingerprint": "x", "image_size": 42, "fit": "crop", "antialias": "off", "mode": "exact"}
    for name, value in changes.items():
        other = replace(settings, **{name: value})
        assert other.key != settings.key
        assert str(value) in (settings.difference(other) or "")
    renamed = replace(settings, encoder="another name")
    assert renamed.key == settings.key
    assert settings.difference(renamed) is None


@pytest.mark.parametrize(
    "change",
    [
        {"fit": 3},
        {"image_size": "28"},
        {"image_size": True},
        {"more": "x"},
        {"mode": "best"},
        {"mode": "top 0"},
    ],
)
def test_settings_of_another_kind_are_refused(scorer, change):
    with pytest.raises(ValueError, match="its"):
        settings_of(json.dumps(json.loads(scorer.settings.text) | change))
    for text in ("", "[]", "3", "{}"):
        with pytest.raises(ValueError):
            settings_of(text)


def test_the_scorer_has_the_settings_that_it_was_given(scorer):
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer.settings, Settings)
    assert scorer.settings.how == {"mode": "projected on 8 outputs", "fit": "squash", "antialias": "on"}
