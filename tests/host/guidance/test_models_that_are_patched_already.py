"""What a node says about a MODEL that brings a patch of this pack: nothing is claimed that was not checked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_api.latest import io
from jepa_guidance import nodes
from jepa_guidance.host.guidance import report
from jepa_guidance.host.guidance.brought import brought
from jepa_guidance.host.variety.cads import Cads
from jepa_guidance.host.variety.patch import apply_boost, apply_cads
from jepa_guidance.nodes.guidance_settings import settings_inputs
from jepa_guidance.nodes.input_checks import inputs_of

from tests.host.clips import tiny_clip
from tests.host.guidance.test_minority_prompt import TEXT
from tests.host.guidance.test_self_guided import guided as guided_by_itself

KSAMPLER, PATCH = nodes.JEPAGuidedKSampler, nodes.JEPAGuidance
SELF, PROMPT = nodes.JEPASelfGuidedMinority, nodes.JEPAMinorityPrompt


def defaults(node: Any) -> dict[str, Any]:
    return {
        entry.id: entry.default for entry in inputs_of(node) if getattr(entry, "default", None) is not None
    }


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Catches what nodes say, and what they note in saved images."""
    shown = SimpleNamespace(said=[], noted={})
    hidden = SimpleNamespace(unique_id="7", prompt=None, extra_pnginfo=shown.noted)
    monkeypatch.setattr(io.ComfyNode, "hidden", hidden)

    def say(_: Any, text: str) -> None:
        shown.said.append(text)

    monkeypatch.setattr(report, "send_event", lambda *_: None)
    for place in ("host.guidance.report", "nodes.guidance", "nodes.self_guided_minority", "nodes.cads"):
        monkeypatch.setattr(f"jepa_guidance.{place}.show_text", say)
    for place in ("nodes.boost_and_skip", "nodes.minority_prompt", "nodes.prompt_reference"):
        monkeypatch.setattr(f"jepa_guidance.{place}.show_text", say)
    return shown


@pytest.fixture
def run(tiny: SimpleNamespace) -> Any:
    """Executes a node with its defaults."""

    def execute(node: Any, model: Any, **changes: Any) -> Any:
        given = {
            "model": model,
            "vae": tiny.vae,
            "encoder": tiny.encoder,
            "latent_image": {"samples": torch.zeros(1, 4, 8, 8)},
        }
        given |= {"positive": tiny.positive, "negative": tiny.negative, "clip": tiny_clip(), "text": TEXT}
        ids = {entry.id for entry in inputs_of(node)}
        if "settings" in ids:
            ids |= {entry.id for entry in settings_inputs()}
        small = {
            "steps": 4,
            "rank": 3,
            "preset": "custom",
            "iterations": 1,
            "gradient_path": "denoiser constant",
        }
        values = defaults(node) | given | small | changes
        with torch.inference_mode():
            return node.execute(
                **{name: value for name, value in values.items() if name in ids and value is not None}
            ).args

    return execute


def patched(tiny: Any, run: Any, by: str) -> Any:
    """A MODEL that brings the patch of a node."""
    if by == "JEPA Guidance":
        return run(PATCH, tiny.model, strength=2.0)[0]
    if by == "Self-Guided Minority Sampling":
        return guided_by_itself(tiny.model)
    if by == "MinorityPrompt":
        return run(PROMPT, tiny.model)[0]
    return apply_boost(tiny.model, 1.5) if by == "Boost-and-Skip" else apply_cads(tiny.model, Cads(0.1), 1)


NAMES = ("JEPA Guidance", "Self-Guided Minority Sampling", "MinorityPrompt", "Boost-and-Skip", "CADS")


def test_the_names_are_those_of_the_nodes(tiny, run, page):
    shown = {
        node.define_schema().display_name
        for node in (PATCH, SELF, PROMPT, nodes.JEPABoostAndSkip, nodes.JEPACads)
    }
    assert shown == set(NAMES)
    for name in NAMES:
        assert brought(patched(tiny, run, name)) == [name]
    assert brought(tiny.model) == []


@pytest.mark.parametrize("first", NAMES[:3])  # which do not run together
def test_what_a_prompt_draws_by_itself_is_without_all_of_them(tiny, run, page, first):
    settings = {"count": 2, "mode": "no scores"}
    plain = run(nodes.JEPAPromptReference, tiny.model, **settings)[1]
    assert not any("drawn without" in text for text in page.said)
    model = tiny.model
    for name in (first, *NAMES[3:]):
        model = patched(SimpleNamespace(**vars(tiny) | {"model": model}), run, name)
    assert brought(model) == [first, *NAMES[3:]]
    assert torch.equal(run(nodes.JEPAPromptReference, model, **settings)[1], plain)
    assert f"drawn without {first} and Boost-and-Skip and CADS, which the model brought" in page.said[-1]
    assert brought(model) == [first, *NAMES[3:]]


@pytest.mark.parametrize("by", [*NAMES, ""])
def test_a_sampler_that_is_off_claims_the_stock_image_only_of_an_unpatched_model(tiny, run, page, by):
    model = patched(tiny, run, by) if by else tiny.model
    page.said.clear()
    positive = patched_positive(tiny, run, by)
    run(KSAMPLER, model, strength=0.0, positive=positive)
    in_file = page.noted["jepa_guidance"]["7"]["trace"]["message"]
    own = [text for text in page.said if "off" in text]
    assert own == [in_file]
    assert ("stock sampler's image" in in_file) == (not by)
    assert not by or f"the model brings {by}, which this node leaves as it is" in in_file


def patched_positive(tiny: Any, run: Any, by: str) -> Any:
    """MinorityPrompt's run needs its own prompt."""
    return run(PROMPT, tiny.model)[1] if by == "MinorityPrompt" else tiny.positive


@pytest.mark.parametrize("node", [PATCH, SELF])
@pytest.mark.parametrize("by", ["JEPA Guidance", "CADS"])
def test_a_patch_that_is_off_says_what_the_model_brings(tiny, run, page, node, by):
    model = patched(tiny, run, by)
    page.said.clear()
    assert run(node, model, strength=0.0)[0] is model
    (text,) = page.said
    assert f"the model brings {by}" in text
    assert "unchanged" not in text


def test_several_patches_are_all_named(tiny, run, page):
    model = apply_cads(apply_boost(guided_by_itself(tiny.model), 1.5), Cads(0.1), 1)
    run(KSAMPLER, model, strength=0.0)
    assert any(
        "brings Self-Guided Minority Sampling and Boost-and-Skip and CADS" in text for text in page.said
    )


@pytest.mark.parametrize("by", ["JEPA Guidance", "Self-Guided Minority Sampling"])
def test_guidance_says_which_one_it_replaces(tiny, run, page, stock, by):
    run(KSAMPLER, patched(tiny, run, by), strength=2.0)
    notice = f"replaces {by}, which the model brought"
    assert notice in page.said[-1]
    assert notice in page.noted["jepa_guidance"]["7"]["trace"]["message"]
    for node in (PATCH, SELF):
        page.said.clear()
        again = run(node, patched(tiny, run, by), strength=2.0)[0]
        stock(again, tiny, steps=4)
        assert notice in page.said[-1]


def test_an_unpatched_model_has_nothing_replaced(tiny, run, page):
    run(KSAMPLER, tiny.model, strength=2.0)
    assert not any("replaces" in text for text in page.said)


@pytest.mark.parametrize(
    ("node", "by"),
    [(nodes.JEPACads, "CADS"), (nodes.JEPABoostAndSkip, "Boost-and-Skip"), (PROMPT, "MinorityPrompt")],
)
def test_the_other_patches_say_so_too(tiny, run, page, node, by):
    model = patched(tiny, run, by)
    page.said.clear()
    run(node, model)
    assert page.said == [f"replaces {by}, which the model brought"]
    page.said.clear()
    run(node, tiny.model)
    assert page.said == []


def test_minority_prompt_refuses_a_guided_model_at_once(tiny, run, page):
    with pytest.raises(ValueError, match="MinorityPrompt does not run together with JEPA Guidance"):
        run(PROMPT, patched(tiny, run, "JEPA Guidance"))


def test_a_run_without_a_guided_step_claims_no_stock_image(tiny, run, page):
    run(KSAMPLER, tiny.model, strength=2.0, start_percent=0.45, end_percent=0.49)
    assert page.said[-1].endswith("no step of this run lies in the guided range; guidance changed nothing")


def test_each_run_of_a_list_is_noted_with_its_own_scores(tiny, run, page):
    """The host executes a node once for each latent of a list, and saves all pictures after."""
    noise = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    traces = [
        run(KSAMPLER, tiny.model, strength=2.0, latent_image={"samples": one}, denoise=0.5)[1]
        for one in noise
    ]
    noted = page.noted["jepa_guidance"]
    assert list(noted) == ["7, run 1", "7, run 2", "7, run 3"]
    for entry, trace in zip(noted.values(), traces, strict=True):
        assert entry["trace"] == trace.as_json()
    scores = [
        [step["score"] for step in entry["trace"]["steps"] if step["guided"]] for entry in noted.values()
    ]
    assert scores[0] != scores[1] != scores[2] != scores[0]
