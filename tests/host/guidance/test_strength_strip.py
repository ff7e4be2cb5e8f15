"""JEPAStrengthStrip beside runs of JEPAGuidedKSampler and KSampler, one for each strength."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jepa_guidance.host.comfy.sampling import wrap_call
from jepa_guidance.host.guidance.notes import METADATA_KEY
from jepa_guidance.host.scoring.reference import make_reference
from jepa_guidance.host.scoring.scores import score_images
from jepa_guidance.host.scoring.strengths import MOST, strengths_of
from jepa_guidance.nodes.cads import JEPACads
from jepa_guidance.nodes.guided_ksampler import JEPAGuidedKSampler
from jepa_guidance.nodes.strength_strip import JEPAStrengthStrip
from torch import Tensor

STRENGTHS = (-1.0, 0.0, 2.0)
OUTPUTS = [output.display_name for output in JEPAStrengthStrip.define_schema().outputs]


def defaults(node: Any) -> dict[str, Any]:
    entries = node.define_schema().inputs
    return {entry.id: entry.default for entry in entries if getattr(entry, "default", None) is not None}


def inputs(tiny: Any, **changes: Any) -> dict[str, Any]:
    found = defaults(JEPAGuidedKSampler)
    del found["strength"]
    found |= {"model": tiny.model, "vae": tiny.vae, "encoder": tiny.encoder, "preset": "custom", "rank": 3}
    found |= {"positive": tiny.positive, "negative": tiny.negative, "seed": 5, "steps": 5, "cfg": 3.0}
    return found | {"latent_image": {"samples": torch.zeros(1, 4, 8, 8)}} | changes


def strip(tiny: Any, **changes: Any) -> dict[str, Any]:
    values = {"strengths": ", ".join(map(str, STRENGTHS))} | inputs(tiny, **changes)
    with torch.inference_mode():
        return dict(zip(OUTPUTS, JEPAStrengthStrip.execute(**values).result, strict=True))


def guided(tiny: Any, strength: float, **changes: Any) -> Tensor:
    with torch.inference_mode():
        latent, _ = JEPAGuidedKSampler.execute(strength=strength, **inputs(tiny, **changes)).result
        return latent["samples"].clone()


def reference_of(encoder: Any, mode: str) -> Any:
    pictures = torch.rand(7, 16, 16, 3, generator=torch.Generator().manual_seed(5))
    how = {"mode": mode, "fit": "squash", "antialias": "on"}
    return make_reference(list(pictures), encoder, how)


def test_the_inputs_are_those_of_the_guided_sampler_with_strengths_in_place_of_strength():
    own, other = (node.define_schema().inputs for node in (JEPAStrengthStrip, JEPAGuidedKSampler))
    names = [entry.id for entry in own]
    assert [name.replace("strengths", "strength") for name in names] == [entry.id for entry in other]
    for mine, theirs in zip(own, other, strict=True):
        assert mine.id == "strengths" or mine.as_dict() == theirs.as_dict()


def test_each_image_is_that_of_its_strength_and_at_0_the_stock_samplers_bit_for_bit(tiny, stock):
    found = strip(tiny)
    assert found["strengths"] == list(STRENGTHS)
    latents = found["latents"]["samples"]
    assert latents.shape == (3, 4, 8, 8)
    for latent, image, strength in zip(latents, found["images"], STRENGTHS, strict=True):
        alone = guided(tiny, strength)
        assert torch.equal(latent, alone[0])
        with torch.inference_mode():
            assert torch.equal(image, tiny.vae.decode(alone)[0])
    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    assert torch.equal(latents[1], stock(tiny.model, tiny, latent_image=empty)[0])
    assert len({one.numpy().tobytes() for one in latents}) == 3


def test_a_batch_has_a_row_for_each_image_and_keeps_its_mask(tiny):
    mask = torch.zeros(2, 8, 8)
    mask[0, :4] = mask[1, :, :4] = 1
    latent = {"samples": torch.ones(2, 4, 8, 8), "noise_mask": mask}
    found = strip(tiny, latent_image=latent)
    each = [guided(tiny, strength, latent_image=latent) for strength in STRENGTHS]
    rows = [one[row] for row in range(2) for one in each]
    assert torch.equal(found["latents"]["samples"], torch.stack(rows))
    assert torch.equal(found["latents"]["noise_mask"], mask.repeat_interleave(3, 0))
    assert found["strengths"] == list(STRENGTHS) * 2
    # three columns and two rows of squares, with two lines below each
    height, width = found["strip"].shape[1:3]
    assert width == 3 * 256 + 4 * 16
    assert height > 2 * 256 + 4 * 28


def test_the_first_steps_are_the_same_for_all_strengths(tiny):
    runs: list[list[Tensor]] = []

    def seen(executor: Any, x: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not runs or float(sigmas) > last[0]:
            runs.append([])
        last[0] = float(sigmas)
        runs[-1].append(x.detach().clone())
        return executor(x, sigmas, *args, **kwargs)

    last = [0.0]
    model = tiny.model.clone()
    wrap_call(model, "test", seen)
    strip(tiny, model=model, steps=10)
    assert len(runs) == 3
    # two of ten are not guided
    for other in runs[1:]:
        assert all(torch.equal(*pair) for pair in zip(runs[0][:2], other[:2], strict=True))
        assert not torch.equal(runs[0][-1], other[-1])


def test_without_a_reference_the_scores_are_those_of_the_encoder(tiny):
    found = strip(tiny)
    size = tiny.encoder.encoder.embed_dim
    with torch.inference_mode():
        (expected,) = score_images(found["images"], tiny.encoder, projection=size)
    assert found["scores"] == expected
    assert found["rarer_than"] == []


@pytest.mark.parametrize(
    ("mode", "criterion"), [("top 3", "score"), ("top 3", "novelty"), ("no scores", "score")]
)
def test_with_a_reference_each_image_has_a_place_in_it(tiny, mode, criterion):
    reference = reference_of(tiny.encoder, mode)
    found = strip(tiny, reference=reference, criterion=criterion)
    (part,) = reference.parts
    if criterion == "score" and mode != "no scores":
        with torch.inference_mode():
            (values,) = score_images(found["images"], tiny.encoder, top_k=3)
        assert part.scores is not None
        rarer = [[float(other) > value for other in part.scores] for value in values]
    else:
        encoder = tiny.encoder.encoder
        with torch.inference_mode():
            seen = encoder(encoder.preprocess(found["images"]))
        values = torch.cdist(seen, part.embeddings).sort(1).values[:, :5].mean(1).tolist()
        own = torch.cdist(part.embeddings, part.embeddings).sort(1).values[:, 1:6].mean(1)
        rarer = [[float(other) < value for other in own] for value in values]
    assert found["scores"] == pytest.approx(values, rel=1e-4)
    assert found["rarer_than"] == pytest.approx([100 * sum(one) / 7 for one in rarer])


def test_the_judge_measures_unless_the_reference_does_not_know_it(tiny):
    judge = replace(tiny.encoder, image_size=42, name="judge")
    seen = strip(tiny, judge=judge)
    with torch.inference_mode():
        (expected,) = score_images(seen["images"], judge, projection=judge.encoder.embed_dim)
    assert seen["scores"] == expected
    reference = reference_of(tiny.encoder, "no scores")
    beside = strip(tiny, judge=judge, reference=reference)
    assert beside["scores"] == strip(tiny, reference=reference)["scores"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strengths": ""}, "strengths must be 1 to 24 numbers, got 0"),
        ({"strengths": "0, one"}, "strengths must be numbers, such as -1, 0, 0.5, 1; got 'one'"),
        ({"strengths": "nan"}, "got 'nan'"),
        ({"strengths": "1e3"}, "got '1e3'"),
        ({"strengths": "0 11"}, "strengths names 11, which is outside -10 to 10"),
        ({"strengths": "1, 2, 1.0"}, "strengths names 1 twice"),
        ({"strengths": 1.0}, "strengths must be text, got 1.0"),
        ({"rank": 0}, "rank 0 is outside 1 to 256"),
        ({"encoder": "text"}, "encoder must be of type JEPA_ENCODER, got str"),
        ({"latent_image": {"samples": torch.zeros(1, 4, 3, 8, 8)}}, "latent_image must be of pictures"),
        ({"sampler_name": "dpm_adaptive"}, "dpm_adaptive"),
        ({"target": "1 in 5"}, "target is in units of a reference"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_image(tiny, monkeypatch, changes, message):
    monkeypatch.setattr("jepa_guidance.nodes.strength_strip.stock_sample", None)
    with pytest.raises(ValueError, match=message):
        strip(tiny, **{"strengths": "0, 1"} | changes)


def test_a_reference_of_other_settings_is_refused_at_strength_0_too(tiny, monkeypatch):
    monkeypatch.setattr("jepa_guidance.nodes.strength_strip.stock_sample", None)
    with pytest.raises(ValueError, match="reference was made with fit squash, this node has crop"):
        strip(tiny, strengths="0", fit="crop", reference=reference_of(tiny.encoder, "no scores"))


def test_entries_of_a_latent_that_are_none_count_as_absent(tiny):
    bare = {"samples": torch.zeros(2, 4, 8, 8)}
    none = bare | {"noise_mask": None, "batch_index": None}
    latent, other = (strip(tiny, strengths="0, 1", latent_image=one)["latents"] for one in (bare, none))
    assert torch.equal(latent.pop("samples"), other.pop("samples"))
    assert latent == other == {"batch_index": [0, 0, 1, 1]}


def test_a_strip_that_would_be_too_high_is_refused_before_it_is_drawn(tiny, monkeypatch):
    monkeypatch.setattr("jepa_guidance.nodes.strength_strip.stock_sample", None)
    with pytest.raises(
        ValueError, match="latent_image holds 200 images, each a row of the strip; use 199 at most"
    ):
        strip(tiny, latent_image={"samples": torch.zeros(200, 4, 8, 8)})


def test_the_text_of_strengths_is_read_in_its_order():
    assert strengths_of("-1, 0; .5\n2 \u22123 +4 -0.25", 10) == [-1, 0, 0.5, 2, -3, 4, -0.25]
    assert str(strengths_of("-0", 10)[0]) == "0.0"
    numbers = ", ".join(str(number / 10) for number in range(MOST))
    assert len(strengths_of(numbers, 10)) == MOST
    with pytest.raises(ValueError, match=f"1 to {MOST} numbers, got {MOST + 1}"):
        strengths_of(f"{numbers} 9", 10)


@pytest.mark.parametrize("comma", [*",;", "\uff0c", "\uff1b", "\u3001"])
def test_numbers_may_stand_between_commas_of_any_keyboard(comma):
    assert strengths_of(f"-1{comma} 0{comma} 0.5", 10) == [-1, 0, 0.5]
    assert strengths_of(f"-1{comma}0{comma}0.5", 10) == [-1, 0, 0.5]


@pytest.mark.parametrize(
    ("text", "named"),
    [("0,5", "0,5"), ("0.5, 1,5", "1,5"), ("-1,0", "-1,0"), ("1; 0,5", "0,5"), ("0,5 1", "0,5")],
)
def test_a_comma_that_may_stand_for_a_point_is_refused(text, named):
    message = f"strengths must have a space after each comma, and a point in decimals, .* got '{named}'"
    with pytest.raises(ValueError, match=message):
        strengths_of(text, 10)


def test_a_typed_text_that_does_not_fit_is_refused_before_the_graph_runs():
    assert JEPAStrengthStrip.validate_inputs(strengths="-1, 0, 2") is True
    assert JEPAStrengthStrip.validate_inputs() is True  # a linked one is checked when it is known
    assert "strengths must be numbers" in JEPAStrengthStrip.validate_inputs(strengths="x")


def said(monkeypatch: pytest.MonkeyPatch, tiny: Any, **changes: Any) -> str:
    """What the node says after a run."""
    texts: list[str] = []
    monkeypatch.setattr("jepa_guidance.nodes.strength_strip.show_text", lambda _, text: texts.append(text))
    strip(tiny, **changes)
    return texts[-1]


def test_strength_0_is_called_unguided_unless_the_model_brings_a_patch(tiny, monkeypatch):
    assert "strength 0: unguided: score" in said(monkeypatch, tiny, strengths="0")
    model = JEPACads.execute(tiny.model, **defaults(JEPACads)).result[0]
    text = said(monkeypatch, tiny, strengths="0", model=model)
    assert "strength 0: as CADS made it: score" in text


def test_an_empty_range_is_said_and_takes_any_sampler(tiny, monkeypatch):
    empty = {"start_percent": 0.5, "end_percent": 0.5, "sampler_name": "dpm_adaptive"}
    text = said(monkeypatch, tiny, strengths="0, 1", **empty)
    assert text.count("off (strength 0 or an empty range); this is the stock sampler's image") == 1
    assert "off (" not in said(monkeypatch, tiny, strengths="0")


def test_each_strength_is_noted_in_saved_images(tiny, monkeypatch):
    hidden = SimpleNamespace(unique_id="7", prompt=None, extra_pnginfo={})
    monkeypatch.setattr(JEPAStrengthStrip, "hidden", hidden)
    monkeypatch.setattr("jepa_guidance.nodes.strength_strip.show_text", lambda *_: None)
    strip(tiny, strengths="0, 0.5")
    noted = hidden.extra_pnginfo[METADATA_KEY]
    assert list(noted) == ["7, strength 0", "7, strength 0.5"]
    none, half = noted.values()
    assert (none["settings"]["strength"], half["settings"]["strength"]) == (0, 0.5)
    assert half["settings"]["seed"] == 5
    assert none["trace"]["steps"] == []
    assert half["trace"]["steps"]
