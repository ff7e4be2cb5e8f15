"""Draws rows of labels: DiceBear's styles and resvg, fetched with npm and run by Node.js."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from research.harness.npm import archive
from tools.environment.components import cache_folder

SCRIPT = Path(__file__).with_name("draw.mjs")
PACKAGES = {
    "@dicebear/core@9.4.3": "6ca7dae651c74ad547e548fbe7c41f49aaa377cf4617259277518389bf6b1a3d",
    "@dicebear/adventurer@9.4.3": "6edeac04f94ef6177c946918dce012e530200dfcc274b4f954239e33ecbe590c",
    "@dicebear/big-smile@9.4.3": "8dbd7b96c9ceaf9dd7c280cdae4f0bb3e43ab2798b7bedbe355fbb3ce30e87bb",
    "@dicebear/bottts@9.4.3": "f903993f72e17cd83ede17f30fba894b25f6b72f3ab4e532fb81c0dc5a65dc0b",
    "@dicebear/fun-emoji@9.4.3": "85d0a5b3992c8f59fa45e3ca8a561f4f898a791d56d96ecece60a51c36e527c8",
    "@dicebear/personas@9.4.3": "6f5b4765c4d54444ab0330c4a89da53636662de3b04118b827f005a31332d002",
    "@dicebear/pixel-art@9.4.3": "1252d798c632c20f194e7d8b2fbc18b23ad76b2511e668668d0051084bfaa754",
    "@resvg/resvg-js@2.6.2": "5b4c67c32d593a42bca6d97320b57465cf340bee441f4cb6bf250b1086872a43",
}
BINARIES = {
    "linux-x64-gnu": "ead221101ab0c8f27821c6ad4e65259ff6796d49978831b2992abb0ecdbaf96a",
    "linux-x64-musl": "542af5fc32188ab040eabc11e1cda13a5198f67c0a16a526d806b3534ec050a6",
    "linux-arm64-gnu": "4f666017abc3ea74ea3e8fe32ed38fa2b7c2fd7a61f64fa1032728da43ab0054",
    "darwin-x64": "92e243f9f57c6e6dcdf02899a8349a4a8fded9354434c15c5b274038c924b5ec",
    "darwin-arm64": "15b46d346a220a38592423a986e8c5d10b740aa5cf6cf4755585738b4538daa8",
    "win32-x64-msvc": "fe36f57bcf0654f5cac5a3af4d860a00b3a03404d107b05283bd76bbb4a0eeeb",
}


def binary(system: str, machine: str, libc: str) -> str:
    """The package of resvg's binary, "name@version", for what `platform` says of a machine.

    Raises:
        SystemExit: none is pinned for it.
    """
    cpu = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}.get(
        machine.lower(), machine
    )
    ending = {"Linux": "-gnu" if libc == "glibc" else "-musl", "Windows": "-msvc"}.get(system, "")
    name = {"Windows": "win32"}.get(system, system.lower()) + f"-{cpu}{ending}"
    if name not in BINARIES:
        raise SystemExit(
            f"No renderer is pinned for {name}; draw the pictures on one of {', '.join(BINARIES)}."
        )
    return f"@resvg/resvg-js-{name}@2.6.2"


def install(folder: Path) -> Path:
    """Unpack the packages into `folder`, unless it holds them; the archives are kept in dev.py's cache.

    Returns:
        The script to run with Node.js.
    """
    native = binary(platform.system(), platform.machine(), platform.libc_ver()[0])
    wanted = PACKAGES | {native: BINARIES[native.removeprefix("@resvg/resvg-js-").partition("@")[0]]}
    downloads = cache_folder(os.environ, platform.system(), Path.home()) / "downloads"
    for package, sha256 in wanted.items():
        target = folder / "node_modules" / package.rpartition("@")[0]
        if not target.exists():
            partial = target.with_suffix(".partial")
            with archive(package, sha256, downloads) as content:
                content.extractall(partial, filter="data")
            (partial / "package").replace(target)
            partial.rmdir()
    return Path(shutil.copy(SCRIPT, folder))  # Node.js looks for packages beside the script


def _run(script: Path, output: str, rows: Iterable[dict[str, Any]]) -> bytes:
    node = shutil.which("node")
    if node is None:
        raise SystemExit("Node.js is needed to draw the pictures; install it.")
    lines = "\n".join(map(json.dumps, rows)).encode()
    return subprocess.run([node, str(script), output], input=lines, stdout=subprocess.PIPE, check=True).stdout


def pixels(script: Path, rows: Iterable[dict[str, Any]], side: int) -> np.ndarray:
    """Draw rows: (N, side, side, 3) uint8, on white, in their order."""
    return np.frombuffer(_run(script, str(side), rows), np.uint8).reshape(-1, side, side, 3)


def drawn(script: Path, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The SVG of each row, and the parts and colours that the style says it is made of: {"svg", "parts"}."""
    return [json.loads(line) for line in _run(script, "svg", rows).splitlines()]
