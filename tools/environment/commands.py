"""What dev.py's commands run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.environment import pinned
from tools.environment.building import clean_environment, say
from tools.environment.components import Setup
from tools.environment.pinned import ROOT

# Commands that pass their arguments to a program.
PROGRAMS = {
    "demo": ROOT / "tools" / "demo.py",
    "bench": ROOT / "research" / "bench.py",
    "results": ROOT / "research" / "results" / "run.py",
    "gpu": ROOT / "tools" / "gpu" / "run.py",
}
SERVER = ROOT / "tools" / "server.py"
# What the long tests find out about samplers and model families; tools/support.py makes the tables of it.
SUPPORT = ROOT / "docs" / "support.json"
# What a plain `test` runs against the older host: the files that use most of its internals in the least time.
OLDER_TESTS = (
    "comfy/test_versions",
    "guidance/test_schedule",
    "guidance/test_models_that_do_not_fit",
    "gradient/test_checkpointing",
    "gradient/test_chain",
    "guidance/test_patch",
    "generators/test_djepa",
)


# --- programs -----------------------------------------------------------------------------------------------


def child_environment(setup: Setup, environ: Mapping[str, str], *more: Path) -> dict[str, str]:
    """The environment variables for a script that imports host and pack.

    The host precedes the pack on PYTHONPATH: its nodes.py and the pack's nodes/ share a name.
    """
    path = os.pathsep.join(str(folder) for folder in (setup.host, ROOT, *more))
    extra = {"PYTHONPATH": path, "JEPA_HOST": str(setup.host), "JEPA_ENCODER": str(setup.encoder)}
    return {**clean_environment(environ), **extra}


def run_file(setup: Setup, file: Path, arguments: Sequence[str]) -> int:
    """Run a Python file in the environment; returns its exit code (on POSIX it does not return)."""
    # Without -P, Python would put the file's own folder before the host's; here it comes last.
    words = [str(setup.python), "-P", str(file), *arguments]
    return become(words, child_environment(setup, os.environ, file.absolute().parent))


def run_without_setup(file: Path, arguments: Sequence[str]) -> int:
    """Run a Python file that brings its own host, with this Python; returns as run_file does."""
    environ = {**clean_environment(os.environ), "PYTHONPATH": str(ROOT)}
    return become([sys.executable, "-P", str(file), *arguments], environ)


def become(words: list[str], environ: Mapping[str, str]) -> int:
    """Replace this process by a program where the system allows it; returns its exit code."""
    if os.name == "posix":
        # No process stays between the program and whoever sends it a signal.
        os.execve(words[0], words, environ)
    return subprocess.run(words, env=environ).returncode


def serve_arguments(setup: Setup, base: Path, port: int) -> list[str]:
    """The arguments of tools/server.py for a server with this pack and the encoder."""
    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{pinned.ENCODER_NAME}": setup.encoder}
    words = ["--host", str(setup.host), "--base", str(base), "--port", str(port)]
    return [*words, *(f"{inside}={target}" for inside, target in links.items())]


# --- tests --------------------------------------------------------------------------------------------------


def check_commands(long: bool, arguments: Sequence[str]) -> dict[str, list[str]]:
    """What `test` runs, by name: a module and its arguments."""
    # the support matrix is written only if all of its tests ran
    matrix = [] if arguments else ["-p", "tests.support", "--support", str(SUPPORT)]
    marked = matrix if long else ["-m", "not long"]
    # the long tests measure time and memory, so nothing runs beside them
    side_by_side = [] if long or arguments else parallel()
    return {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
        "pytest": ["pytest", *side_by_side, *marked, *arguments],
    }


def older_host_command(long: bool) -> list[str]:
    """What `test` runs against the older host: a module and its arguments."""
    if long:
        return ["pytest", "tests/host"]
    return ["pytest", *(f"tests/host/{name}.py" for name in OLDER_TESTS), *parallel(), "-m", "not long"]


def parallel() -> list[str]:
    """pytest's options for several processes; each takes 3 GB with the server that it starts.

    One more than there are cores: tests of the page mostly wait for a browser. The slowest tests are listed.
    """
    return ["-n", str(min((os.cpu_count() or 1) + 1, 4)), "--dist", "worksteal", "--durations", "40"]


def run_tests(setup: Setup, long: bool, arguments: Sequence[str]) -> int:
    """Run linter, formatter, type checker and tests, all of them; returns 1 if any failed."""
    checks = [(name, words, setup.host) for name, words in check_commands(long, arguments).items()]
    if setup.older_host is not None:
        name = f"pytest, ComfyUI {pinned.OLDER_HOST.version}"
        checks.append((name, older_host_command(long), setup.older_host))
    failed = []
    for name, words, host in checks:
        say(f"== {name}")
        extra = {"JEPA_HOST": str(host), "JEPA_ENCODER": str(setup.encoder)}
        if "-n" in words:
            extra["OMP_NUM_THREADS"] = "1"  # the processes already use all cores
        environ = {**clean_environment(os.environ), **extra}
        if subprocess.run([str(setup.python), "-m", *words], cwd=ROOT, env=environ).returncode != 0:
            failed.append(name)
    say("failed: " + ", ".join(failed) if failed else "all checks passed")
    return 1 if failed else 0
