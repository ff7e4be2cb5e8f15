"""Novelty, apart, target and what makes them hard to exploit, in guided runs of the host's own samplers."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_management
import nodes as host_nodes
import pytest
import torch
from jepa_guidance.host.comfy.required import interrupt_check
from jepa_guidance.host.encoders.host_encoder import HostEncoder, combined, load_host_encoder
from jepa_guidance.host.gradient import chain
from jepa_guidance.host.gradient.scale import RAMP, UNSEEN, Scale
from jepa_guidance.host.guidance import patch
from jepa_guidance.host.guidance.progress import StepProgress
from jepa_guidance.host.guidance.report import TraceReporter
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.options import BOTH, NOVELTY, SCORE
from jepa_guidance.nodes.guidance import JEPAGuidance
from jepa_guidance.nodes.guided_ksampler import JEPAGuidedKSampler
from torch import Tensor

from jepa_core import RarityGradient, jepa_score
from jepa_core.novelty import Nearest, distances_within, embed
from jepa_core.reference import Reference, merged
from jepa_core.views import views
from research.harness.forms import FORMS
from tests.combinations import covering
from tests.core.conftest import random_model
from tests.host.gradient.test_chain import plain_novelty
from tests.host.guide import guide_model, reference_of

RARITY = {"k": 3, "oversample": 2, "power_iterations": 1}
L2 = {"form": Nearest}


@pytest.fixture(scope="module")
def second(tmp_path_factory) -> HostEncoder:
    """An encoder of another architecture, with 16 x 16 pixel input."""
    folder = tmp_path_factory.mktemp("ijepa")
    random_model("ijepa", hidden_size=24).save_pretrained(folder)
    return load_host_encoder(folder / "model.safetensors", "second", 16)


def images_of(tiny: Any, latents: Tensor) -> Tensor:
    with torch.inference_mode():
        return tiny.vae.decode(latents).clone()


@pytest.fixture(scope="module")
def once() -> dict[str, Any]:
    """What is made once for all tests: the tiny models are the same in each."""
    return {}


@pytest.fixture
def usual(tiny, stock, once) -> Tensor:
    """Pictures (24, 16, 16, 3) that the model makes by itself."""
    if "usual" not in once:
        latent = {"samples": torch.zeros(24, 4, 8, 8)}
        once["usual"] = images_of(tiny, stock(tiny.model, tiny, seed=100, latent_image=latent))
    found: Tensor = once["usual"]
    return found


@pytest.fixture
def reference(tiny, usual, once) -> Reference:
    if "reference" not in once:
        once["reference"] = reference_of([tiny.encoder], usual, top_k=3)
    found: Reference = once["reference"]
    return found


def guide(tiny: Any, schedule: Schedule | None = None, **settings: Any) -> Any:
    """The tiny MODEL, guided by novelty unless the settings say otherwise."""
    encoder = settings.pop("encoder", tiny.encoder)
    rarity = RarityGradient(**RARITY)
    with torch.inference_mode():  # as the host's executor does
        return guide_model(
            settings.pop("model", tiny.model),
            tiny.vae,
            encoder,
            schedule or Schedule(end_percent=1.0),
            rarity,
            **{"criterion": NOVELTY} | L2 | settings,
        )


def batch(count: int, *indices: int) -> dict[str, Any]:
    """An empty latent of `count` images; with indices, of these images of a larger batch."""
    found: dict[str, Any] = {"samples": torch.zeros(count, 4, 8, 8)}
    return {"latent_image": found | ({"batch_index": list(indices)} if indices else {})}


def novelty_of(tiny: Any, latents: Tensor, reference: Reference) -> Tensor:
    encoder = tiny.encoder.encoder
    return Nearest(reference.parts[0].embeddings)(
        embed(encoder, encoder.preprocess(images_of(tiny, latents)))
    )


def distances_among(tiny: Any, latents: Tensor) -> Tensor:
    """The mean distance of each image of a batch to the others."""
    encoder = tiny.encoder.encoder
    rows = embed(encoder, encoder.preprocess(images_of(tiny, latents)))
    return torch.cdist(rows, rows).sum(1) / (len(rows) - 1)


# --- the stock sampler, bit for bit -------------------------------------------------------------------------------

OFF = ({"strength": 0.0}, {"start_percent": 0.5, "end_percent": 0.5})
NEW: list[dict[str, Any]] = [
    *({"criterion": criterion} for criterion in (NOVELTY, BOTH)),
    *({name: True} for name in ("apart", "smooth", "keep_appearance", "agree")),
    {"target": "1 in 20"},
    {"reference": "anything"},
]


def inputs_of_node(tiny: Any, node: Any = JEPAGuidedKSampler, **changes: Any) -> dict[str, Any]:
    entries = node.define_schema().inputs
    found = {entry.id: entry.default for entry in entries if getattr(entry, "default", None) is not None}
    found |= {"model": tiny.model, "vae": tiny.vae, "encoder": tiny.encoder, "preset": "custom", "rank": 3}
    if node is JEPAGuidedKSampler:
        found |= {"positive": tiny.positive, "negative": tiny.negative, **batch(2)}
        found |= {"seed": 5, "steps": 5, "cfg": 3.0}
    return found | changes


def execute(tiny: Any, **changes: Any) -> tuple[Tensor, Any]:
    with torch.inference_mode():
        latent, trace = JEPAGuidedKSampler.execute(**inputs_of_node(tiny, **changes)).result
        return latent["samples"].clone(), trace


@pytest.mark.parametrize(
    ("new", "off"), covering([*NEW, {name: value for one in NEW for name, value in one.items()}], OFF)
)
def test_without_strength_or_range_it_is_the_stock_sampler_whatever_else_is_set(tiny, stock, off, new):
    found, trace = execute(tiny, **new, **off)
    assert torch.equal(found, stock(tiny.model, tiny))
    assert trace.steps == []
    settings = inputs_of_node(tiny, JEPAGuidance, **new, **off)
    assert JEPAGuidance.execute(**settings).result[0] is tiny.model


def test_a_reference_alone_changes_nothing_of_the_score(tiny, stock, reference):
    """It only says where the images lie."""
    plain, plain_trace = execute(tiny, criterion=SCORE)
    found, trace = execute(tiny, criterion=SCORE, reference=reference)
    assert torch.equal(found, plain)
    assert [step.score for step in trace.guided_steps] == [step.score for step in plain_trace.guided_steps]
    assert plain_trace.places == []
    assert [list(place) for place in trace.places] == [[SCORE], [SCORE]]


def test_auto_is_novelty_beside_a_reference_and_the_score_without(tiny, reference):
    found, trace = execute(tiny, reference=reference)
    assert torch.equal(found, execute(tiny, criterion=NOVELTY, reference=reference)[0])
    assert [list(place) for place in trace.places] == [[NOVELTY], [NOVELTY]]
    assert torch.equal(execute(tiny)[0], execute(tiny, criterion=SCORE)[0])


@pytest.mark.parametrize(
    ("sampler", "one_call", "through"),
    covering(["euler", "euler_cfg_pp", "dpmpp_2m", "lcm", "uni_pc"], [False, True], [False, True]),
)
def test_apart_leaves_a_batch_of_one_alone(tiny, stock, reference, sampler, one_call, through):
    settings = {"sampler_name": sampler, **batch(1)}
    how = {"one_call": one_call, "through_denoiser": through}
    plain = stock(tiny.model, tiny, **settings)
    alone = stock(guide(tiny, apart=True, **how), tiny, **settings)
    if one_call and through:  # the differentiable denoiser gives the estimate, and rounds in another order
        assert (alone - plain).abs().max() < 1e-4 * plain.abs().max()
    else:
        assert torch.equal(alone, plain)
    with_apart, without = (
        stock(guide(tiny, apart=apart, reference=reference, **how), tiny, **settings)
        for apart in (True, False)
    )
    assert torch.equal(with_apart, without)
    assert not torch.equal(without, plain)


# --- what it does -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", [False, pytest.param(True, marks=pytest.mark.long)])
def test_strength_is_how_far_from_the_reference(tiny, stock, reference, through):
    means = []
    for strength in (-2.0, -1.0, 0.0, 1.0, 2.0):
        patched = guide(
            tiny,
            Schedule(strength=strength, end_percent=1.0),
            reference=reference,
            through_denoiser=through,
        )
        found = stock(patched, tiny, steps=8, **batch(4))
        means.append(novelty_of(tiny, found, reference).mean().item())
    assert all(later > earlier for earlier, later in itertools.pairwise(means))


@pytest.mark.parametrize("count", [1, 4])
def test_a_batch_of_one_with_nothing_to_be_apart_from_is_said_not_to_be_guided(tiny, stock, count):
    reports: list[Any] = []
    stock(guide(tiny, apart=True, report=reports.append), tiny, **batch(count))
    message, *notices = reports[-1].message().splitlines()
    said = "apart: a batch of one image has nothing to move away from"
    assert (said in notices) == (count == 1)
    assert ("no image was moved" in message) == (count == 1)
    assert ("steps guided" in message) == (count > 1)


@pytest.mark.parametrize("referred", [False, pytest.param(True, marks=pytest.mark.long)])
def test_apart_moves_the_images_of_a_batch_away_from_each_other(tiny, stock, reference, referred):
    means = []
    for strength in (-1.5, 0.0, 1.5):
        patched = guide(
            tiny,
            Schedule(strength=strength, end_percent=1.0),
            apart=True,
            reference=reference if referred else None,
        )
        means.append(distances_among(tiny, stock(patched, tiny, steps=8, **batch(4))).mean().item())
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize(
    ("settings", "referred"),
    covering([{}, {"criterion": BOTH}, {"smooth": True, "keep_appearance": True}], [False, True]),
)
def test_permuting_the_noise_permutes_the_images(tiny, stock, reference, referred, settings):
    patched = guide(tiny, apart=True, reference=reference if referred else None, **settings)
    order = [2, 0, 3, 1]
    found = stock(patched, tiny, **batch(4, 0, 1, 2, 3))
    permuted = stock(patched, tiny, **batch(4, *order))
    plain = stock(tiny.model, tiny, **batch(4, 0, 1, 2, 3))
    assert torch.equal(stock(tiny.model, tiny, **batch(4, *order)), plain[order])
    # rounding, which depends on the place in a batch and grows from step to step
    assert (permuted - found[order]).abs().max() < 0.02 * (found - plain).abs().max()


def test_the_first_gradient_is_that_of_the_decoded_estimate(tiny, stock, reference):
    """The trace says the distance from the reference, at the estimate before the first shift."""
    reports: list[Any] = []
    with_judge = guide(tiny, reference=reference, judge=tiny.encoder, report=reports.append)
    stock(with_judge, tiny)
    for step in reports[-1].guided_steps:
        assert step.novelty == pytest.approx(step.scores[tiny.encoder.label], rel=1e-6)
        assert step.novelty == pytest.approx(step.judged[f"{tiny.encoder.label} (novelty)"], rel=1e-4)
        assert all(map(math.isnan, step.score))
        assert step.push == []
    assert "novelty" in reports[-1].message()
    assert "score" not in reports[-1].message().splitlines()[0]


def test_both_criteria_are_in_the_trace(tiny, stock, reference):
    reports: list[Any] = []
    stock(guide(tiny, criterion=BOTH, reference=reference, report=reports.append), tiny)
    (first, *_) = reports[-1].guided_steps
    alone: list[Any] = []
    stock(guide(tiny, criterion=SCORE, report=alone.append), tiny)
    assert first.score == alone[-1].guided_steps[0].score
    assert len(first.novelty) == 2
    head = reports[-1].message().splitlines()[0]
    assert "score" in head
    assert "novelty" in head


@pytest.mark.parametrize("form", FORMS)
def test_every_form_guides(tiny, stock, reference, form):
    """Made and used under inference mode, as in the host."""
    patched = guide(tiny, reference=reference, form=FORMS[form])
    found = stock(patched, tiny)
    assert found.isfinite().all()
    assert not torch.equal(found, stock(tiny.model, tiny))


@pytest.mark.parametrize(
    ("sampler", "one_call"), covering(["euler", "euler_cfg_pp", "dpmpp_2m", "heun"], [False, True])
)
def test_masks_intervals_and_samplers(tiny, stock, reference, sampler, one_call):
    mask = torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(2, 4, 8, 8, generator=generator)
    settings = {
        "sampler_name": sampler,
        "latent_image": {"samples": samples, "noise_mask": mask},
        "steps": 6,
        "denoise": 0.8,
    }
    reports: list[Any] = []
    schedule = Schedule(interval=2, end_percent=1.0)
    new = {"apart": True, "smooth": True, "keep_appearance": True, "target": 0.2}
    patched = guide(tiny, schedule, reference=reference, one_call=one_call, report=reports.append, **new)
    found, plain = stock(patched, tiny, **settings), stock(tiny.model, tiny, **settings)
    assert found.isfinite().all()
    assert torch.equal(found[..., 5:, :], plain[..., 5:, :])
    assert not torch.equal(found, plain)
    assert all(step.step % 2 == 0 for step in reports[-1].guided_steps)
    assert len(reports[-1].places) == 2


def test_two_guides_agree(tiny, stock, second, usual):
    pair = combined([(tiny.encoder, 1.0), (second, 1.0)])
    reference = reference_of([tiny.encoder, second], usual)
    reports: list[Any] = []
    images = [
        stock(
            guide(tiny, encoder=pair, reference=reference, agree=agree, report=reports.append), tiny, steps=8
        )
        for agree in (False, True)
    ]
    assert not torch.equal(*images)
    (step, *_) = reports[-1].guided_steps
    mean = [sum(pair) / 2 for pair in zip(*step.scores.values(), strict=True)]
    assert step.novelty == pytest.approx(mean)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def refuse(*args: Any, **more: Any) -> None:
        raise AssertionError("something is loaded")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", refuse)
    monkeypatch.setattr(patch, "choose_decoder", refuse)


def how(reference: Reference, **changes: str) -> Reference:
    return replace(reference, how={**reference.how, **changes})


Made = Callable[[Reference], dict[str, Any]]
REFUSED: list[tuple[Made, str]] = [
    (lambda reference: {"criterion": SCORE, "apart": True}, "apart is a kind of novelty; set criterion to"),
    (lambda reference: {"criterion": NOVELTY}, "criterion novelty has nothing to compare with; connect a"),
    (
        lambda reference: {"criterion": BOTH},
        "criterion both has nothing to compare with; connect a reference",
    ),
    (
        lambda reference: {"target": "1 in 20"},
        "target is in units of a reference; connect one, or set target",
    ),
    (
        lambda reference: {"criterion": NOVELTY, "apart": True, "target": "1 in 5"},
        "target is in units of a reference; connect one",
    ),
    (
        lambda reference: {"criterion": NOVELTY, "fit": "squash", "reference": how(reference, fit="crop")},
        "reference was made with fit crop, this node has squash; pictures",
    ),
    (
        lambda reference: {"criterion": NOVELTY, "fit": "squash", "reference": reference, "antialias": False},
        "reference was made with antialias on, this node has off; pictures",
    ),
    (
        lambda reference: {
            "reference": Reference((replace(reference.parts[0], image_size=14),), reference.how)
        },
        "reference was made with tiny at 14 px, this node's is at 28 px; embeddings at different image sizes",
    ),
    (
        lambda reference: {
            "reference": Reference((replace(reference.parts[0], fingerprint="?"),), reference.how)
        },
        "reference was made with tiny at 28 px, this node has tiny at 28 px with other weights; embeddings",
    ),
    (
        # a damaged file, which would fail in the first step
        lambda reference: {
            "reference": Reference(
                (replace(reference.parts[0], embeddings=torch.zeros(3, 5), smoothed=torch.zeros(3, 5)),),
                reference.how,
            )
        },
        "reference is damaged: its embeddings have another length than those of tiny at 28 px, 16; make it again",
    ),
    (
        lambda reference: {
            "criterion": SCORE,
            "target": "1 in 20",
            "reference": how(reference, mode="no scores"),
        },
        "target needs the scores of the reference for criterion score; make the reference with a mode",
    ),
    (
        lambda reference: {
            "criterion": BOTH,
            "target": "1 in 20",
            "reference": how(reference, mode="no scores"),
        },
        "target needs the scores of the reference for criterion both",
    ),
    (
        lambda reference: {"criterion": NOVELTY, "target": "1 in 5", "reference": reference.thinned(4)},
        "target 1 in 5 needs a reference of at least 5 different pictures, this one has 4; add pictures, or choose a ",
    ),
    (lambda reference: {"reference": "x"}, "reference must be of type JEPA_REFERENCE, got str"),
    (lambda reference: {"criterion": "x"}, "criterion must be one of auto, score, novelty, both, got 'x'"),
    (lambda reference: {"target": 0.05}, "target must be one of none, 1 in 5, 1 in 20, 1 in 100, got 0.05"),
]


@pytest.mark.parametrize(("made", "message"), REFUSED)
def test_what_cannot_be_compared_is_refused_with_the_fix_before_anything_is_loaded(
    tiny, reference, nothing_is_loaded, made, message
):
    for node in (JEPAGuidedKSampler, JEPAGuidance):
        with torch.inference_mode(), pytest.raises(ValueError, match=f"^{message}"):
            node.execute(**inputs_of_node(tiny, node, **made(reference)))


def test_a_reference_must_know_every_guide(tiny, second, reference, nothing_is_loaded):
    pair = combined([(tiny.encoder, 1.0), (second, 1.0)])
    with pytest.raises(ValueError, match="this node has second at 16 px; embeddings of different encoders"):
        guide(tiny, encoder=pair, reference=reference)


def test_novelty_alone_does_not_look_at_the_rank(tiny, reference):
    """The embedding of the tiny encoder has length 16."""
    settings = inputs_of_node(tiny, JEPAGuidance, rank=200, criterion=NOVELTY, reference=reference)
    with torch.inference_mode():
        JEPAGuidance.execute(**settings)
        with pytest.raises(ValueError, match="rank 200 is larger"):
            JEPAGuidance.execute(**settings | {"criterion": BOTH})


# --- target -------------------------------------------------------------------------------------------------------


def plain_push(value: float, values: list[float], share: float, sign: int) -> float:
    """What remains of the strength: 0 from the target on, 1 until RAMP before it."""
    ordered = torch.tensor([sign * one for one in values], dtype=torch.float64)
    middle, goal = (ordered.quantile(q).item() for q in (0.5, 1 - share))
    return min(1.0, max(0.0, (goal - sign * value) / (RAMP * (goal - middle))))


class Watched:
    """Keeps what Scale.rarity returned, with the images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[tuple[Scale, str, Tensor, float]] = []
        method = Scale.rarity

        def rarity(scale: Scale, criterion: str, image: Tensor, *more: Any) -> float:
            value = method(scale, criterion, image, *more)
            self.found.append((scale, criterion, image, value))
            return value

        monkeypatch.setattr(Scale, "rarity", rarity)


@pytest.mark.parametrize(("strength", "criterion"), covering([4.0, -4.0], [SCORE, NOVELTY, BOTH]))
def test_the_push_shrinks_to_nothing_as_the_images_reach_the_target(
    tiny, stock, monkeypatch, reference, criterion, strength
):
    watched = Watched(monkeypatch)
    reports: list[Any] = []
    schedule = Schedule(strength=strength, end_percent=1.0, start_percent=0.0)
    settings = {"criterion": criterion, "reference": reference, "target": 0.2, "report": reports.append}
    stock(guide(tiny, schedule, **settings), tiny, steps=10, **batch(3))
    values = {SCORE: (-reference.parts[0].scores).tolist()}  # type: ignore[operator]
    values[NOVELTY] = sorted(distances_within(reference.parts[0].smoothed).tolist())
    criteria = {BOTH: [SCORE, NOVELTY]}.get(criterion, [criterion])
    sign = 1 if strength > 0 else -1
    measured = iter(watched.found)
    pushes = []
    for step in reports[-1].guided_steps:
        for push, shift in zip(step.push, step.shift, strict=True):
            own = [next(measured) for _ in criteria]
            assert [entry[1] for entry in own] == criteria
            expected = max(plain_push(value, values[name], 0.2, sign) for _, name, _, value in own)
            assert push == pytest.approx(expected)
            assert (shift == 0) == (push == 0)
            pushes.append(push)
    assert len(pushes) == 30
    assert min(pushes) < max(pushes)


def test_the_shift_is_the_push_times_that_without_a_target(tiny, stock, monkeypatch, reference):
    """Image by image, for every normalisation."""
    pushes = iter([0.0, 0.25, 1.0])

    def push(*args: Any) -> dict[str, float]:
        return {NOVELTY: next(pushes)}

    monkeypatch.setattr("jepa_guidance.host.gradient.scale.Target.push", push)
    for normalisation in ("max", "rms", "none"):
        pushes = iter([0.0, 0.25, 1.0])
        schedule = Schedule(start_percent=0.5, end_percent=0.7, normalisation=normalisation)
        shifts = []
        for target in (None, 0.05):
            reports: list[Any] = []
            patched = guide(tiny, schedule, reference=reference, target=target, report=reports.append)
            found = stock(patched, tiny, steps=2, **batch(3))
            (step,) = reports[-1].guided_steps
            shifts.append(step.shift)
        full, some = shifts
        assert some == pytest.approx([0, 0.25 * full[1], full[2]])
        assert torch.equal(found[0], stock(tiny.model, tiny, steps=2, **batch(3))[0])


@pytest.mark.parametrize("criterion", [SCORE, NOVELTY, BOTH])
def test_pictures_that_repeat_count_once_for_guidance_and_its_target(tiny, stock, reference, criterion):
    schedule = Schedule(strength=4.0, end_percent=1.0, start_percent=0.0)
    found = []
    for known in (reference, merged([reference, reference])):
        reports: list[Any] = []
        settings = {"criterion": criterion, "reference": known, "target": 0.2, "report": reports.append}
        images = stock(guide(tiny, schedule, **settings), tiny, steps=6, **batch(2))
        found.append((images, [step.push for step in reports[-1].guided_steps], reports[-1].places))
    (images, *told), (again, *told_again) = found
    assert torch.equal(images, again)
    assert told == told_again


def test_a_target_needs_different_pictures(tiny, reference):
    few = reference.thinned(9)
    with pytest.raises(ValueError, match="at least 20 different pictures, this one has 9;"):
        guide(tiny, reference=merged([few] * 3), target=0.05)


def test_far_below_it_a_target_changes_nothing(tiny, stock, monkeypatch, reference):
    monkeypatch.setattr(Scale, "rarity", lambda *args: -1e9)
    expected = stock(guide(tiny, reference=reference), tiny)
    assert torch.equal(stock(guide(tiny, reference=reference, target=0.05), tiny), expected)


def test_images_beyond_the_target_from_the_start_are_the_stock_ones(tiny, stock, monkeypatch, reference):
    monkeypatch.setattr(Scale, "rarity", lambda *args: 1e9)
    reports: list[Any] = []
    patched = guide(tiny, reference=reference, target=0.05, report=reports.append)
    assert torch.equal(stock(patched, tiny), stock(tiny.model, tiny))
    assert {one for step in reports[-1].guided_steps for one in (*step.push, *step.shift)} == {0.0}


@pytest.mark.parametrize("criterion", [SCORE, NOVELTY, BOTH])
def test_places_are_those_of_the_finished_images(tiny, stock, reference, criterion):
    reports: list[Any] = []
    patched = guide(tiny, criterion=criterion, reference=reference, report=reports.append)
    images = images_of(tiny, stock(patched, tiny, **batch(3)))
    encoder, (part,) = tiny.encoder.encoder, reference.parts
    assert len(reports[-1].places) == 3
    for image, place in zip(images.split(1), reports[-1].places, strict=True):
        seen = [encoder.preprocess(view) for view in views(image)]
        expected = {}
        if criterion != NOVELTY:
            score = sum(jepa_score(encoder, seen[index], top_k=3).item() for index in UNSEEN) / len(UNSEEN)
            expected[SCORE] = 100 * (part.scores < score).double().mean().item()
        if criterion != SCORE:
            middle = torch.cat([embed(encoder, x) for x in seen]).mean(0, keepdim=True)
            own = distances_within(part.smoothed).sort().values
            expected[NOVELTY] = 100 * (own > Nearest(part.smoothed)(middle)).double().mean().item()
        assert place == pytest.approx(expected, abs=1e-6)
    for name, percentage in reports[-1].places[0].items():
        assert f"{name}: rarer than {100 - percentage:.0f} %, " in reports[-1].message()


def test_the_judge_measures_if_the_reference_knows_it(tiny, stock, monkeypatch, second, usual, reference):
    watched = Watched(monkeypatch)
    both = reference_of([tiny.encoder, second], usual, top_k=3)
    for known, expected in ((both, second), (reference, tiny.encoder)):
        watched.found.clear()
        reports: list[Any] = []
        patched = guide(tiny, judge=second, reference=known, target=0.2, report=reports.append)
        stock(patched, tiny, **batch(1))
        assert {id(scale.encoder) for scale, *_ in watched.found} == {id(expected.encoder)}
        label = f"{second.label} (novelty)" if known is both else second.label
        step = reports[-1].guided_steps[0]
        assert list(step.judged) == [label]
        if known is both:
            image = watched.found[0][2]
            x = second.encoder.preprocess(image)
            wanted = plain_novelty(second.encoder, x, both.parts[1].embeddings)
            assert step.judged[label] == [pytest.approx(wanted, rel=1e-5)]


def test_a_reference_of_one_picture_guides_but_measures_nothing(tiny, stock, reference):
    reports: list[Any] = []
    found = stock(guide(tiny, reference=reference.thinned(1), report=reports.append), tiny)
    assert not torch.equal(found, stock(tiny.model, tiny))
    assert reports[-1].places == []


# --- several runs -------------------------------------------------------------------------------------------------


def advanced(model: Any, tiny: Any, latent: dict, start: int, end: int, leftover: bool) -> dict:
    with torch.inference_mode():
        return host_nodes.KSamplerAdvanced().sample(
            model,
            "enable" if start == 0 else "disable",
            5,
            6,
            3.0,
            "euler",
            "normal",
            tiny.positive,
            tiny.negative,
            latent,
            start,
            end,
            "enable" if leftover else "disable",
        )[0]


def test_only_images_free_of_noise_have_a_place(tiny, reference):
    reports: list[Any] = []
    patched = guide(tiny, reference=reference, apart=True, report=reports.append)
    half = advanced(patched, tiny, {"samples": torch.zeros(2, 4, 8, 8)}, 0, 3, leftover=True)
    first = reports[-1]
    assert first.guided_steps
    assert first.places == []
    advanced(patched, tiny, half, 3, 6, leftover=False)
    assert reports[-1] is not first
    assert len(reports[-1].places) == 2
    assert first.places == []


def test_a_run_without_guided_steps_measures_nothing(tiny, stock, monkeypatch, reference):
    watched = Watched(monkeypatch)
    reports: list[Any] = []
    schedule = Schedule(start_percent=0.9, end_percent=1.0)
    patched = guide(tiny, schedule, reference=reference, report=reports.append)
    assert torch.equal(stock(patched, tiny, steps=4), stock(tiny.model, tiny, steps=4))
    assert watched.found == []
    assert reports[-1].places == []


@pytest.mark.parametrize("criterion", [NOVELTY, BOTH])
def test_runs_leave_nothing_behind(tiny, stock, reference, criterion):
    """The same queue twice, with another batch and another seed between them, and after an error."""
    left = [10**9]

    def stop() -> None:
        left[0] -= 1
        if not left[0]:
            raise Stop

    settings = {"criterion": criterion, "apart": True, "target": 0.05, "reference": reference}
    patched = guide(tiny, on_pass=stop, **settings)
    first = stock(patched, tiny)
    stock(patched, tiny, seed=6, **batch(3))
    left[0] = 5
    with pytest.raises(Stop):
        stock(patched, tiny)
    assert torch.equal(stock(patched, tiny), first)
    assert torch.equal(stock(guide(tiny, **settings), tiny), first)


def test_measuring_touches_no_random_state(tiny, stock, reference):
    states = []
    for model in (tiny.model, guide(tiny, reference=reference, target=0.05, apart=True)):
        stock(model, tiny)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_the_reference_is_not_changed(tiny, stock, reference):
    before = [part.embeddings.clone() for part in reference.parts]
    stock(guide(tiny, reference=reference, target=0.05), tiny)
    assert all(map(torch.equal, before, (part.embeddings for part in reference.parts)))


# --- costs, faults, reports ---------------------------------------------------------------------------------------


def passes_of(tiny: Any, stock: Any, count: int = 1, **settings: Any) -> float:
    """Encoder passes per image and guided step; `measured` more were made at the end."""
    passes: list[int] = []
    reports: list[Any] = []
    measured = settings.pop("measured", 0)
    patched = guide(tiny, on_pass=lambda: passes.append(1), report=reports.append, **settings)
    stock(patched, tiny, **batch(count))
    return (len(passes) - measured) / count / len(reports[-1].guided_steps)


@pytest.mark.parametrize(("through", "count"), covering([False, True], [1, 3]))
def test_novelty_costs_one_forward_and_one_backward_pass(tiny, stock, monkeypatch, reference, count, through):
    settings = {"reference": reference, "through_denoiser": through}
    # the place of each image costs one pass at the end
    assert passes_of(tiny, stock, count, measured=count, **settings) == 2
    assert passes_of(tiny, stock, count, measured=count, smooth=True, **settings) == 2
    # the embeddings of the others are one more each
    assert passes_of(tiny, stock, count, measured=count, apart=True, **settings) == 2 + (count > 1)
    assert passes_of(tiny, stock, count, measured=count, target=0.05, **settings) == 3
    score = passes_of(tiny, stock, count, criterion=SCORE, through_denoiser=through)
    assert score > 2


class Stop(Exception):
    pass


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 23.00 GiB.")


def test_out_of_memory_in_a_step_falls_back(tiny, stock, monkeypatch, reference):
    comfy.model_management.unload_all_models()
    reports: list[Any] = []
    encoder = tiny.encoder.encoder
    forward, failed = encoder.forward, []

    def limited(x: Tensor, **more: Any) -> Tensor:
        if not failed:
            failed.append(1)
            raise out_of_memory()
        return forward(x, **more)

    settings = {"reference": reference, "apart": True, "target": 0.05}
    expected = stock(guide(tiny, **settings), tiny)
    monkeypatch.setattr(encoder, "forward", limited)
    found = stock(guide(tiny, report=reports.append, **settings), tiny)
    (notice,) = reports[-1].notices
    assert notice.startswith("out of memory")
    assert notice.endswith("(slower, the same image)")
    assert torch.equal(found, expected)
    assert len(reports[-1].places) == 2


def test_out_of_memory_at_the_end_loses_only_the_places(tiny, stock, monkeypatch, reference):
    expected = stock(guide(tiny, reference=reference), tiny)

    def place(*args: Any) -> None:
        raise out_of_memory()

    monkeypatch.setattr("jepa_guidance.host.gradient.scale.Target.place", place)
    reports: list[Any] = []
    assert torch.equal(stock(guide(tiny, reference=reference, report=reports.append), tiny), expected)
    assert reports[-1].places == []
    assert reports[-1].notices == ["out of memory: where the images lie in the reference is not known"]
    assert "is not known" in reports[-1].message()


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 25])
def test_an_interrupt_anywhere_leaves_everything_as_it_was(tiny, stock, reference, after):
    """At the others' embeddings, at the guide's passes, at the target, and at the places."""
    passes: list[int] = []

    def stop() -> None:
        passes.append(1)
        if len(passes) == after:
            raise Stop

    settings = {"reference": reference, "apart": True, "target": 0.05}
    # of five steps three are guided, with four passes for each of two images; the 25th pass is for a place
    patched = guide(tiny, Schedule(start_percent=0.3, end_percent=1.0), on_pass=stop, **settings)
    modules = (tiny.model.model, tiny.vae.first_stage_model, tiny.encoder.encoder)
    before = [{id(t) for t in (*m.parameters(), *m.buffers())} for m in modules]
    plain = stock(tiny.model, tiny)
    with pytest.raises(Stop):
        stock(patched, tiny)
    assert len(passes) == after
    assert before == [{id(t) for t in (*m.parameters(), *m.buffers())} for m in modules]
    assert torch.equal(stock(tiny.model, tiny), plain)


def test_the_hosts_interrupt_reaches_the_places(tiny, stock, monkeypatch, reference):
    monkeypatch.setattr(
        "jepa_guidance.host.guidance.guided_run.record_places",
        lambda *args: comfy.model_management.interrupt_current_processing(True) or interrupt_check(),
    )
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        stock(guide(tiny, reference=reference), tiny)


def test_an_image_that_breaks_spares_the_others(tiny, stock, monkeypatch, reference):
    """Its shifts are skipped, and the trace has no NaN in its JSON."""
    decode, of_latent = chain.decoded, chain.LatentGradient.of_latent
    broken: list[Tensor] = []

    def noted(self: Any, latents: Tensor) -> Any:
        broken[:] = [latents[1]]
        return of_latent(self, latents)

    def decoded(vae: Any, latent: Tensor) -> Tensor:
        image = decode(vae, latent)
        return image * torch.nan if torch.equal(latent[0], broken[0]) else image

    monkeypatch.setattr(chain, "decoded", decoded)
    monkeypatch.setattr(chain.LatentGradient, "of_latent", noted)
    reports: list[Any] = []
    settings = {"reference": reference, "apart": True, "keep_appearance": True, "agree": True, "target": 0.05}
    found = stock(guide(tiny, report=reports.append, **settings), tiny, **batch(3))
    plain = stock(tiny.model, tiny, **batch(3))
    assert torch.equal(found[1], plain[1])
    assert not torch.equal(found[0], plain[0])
    assert not torch.equal(found[2], plain[2])
    assert "4 shift(s) skipped" in reports[-1].message()
    json.dumps(reports[-1].as_json(), allow_nan=False)


def test_an_unknown_place_is_said_to_be_unknown(tiny, stock, monkeypatch, reference):
    monkeypatch.setattr(Scale, "rarity", lambda *args: math.nan)
    reports: list[Any] = []
    stock(guide(tiny, reference=reference, report=reports.append), tiny)
    assert "novelty: rarer than ?, ? of the reference" in reports[-1].message()
    assert reports[-1].as_json()["places"] == [{NOVELTY: None}] * 2
    json.dumps(reports[-1].as_json(), allow_nan=False)


@pytest.mark.parametrize("criterion", [NOVELTY, BOTH])
def test_the_trace_is_small_and_is_json(tiny, stock, reference, criterion):
    reports: list[Any] = []
    settings = {"reference": reference, "target": 0.2, "apart": True, "criterion": criterion}
    stock(guide(tiny, report=reports.append, **settings), tiny, **batch(4))
    text = json.dumps(reports[-1].as_json(), allow_nan=False)
    steps = len(reports[-1].guided_steps)
    assert len(text) < 1000 + steps * 4 * 250
    assert {"novelty", "push"} <= reports[-1].as_json()["steps"][-1].keys()


def test_the_trace_of_the_score_alone_has_no_new_entries(tiny, stock):
    reports: list[Any] = []
    stock(guide(tiny, criterion=SCORE, report=reports.append), tiny)
    assert not {"novelty", "push"} & reports[-1].as_json()["steps"][-1].keys()


def test_the_last_message_does_not_count_passes(tiny, stock, monkeypatch, reference):
    """Those that measure finished images belong to no step."""
    monkeypatch.setattr(StepProgress, "REPORT_EVERY", -1.0)
    reports: list[str] = []
    patched = guide(tiny, reference=reference, report=lambda trace: reports.append(trace.message()))
    stock(patched, tiny)
    assert any("guidance passes done" in text for text in reports)
    assert "guidance passes done" not in reports[-1]
    assert "rarer than" in reports[-1]


def test_the_page_gets_the_places(tiny, stock, monkeypatch, reference):
    """They come after the last step."""
    events: list[Any] = []
    report = "jepa_guidance.host.guidance.report"
    monkeypatch.setattr(f"{report}.send_event", lambda name, content: events.append(content["trace"]))
    monkeypatch.setattr(f"{report}.show_text", lambda *args: None)
    stock(guide(tiny, reference=reference, report=TraceReporter("7")), tiny)
    assert len(events[-1]["places"]) == 2
    assert all(not event["places"] for event in events[:-1])


def test_the_message_says_how(tiny, stock, reference):
    reports: list[Any] = []
    settings = {"apart": True, "smooth": True, "keep_appearance": True}
    stock(guide(tiny, reference=reference, report=reports.append, **settings), tiny, steps=2)
    how = "novelty, apart, denoiser constant, full decoder, two calls, smooth, keep appearance"
    assert how in reports[-1].message().splitlines()
