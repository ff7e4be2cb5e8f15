"""What tools/gpu/run.py takes to a machine that has CUDA and torch but no network.

A bundle holds the pinned host without its tests, and the wheels that the host imports at its start and such a machine
lacks: not the page, templates and help, nor packages that only nodes for video, upscaling or shaders need. PyAV alone
would take half of the allowed size and is imported but not used, so a stand-in replaces it. comfy-kitchen has kernels
for six generations of cards; all but those for CAPABILITY are zeroed, so the file compresses to an eighth.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tools.environment import pinned
from tools.environment.building import download, extract_subfolder, pip, setup_lock

PYTHON = "3.12"
# The compute capability whose kernels are kept, without the dot: H100 and H200.
CAPABILITY = 90
LIMIT = 64 << 20
# What main.py imports at its start, besides torch, transformers and their dependencies.
PACKAGES = (
    "comfy-aimdo",
    "comfy-kitchen",
    "torchsde",
    "trampoline",
    "alembic",
    "Mako",
    "SQLAlchemy",
    "pydantic",
    "pydantic_core",
    "pydantic-settings",
    "annotated-types",
    "typing-inspection",
    "python-dotenv",
)
# Without its compiled part, which is only faster.
PURE = ("SQLAlchemy",)
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_24_x86_64",
)
NOT_CARRIED = ("tests", "tests-unit", "blueprints", "script_examples")
HOST_FILE, MANIFEST = "host.tar.xz", "bundle.json"
KITCHEN_KERNELS = "comfy_kitchen/backends/cuda/_C.abi3.so"
KITCHEN_OTHER = "comfy_kitchen/backends/hip/_C.abi3.so"
FATBIN = struct.pack("<I", 0xBA55ED50)
CUBIN = 2
STAND_IN = '''"""Stands in for PyAV, which the host imports at its start but calls only for video and sound."""

import sys
import types


class Anything(types.ModuleType):
    __path__: list = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for part in ("container", "subtitles", "subtitles.stream", "video", "video.reformatter", "codec"):
    sys.modules[f"{__name__}.{part}"] = Anything(f"{__name__}.{part}")
sys.modules[__name__].__class__ = Anything
'''


class BundleError(Exception):
    """The bundle cannot be made or used; the message says why."""


@dataclass(frozen=True)
class Unpacked:
    """An unpacked bundle: ComfyUI's folder, the packages, and an interpreter that finds them."""

    host: Path
    site: Path
    python: str


# --- making, with a network -----------------------------------------------------------------------------------------


def versions(host: Path) -> dict[str, str]:
    """The pinned version of each of PACKAGES."""
    lines = [
        *pinned.CONSTRAINTS.read_text(encoding="utf-8").splitlines(),
        *pinned.TOOLS,
        *(host / "requirements.txt").read_text(encoding="utf-8").splitlines(),
    ]
    versions = {
        pinned.requirement_name(line): line.partition("==")[2].strip() for line in lines if "==" in line
    }
    return {name: versions[pinned.requirement_name(name)] for name in PACKAGES}


def wheel_arguments(name: str, version: str, folder: Path) -> list[str]:
    """pip's arguments to download one wheel for the machine with CUDA."""
    kind = ["--platform", "any", "--abi", "none", "--implementation", "py"]
    if name not in PURE:
        kind = ["--implementation", "cp", *(word for one in PLATFORMS for word in ("--platform", one))]
    words = ["download", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON, *kind]
    return [*words, "-d", str(folder), f"{name}=={version}"]


def prepare(folder: Path, cache: Path, host: Path) -> int:
    """Make a bundle in `folder`, replacing an older one; returns its size in bytes.

    Raises:
        BundleError: it is too large, or the folder holds something else.
        SetupError: a download failed.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MANIFEST).exists():
            raise BundleError(f"{folder} is not empty and holds no bundle; name another folder")
        shutil.rmtree(folder)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    # first, so that a half-made bundle can be replaced
    (folder / MANIFEST).write_text("{}\n")
    python = Path(sys.executable)
    with setup_lock(cache / ".lock"):
        archive = download(pinned.HOST.archive, cache / "downloads", partial(pip, python))
        for name, version in versions(host).items():
            pip(python, wheel_arguments(name, version, wheels))
    (kitchen,) = wheels.glob("comfy_kitchen-*.whl")
    lighten(kitchen)
    pack_host(archive, folder / HOST_FILE)
    files = {str(path.relative_to(folder)): sha256(path) for path in files_below(folder)}
    manifest = {"host": pinned.HOST.version, "python": PYTHON, "capability": CAPABILITY, "sha256": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    size = sum(path.stat().st_size for path in files_below(folder))
    check_size(size, repository_bytes(folder))
    return size


def check_size(bundle: int, repository: int) -> None:
    """Raise BundleError if bundle and repository, in bytes, are too large together."""
    if bundle + repository > LIMIT:
        raise BundleError(
            f"the bundle has {bundle / (1 << 20):.1f} MiB and the repository's files {repository / (1 << 20):.1f}; "
            f"the limit for both is {LIMIT >> 20}"
        )


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def repository_bytes(apart_from: Path) -> int:
    """Bytes of the files that git tracks or does not ignore, except those in a folder."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=pinned.ROOT, capture_output=True, check=True).stdout.decode()
    paths = {pinned.ROOT / name for name in listed.split("\0") if name}
    own = apart_from.absolute()
    return sum(path.stat().st_size for path in paths if path.is_file() and own not in path.parents)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pack_host(archive: Path, target: Path) -> None:
    """Pack the pinned host without what its server does not need."""
    unpacked = target.with_name("unpacked")
    extract_subfolder(archive, pinned.HOST.folder, unpacked)
    for name in NOT_CARRIED:
        shutil.rmtree(unpacked / name, ignore_errors=True)
    with tarfile.open(target, "w:xz", preset=6) as tar:
        for path in files_below(unpacked):
            tar.add(path, str(Path("ComfyUI") / path.relative_to(unpacked)))
    shutil.rmtree(unpacked)


def lighten(wheel: Path) -> None:
    """Repack comfy-kitchen's wheel without the kernels for other cards."""
    slim = wheel.with_suffix(".slim")
    with (
        zipfile.ZipFile(wheel) as old,
        zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        for info in old.infolist():
            if info.filename == KITCHEN_OTHER:
                continue
            content = old.read(info)
            if info.filename == KITCHEN_KERNELS:
                content = blank_kernels(content, CAPABILITY)
            new.writestr(info.filename, content)
    slim.replace(wheel)


def blank_kernels(library: bytes, capability: int) -> bytes:
    """The library with zeros in place of all kernels but those for `capability`.

    The headers stay, so the driver still finds its own kernels.

    Raises:
        BundleError: it has no kernels for `capability`.
    """
    blanked, kept = bytearray(library), 0
    for begin, end, kind, found in kernels(library):
        if (kind, found) == (CUBIN, capability):
            kept += 1
        else:
            blanked[begin:end] = bytes(end - begin)
    if not kept:
        raise BundleError(f"the library holds no kernels for compute capability {capability}")
    return bytes(blanked)


def kernels(library: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(begin, end, kind, capability) of each image of CUDA code in a library.

    A container has a magic number, a version, the size of its header and the size of the rest, which is a row of images.
    An image has its kind, a version, the size of its header, the size of its code and, 28 bytes in, the capability.
    """
    place = library.find(FATBIN)
    while place >= 0:
        _, _, header, size = struct.unpack_from("<IHHQ", library, place)
        image, end = place + header, place + header + size
        while image < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", library, image)
            (capability,) = struct.unpack_from("<I", library, image + 28)
            yield image + header, image + header + size, kind, capability
            image += header + size
        place = library.find(FATBIN, end)


# --- using, without one ---------------------------------------------------------------------------------------------


def unpack(bundle: Path, work: Path) -> Unpacked:
    """Verify a bundle and unpack it in `work`.

    Raises:
        BundleError: it is incomplete, damaged, or for another Python or machine.
    """
    try:
        manifest = json.loads((bundle / MANIFEST).read_text())
        wanted, python = manifest["sha256"], manifest["python"]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{bundle} holds no complete bundle ({error!r})") from error
    here = ".".join(platform.python_version_tuple()[:2])
    if (here, platform.machine(), platform.system()) != (python, "x86_64", "Linux"):
        raise BundleError(
            f"the bundle is for Python {python} on Linux, x86_64; this is {here} on {platform.platform()}"
        )
    for name, digest in wanted.items():
        if not (bundle / name).is_file() or sha256(bundle / name) != digest:
            raise BundleError(f"{bundle / name} is missing or damaged; make the bundle again")
    site = work / "site"
    for name in wanted:
        if name.endswith(".whl"):
            with zipfile.ZipFile(bundle / name) as wheel:
                wheel.extractall(site)
    (site / "av").mkdir()
    (site / "av" / "__init__.py").write_text(STAND_IN)
    with tarfile.open(bundle / HOST_FILE) as tar:
        tar.extractall(work, filter="data")
    return Unpacked(work / "ComfyUI", site, str(interpreter(work / "python", site)))


def interpreter(file: Path, site: Path) -> Path:
    """Write a script that runs this Python with `site` on its path: a server does not pass PYTHONPATH on."""
    file.write_text(
        f'#!/bin/sh\nPYTHONPATH="{site}${{PYTHONPATH:+:$PYTHONPATH}}" exec "{sys.executable}" "$@"\n'
    )
    file.chmod(0o755)
    return file


KERNEL_SECONDS = 60
KERNEL_CHECK = """
import torch, comfy_kitchen
x = torch.randn(64, 64, device="cuda", dtype=torch.float16)
with comfy_kitchen.registry.use_backend("cuda"):
    y = comfy_kitchen.quantize_per_tensor_fp8(x, torch.ones(1, device="cuda"))
torch.cuda.synchronize()
assert (y.float() - x.float()).abs().max() < 0.3
"""


def check_kernels(unpacked: Unpacked) -> dict[str, object]:
    """A row that says whether comfy-kitchen's kernels run on this card; if not, removes them, and its fallback is used."""
    words = [unpacked.python, "-c", KERNEL_CHECK]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=KERNEL_SECONDS)
        ended, said = f"ended with {done.returncode}", done.stderr
    except subprocess.TimeoutExpired:
        ended, said = f"did not end within {KERNEL_SECONDS} s", ""
    row: dict[str, object] = {"name": "comfy-kitchen's kernels", "ok": ended == "ended with 0"}
    if not row["ok"]:
        (unpacked.site / KITCHEN_KERNELS).unlink(missing_ok=True)
        last = re.sub(r"\s+", " ", said.strip()[-400:])
        row["error"] = f"removed, since a check of them {ended}: {last}"
    return row
