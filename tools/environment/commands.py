"""What the commands of dev.py run."""

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

# Commands that hand their arguments to a program.
PROGRAMS = {
    "demo": ROOT / "tools" / "demo.py",
    "bench": ROOT / "research" / "run.py",
    "gpu": ROOT / "tools" / "gpu" / "run.py",
}
# With this argument `gpu` brings its own host, and runs where no network is.
BUNDLE = "--bundle"
# What the long tests find out about samplers and model families; tools/support.py shows it in the README.
SUPPORT = ROOT / "docs" / "support.json"
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
    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{pinned.ENCODER_NAME}": setup.encoder}
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
        checks.append(
            (f"pytest, ComfyUI {pinned.OLDER_HOST.version}", older_host_command(long), setup.older_host)
        )
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
