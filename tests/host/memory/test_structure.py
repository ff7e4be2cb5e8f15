"""Networks of one structure are counted once, and what tells them apart is seen."""

from __future__ import annotations

import copy
import types

import comfy.model_management
import pytest
import torch
from jepa_guidance.host.guidance.schedule import Schedule
from jepa_guidance.host.memory import needs
from jepa_guidance.host.memory.structure import structure_of
from torch import nn

from jepa_core import RarityGradient
from tests.host.families import FAMILIES
from tests.host.guidance.test_families import QUICK
from tests.host.guide import guide_model

NETWORKS = {
    "denoiser": lambda tiny: tiny.make_model().model.diffusion_model,
    "decoder": lambda tiny: tiny.make_vae().first_stage_model,
    "encoder": lambda tiny: tiny.make_encoder().encoder.model,
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_built_alike_have_one_structure(tiny, kind):
    one, other = (NETWORKS[kind](tiny) for _ in range(2))
    for weight in other.parameters():
        weight.data.add_(1)
    assert isinstance(structure_of(one), str)  # else it would have one of its own
    assert structure_of(one) == structure_of(other)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "wan_still", "pixart"])
def test_so_have_those_of_the_hosts_families(name):
    structures = [structure_of(FAMILIES[name]().model.model.diffusion_model) for _ in range(2)]
    assert isinstance(structures[0], str)
    assert structures[0] == structures[1]


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_setting_a_size_a_dtype_or_a_part_makes_another_structure(tiny, kind):
    plain = NETWORKS[kind](tiny)
    found = {structure_of(plain)}
    part = next(name for name, one in plain.named_modules() if isinstance(one, nn.Linear | nn.Conv2d))
    for change in (
        lambda one: one.half(),
        lambda one: one.eval() if one.training else one.train(),
        lambda one: setattr(one.get_submodule(part), "weight", nn.Parameter(torch.zeros(3, 3))),
        lambda one: setattr(one.get_submodule(part), "padding_mode", "circular"),
        lambda one: one.add_module("more", nn.Identity()),
        lambda one: setattr(one, "sizes", {"heads": (3, [4])}),
    ):
        other = NETWORKS[kind](tiny)
        change(other)
        found.add(structure_of(other))
    assert len(found) == 7
    assert all(isinstance(one, str) for one in found)


@torch.inference_mode()
def test_loaded_networks_have_one_structure_too(tiny):
    vae, other = tiny.make_vae(), tiny.make_vae()
    comfy.model_management.load_models_gpu([vae.patcher, other.patcher])
    assert isinstance(structure_of(vae.first_stage_model), str)
    assert structure_of(vae.first_stage_model) == structure_of(other.first_stage_model)


def test_what_cannot_be_compared_has_a_structure_of_its_own(tiny):
    def patched(*args, **kwargs):
        raise AssertionError

    class Local(nn.Module):
        pass

    holder = types.SimpleNamespace()
    holder.self = holder
    found = []
    for change in (
        lambda one: setattr(one, "forward", patched),
        lambda one: setattr(one, "forward", one.forward),  # bound to this network
        lambda one: one.register_forward_hook(patched),
        lambda one: one.add_module("local", Local()),
        lambda one: setattr(one, "holder", holder),
        lambda one: setattr(one, "lock", iter([])),
    ):
        for network in [copy.deepcopy(tiny.model.model.diffusion_model) for _ in range(2)]:
            change(network)
            found.append(structure_of(network))
            assert structure_of(network) is found[-1]
    assert len(set(found)) == 12
    assert not any(isinstance(one, str) for one in found)


def test_a_second_checkpoint_of_one_kind_is_not_counted_again(tiny, stock, monkeypatch):
    monkeypatch.setattr(needs, "_known", {})
    counts = []
    count = needs.peak_of_backward
    monkeypatch.setattr(
        needs, "peak_of_backward", lambda *args, **kwargs: counts.append(1) or count(*args, **kwargs)
    )
    latent = {"samples": torch.zeros(1, 4, 8, 12)}
    images, counted = [], []
    for _ in range(2):
        model, vae, encoder = tiny.make_model(), tiny.make_vae(), tiny.make_encoder()
        guided = guide_model(
            model, vae, encoder, Schedule(strength=2.0), RarityGradient(**QUICK), through_denoiser=True
        )
        images.append(stock(guided, tiny, latent_image=latent))
        counted.append(len(counts))
    assert counted[0] >= 3
    assert counted[1] == counted[0]
    assert torch.equal(*images)
