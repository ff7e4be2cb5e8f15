"""A host that lacks something is refused at import, with a message that names it and the fix."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.ldm.flux.math import apply_rope, rope
from jepa_guidance.host.comfy.backward_ops import training_operations
from jepa_guidance.host.comfy.required import HOST_VERSION, OLDEST_HOST

from tests.conftest import HOST, ROOT
from tools.environment import pinned

REQUIRED = ROOT / "host" / "comfy" / "required.py"
Damage = Callable[[pytest.MonkeyPatch], None]


def import_required() -> ModuleType:
    """Import host/comfy/required.py again, as a separate module."""
    spec = importlib.util.spec_from_file_location("required_of_a_damaged_host", REQUIRED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without(owner: Any, name: str) -> Damage:
    return lambda monkeypatch: monkeypatch.delattr(owner, name)


def without_module(name: str) -> Damage:
    return lambda monkeypatch: monkeypatch.setitem(sys.modules, name, None)


def with_method(owner: Any, name: str, method: Callable) -> Damage:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, method)


def sample_in_another_way(self: Any, model_wrap: Any) -> Any:
    """A method whose body has changed and no longer mentions the attributes."""
    return model_wrap


DAMAGES = {
    "the module comfy.pixel_space_convert": without_module("comfy.pixel_space_convert"),
    "the module folder_paths": without_module("folder_paths"),
    "comfy.samplers.KSAMPLER": without(comfy.samplers, "KSAMPLER"),
    "comfy.model_management.load_models_gpu": without(comfy.model_management, "load_models_gpu"),
    "comfy.utils.ProgressBar": without(comfy.utils, "ProgressBar"),
    "folder_paths.models_dir": without(folder_paths, "models_dir"),
    "ModelPatcher.set_additional_models": without(comfy.model_patcher.ModelPatcher, "set_additional_models"),
    "WrappersMP.SAMPLER_SAMPLE": without(comfy.patcher_extension.WrappersMP, "SAMPLER_SAMPLE"),
    "LatentFormat.taesd_decoder_name": without(comfy.latent_formats.LatentFormat, "taesd_decoder_name"),
    "VAE.throw_exception_if_invalid": without(comfy.sd.VAE, "throw_exception_if_invalid"),
    "the attribute sampler_function in sample_in_another_way": with_method(
        comfy.samplers.KSAMPLER, "sample", sample_in_another_way
    ),
}


def test_a_complete_host_is_accepted() -> None:
    assert import_required().HOST_VERSION == HOST_VERSION


@pytest.mark.parametrize("missing", DAMAGES)
def test_a_host_that_lacks_something_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    DAMAGES[missing](monkeypatch)
    with pytest.raises(ImportError, match=rf"needs {re.escape(missing)}, which") as refused:
        import_required()
    assert type(refused.value).__name__ == "HostVersionError"
    message = str(refused.value)
    assert f"this ComfyUI ({HOST_VERSION})" in message
    assert f"ComfyUI {OLDEST_HOST} and newer" in message
    assert "update ComfyUI" in message


def test_a_host_of_unknown_version_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comfyui_version", None)
    monkeypatch.delattr(comfy.samplers, "KSAMPLER")
    with pytest.raises(ImportError, match="of an unknown version"):
        import_required()


LOAD = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args
args.cpu = True
import comfy.samplers, nodes
del comfy.samplers.KSAMPLER
print("loaded", asyncio.run(nodes.load_custom_node(sys.argv[2])))
"""


def test_the_host_leaves_the_pack_out_and_shows_the_message() -> None:
    command = [sys.executable, "-P", "-c", LOAD, str(HOST), str(ROOT)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "loaded False" in ended.stdout, ended.stderr
    assert "JEPA Guidance needs comfy.samplers.KSAMPLER" in ended.stderr


def test_the_documented_oldest_host_is_the_one_tested() -> None:
    assert pinned.OLDER_HOST.version == OLDEST_HOST
    assert f'requires-comfyui = ">={OLDEST_HOST}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_rotary_embeddings_have_a_backward_pass() -> None:
    generator = torch.Generator().manual_seed(1)
    queries, keys, weights = (torch.randn(1, 2, 5, 8, generator=generator) for _ in range(3))
    rotations = rope(torch.arange(5.0)[None], 8, 10000)[:, None]
    leaf = queries.clone().requires_grad_()
    with training_operations():
        turned, other = apply_rope(leaf, keys.clone().requires_grad_(), rotations)
        (found,) = torch.autograd.grad((turned * weights).sum() + other.sum(), leaf)
    pairs = queries.reshape(1, 2, 5, 4, 2, 1)
    assert torch.allclose(turned, (rotations @ pairs).reshape(queries.shape), atol=1e-6)
    expected = rotations.transpose(-1, -2) @ weights.reshape(pairs.shape)
    assert torch.allclose(found, expected.reshape(queries.shape), atol=1e-6)
