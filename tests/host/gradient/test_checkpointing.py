"""Checkpointed blocks give the same gradients as plain ones, keep less memory, and leave nothing behind."""

from __future__ import annotations

import comfy.ldm.flux.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ops
import pytest
import torch
from jepa_guidance.host.gradient.checkpointing import blocks, checkpointed
from jepa_guidance.host.gradient.decoders import decoded
from jepa_guidance.host.gradient.differentiable import host_differentiable

from tests.host.hosts import newer_host


def random(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny_flux():
    """Two double and two single blocks for a 4 x 8 x 8 latent; they write into their inputs."""
    return comfy.ldm.flux.model.Flux(
        image_model="flux",
        in_channels=4,
        out_channels=4,
        vec_in_dim=8,
        context_in_dim=8,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        depth_single_blocks=2,
        axes_dim=[4, 6, 6],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=False,
        txt_ids_dims=[],
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )


def tiny_sd3():
    return comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper(
        input_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        depth=2,
        mlp_ratio=2.0,
        adm_in_channels=8,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": 8, "out_features": 128},
        },
        pos_embed_max_size=8,
        num_patches=64,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )


@pytest.fixture(params=["unet", pytest.param("flux", marks=newer_host), "sd3", "vae decoder"])
def network(request, tiny):
    """A network of the host's classes, and a function of x alone that runs it."""
    with torch.inference_mode():
        context, pooled, times = random((2, 3, 8), 1), random((2, 8), 2), torch.tensor([0.3, 0.7]).double()
    if request.param == "vae decoder":
        vae = tiny.make_vae(torch.float64)
        return vae.first_stage_model, lambda x: decoded(vae, x)
    if request.param == "unet":
        net = tiny.make_model("EPS", torch.float64).model.diffusion_model
        return net, lambda x: net(x, times.clone(), context.clone(), transformer_options={})
    with torch.inference_mode():
        net = tiny_flux() if request.param == "flux" else tiny_sd3()
        tiny.randomise(net.double(), seed=5)
        net.dtype = torch.float64
    return net, lambda x: net(x, times.clone(), context.clone(), y=pooled.clone(), transformer_options={})


def gradient(run, x, cotangent_seed=3):
    leaf = x.clone().requires_grad_()
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        out = run(leaf)
        (found,) = torch.autograd.grad(out, leaf, random(out.shape, cotangent_seed).to(out))
    return out.detach(), found


def test_output_and_gradient_are_those_of_plain_blocks(network):
    net, run = network
    x = random((2, 4, 8, 8), 4)
    with host_differentiable(net):
        plain = gradient(run, x)
        state = torch.get_rng_state()
        with checkpointed(net):
            again = gradient(run, x)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(plain[0], again[0])
        assert torch.allclose(plain[1], again[1], rtol=0, atol=1e-12 * float(plain[1].abs().max()))
        assert plain[1].abs().max() > 0


def kept_bytes(run, x, weights):
    """Bytes that the graph of run(x) saves for its backward pass, besides the weights."""
    storages = {}
    own = {weight.untyped_storage().data_ptr() for weight in weights}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run(x.clone().requires_grad_())
    return sum(storages.values()), out


def test_less_is_kept(network):
    net, run = network
    x = random((2, 4, 8, 8), 4)
    with host_differentiable(net):
        weights = list(net.parameters())
        plain, _ = kept_bytes(run, x, weights)
        with checkpointed(net):
            less, _ = kept_bytes(run, x, weights)
    assert less < 0.5 * plain


def test_every_block_is_found_once_and_restored_after_an_error(network):
    net, _ = network
    found = blocks(net)
    assert len(found) >= 2
    assert len({id(block) for block in found}) == len(found)
    assert not any("forward" in block.__dict__ for block in found)
    inside = []

    def fail():
        with checkpointed(net):
            inside.extend("forward" in block.__dict__ for block in found)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(inside)
    assert not any("forward" in block.__dict__ for block in found)


def test_a_forward_method_replaced_by_others_is_restored(tiny):
    block = blocks(tiny.vae.first_stage_model.decoder)[0]
    calls = []
    stock = block.forward

    def patched(*args):
        calls.append(1)
        return stock(*args)

    block.forward = patched
    with host_differentiable(tiny.vae.first_stage_model), checkpointed(tiny.vae.first_stage_model):
        gradient(lambda x: decoded(tiny.vae, x), random((1, 4, 4, 4), 4).float())
    assert block.forward is patched
    assert len(calls) == 2


def test_the_second_run_has_the_arguments_of_the_first():
    """The host writes the index of the current block into one dict that all blocks share."""

    class Scaled(torch.nn.Module):
        def forward(self, x, options):
            return x * options["block"]

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.list = torch.nn.ModuleList([Scaled(), Scaled()])

        def forward(self, x):
            options = {}
            for number, block in enumerate(self.list):
                options["block"] = number + 2.0
                x = block(x, options=options)
            return x

    network = Network()
    x = torch.ones(3, requires_grad=True)
    with checkpointed(network):
        (found,) = torch.autograd.grad(network(x).sum(), x)
    assert found.tolist() == [6.0, 6.0, 6.0]
