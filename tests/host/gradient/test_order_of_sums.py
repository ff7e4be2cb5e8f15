"""Every operation of a backward pass has a reason for its order on CUDA, in docs/determinism.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("comfy.memory_management")  # newer than the oldest host

import comfy.sd
import comfy.taesd.taesd
import torch
from jepa_guidance.host.gradient import differentiable
from jepa_guidance.host.gradient import ordered as ordered_module
from jepa_guidance.host.gradient.decoders import decoded
from jepa_guidance.host.gradient.differentiable import host_differentiable
from jepa_guidance.host.gradient.ordered import ordered
from jepa_guidance.jepa_core import resize
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jepa_core import RarityGradient, jepa_score, load_encoder
from jepa_core import resize as own_resize
from jepa_core.architectures import ARCHITECTURES
from jepa_core.encoder import ORDERED_ATTENTION
from jepa_core.novelty import novelty_gradient
from tests.core.conftest import SMALL, random_model
from tests.host.families import randomise
from tests.host.guidance.test_families import SUPPORTED, family_of, gradients_of_a_run, sample, with_long
from tools.determinism_page import ORDER, PAGE, REASONS, UNORDERED, page


class Names(TorchDispatchMode):
    """The names of all operations in the block, such as "convolution_backward"."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not torch.ops.aten.promote_types.default:  # it has no tensor
            self.found.add(function._schema.name.split("::")[1])
        if function._schema.name == "aten::index_put":
            adds = len(args) > 3 and args[3]
            assert adds or not args[2].count_nonzero(), "places that repeat are written in any order"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def backward(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A block that returns the names of the operations in its backward passes, with what is used on CUDA."""
    plain = torch.autograd.grad

    @contextmanager
    def record() -> Iterator[set[str]]:
        names = Names()

        def recorded(*args: Any, **kwargs: Any) -> Any:
            with names:
                return plain(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(differentiable, "ordered", partial(ordered, "cpu"))
            for module in (resize, own_resize):
                patch.setattr(module, "_IN_ORDER", set())
            patch.setattr(ordered_module, "takes_flash", lambda q, k, v, mask, *_: mask is None)
            patch.setattr(torch.autograd, "grad", recorded)
            yield names.found

    return record


def tiny_decoder_gradient(channels: int) -> None:
    decoder = comfy.taesd.taesd.TAESD(latent_channels=channels)
    randomise(decoder, seed=2)
    vae = comfy.sd.VAE(sd=decoder.state_dict(), metadata={"tae_latent_channels": channels})
    with host_differentiable(vae.first_stage_model):
        latent = torch.randn(1, channels, 4, 4, requires_grad=True)
        torch.autograd.grad(decoded(vae, latent).sum(), latent)


def encoder_gradients(folder: Path, kind: str) -> None:
    random_model(kind).save_pretrained(folder)
    encoder = load_encoder(folder, image_size=2 * int(SMALL[kind]["patch_size"]))
    with encoder.fused_attention():
        encoder.model.set_attn_implementation(ORDERED_ATTENTION)
        leaf = torch.rand(1, 20, 30, 3, requires_grad=True)
        x = encoder.preprocess(leaf)
        torch.autograd.grad(encoder(x).sum(), leaf)
    x = x.detach()
    RarityGradient(4, power_iterations=1)(encoder, x)
    jepa_score(encoder, x)
    jepa_score(encoder, x, projection=8)
    novelty_gradient(encoder, x, lambda embeddings: embeddings.square().sum(1))


def gradients_of(where: str, folder: Path) -> None:
    """All gradients of a family, of an encoder, or of a tiny decoder."""
    if where in ARCHITECTURES:
        encoder_gradients(folder / where, where)
    elif where in TINY_DECODERS:
        tiny_decoder_gradient(TINY_DECODERS[where])
    else:
        gradients_of_a_run(family_of(where), checkpointing=False)


TINY_DECODERS = {"tiny decoder of 4 channels": 4, "tiny decoder of 16 channels": 16}


@pytest.mark.parametrize("where", [*with_long(SUPPORTED), *ARCHITECTURES, *TINY_DECODERS])
def test_every_operation_of_a_backward_pass_is_in_the_table(backward, tmp_path, where):
    with backward() as names:
        gradients_of(where, tmp_path)
    assert names
    assert names - ORDER.keys() == set()


@pytest.mark.long
def test_the_table_has_no_other_operation(backward, tmp_path):
    with backward() as names:
        for where in (*SUPPORTED, *ARCHITECTURES, *TINY_DECODERS):
            gradients_of(where, tmp_path)
    assert ORDER.keys() - names == set()
    assert set(ORDER.values()) == set(REASONS)


@pytest.mark.parametrize("name", with_long(SUPPORTED))
def test_no_forward_pass_adds_up_in_any_order(name):
    with Names() as names:
        sample(family_of(name), steps=2)
    assert not names.found & set(UNORDERED)


def test_the_page_is_made_from_the_table():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_an_operation_without_a_reason_is_found(backward):
    def gradient(function: Callable[[Tensor], Tensor]) -> None:
        x = torch.randn(1, 1, 4, 4, requires_grad=True)
        torch.autograd.grad(function(x).sum(), x)

    with backward() as names:
        gradient(lambda x: torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear"))
        gradient(lambda x: x.gather(3, torch.zeros(1, 1, 4, 4, dtype=torch.long)))
    assert names - ORDER.keys() >= {"upsample_bilinear2d_backward", "scatter_add"}
