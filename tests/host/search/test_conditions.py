"""ControlNets in a search: every candidate keeps the hint that the host gives it in the whole batch."""

from __future__ import annotations

from typing import Any

import nodes as host_nodes
import pytest
import torch
from jepa_guidance.host.gradient.rows import row
from jepa_guidance.host.search.config import SearchConfig
from jepa_guidance.host.search.search import apply_search

from tests.combinations import covering
from tests.host.families import Family, numbers
from tests.host.guidance.test_conditions import control_network, t2i_adapter
from tests.host.guidance.test_families import encoder_of, family_of, sample

CANDIDATES = 5


def with_hints(family: Family, control: Any, count: int) -> dict:
    """Conditioning with several hints."""
    apply = host_nodes.ControlNetApplyAdvanced().apply_controlnet
    with torch.inference_mode():
        hints = numbers(21, count, 64, 64, 3).sigmoid()
        pair = apply(family.positive, family.negative, control, hints, 0.8, 0.0, 1.0)
    return dict(zip(("positive", "negative"), pair, strict=True))


def controlled(kind: str, count: int) -> tuple[Family, Any, dict]:
    family = family_of("sd15")
    if kind == "T2I-Adapter":
        model, settings = t2i_adapter(family)
        return family, model, with_hints(family, settings["positive"][0][1]["control"].copy(), count)
    settings = with_hints(family, control_network(family.vae.vae_dtype), count)
    if kind == "two ControlNets":
        chained = Family(**vars(family) | settings)
        settings = with_hints(chained, control_network(family.vae.vae_dtype), 1)
    return family, family.model, settings


@pytest.mark.parametrize(
    ("kind", "count", "at_once"),
    covering(["ControlNet", "two ControlNets", "T2I-Adapter"], [1, 2, CANDIDATES, 7], [0, 2]),
)
def test_each_candidate_keeps_its_own_hint(kind, count, at_once):
    family, model, settings = controlled(kind, count)
    latent = {"samples": family.latent["samples"].repeat(CANDIDATES, 1, 1, 1)}
    drawn = sample(family, model, latent_image=latent, **settings)
    config = SearchConfig(CANDIDATES, 2, looks=(0.25, 0.5), rows_at_once=at_once)
    with torch.inference_mode():
        patched, record = apply_search(model, family.vae, encoder_of(), config)
    found = sample(family, patched, latent_image=latent, **settings)
    kept = [one.index for one in record.kept]
    torch.testing.assert_close(found[kept], drawn[kept], rtol=2e-3, atol=2e-3)


def test_a_control_network_with_one_hint_is_not_copied():
    """It would prepare its hint at every call."""
    *_, settings = controlled("two ControlNets", 1)
    control = settings["positive"][0][1]["control"]
    assert row({"control": control}, 1, CANDIDATES)["control"] is control
    *_, settings = controlled("two ControlNets", CANDIDATES)
    control = settings["positive"][0][1]["control"]
    twin = row({"control": control}, 3, CANDIDATES)["control"]
    hints = control.previous_controlnet.cond_hint_original
    assert torch.equal(twin.previous_controlnet.cond_hint_original, hints[3:4])
    assert len(hints) == CANDIDATES
