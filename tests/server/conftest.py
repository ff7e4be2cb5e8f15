"""A second server for test files that need a fresh one, with nodes that only tests use."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import HOST, ROOT
from tools.server import Server

NODES = Path(__file__).with_name("testing_nodes.py")


@pytest.fixture(scope="session")
def fresh_server(encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ComfyUI like `server`, in a separate process, with the nodes of testing_nodes.py."""
    testing = tmp_path_factory.mktemp("testing_nodes")
    shutil.copyfile(NODES, testing / "__init__.py")
    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{encoder_dir.name}": encoder_dir}
    links["custom_nodes/testing"] = testing
    with Server(HOST, links, cpu=not torch.cuda.is_available()) as running:
        yield running


@pytest.fixture(scope="session")
def encoder_name(fresh_server: Server) -> str:
    """The name of the real encoder in the encoder loader's menu."""
    options = fresh_server.object_info()["JEPAEncoderLoader"]["input"]["required"]["encoder"][1]["options"]
    (local,) = [name for name in options if name.endswith(".safetensors")]
    return str(local)
