"""The servers that tools/gpu/run.py asks, and how large everything is that they compute.

Nothing here raises for a prompt that fails: a row says how, and the next prompt has a server that works.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.gpu.rows import (
    LEAST_SECONDS,
    LOG_TAIL,
    TRACEBACK_TAIL,
    Prompt,
    Row,
    TimeUp,
    facts_of,
    failure,
    log_facts,
)
from tools.server import ExecutionFailed, PromptRefused, Server, ServerError

ROOT = Path(__file__).absolute().parents[2]
NODES = ROOT / "tools" / "gpu" / "nodes.py"
FILES = ROOT / "tools" / "gpu" / "files.py"
# A server that starts on a busy machine takes a quarter of this.
START_SECONDS = 90.0
IDLE_SECONDS = 6.0
FILES_SECONDS = 150.0
# After so many the rest of a stage is left out.
HUNG_PROMPTS = 2


@dataclass(frozen=True)
class Size:
    """A checkpoint: its file, side of the image in pixels, and what its denoiser takes as conditioning."""

    file: str
    pixels: int
    width: int
    pooled: int = 0


@dataclass(frozen=True)
class Plan:
    """How large everything is.

    Attributes:
        cpu: compute on the processor. scale: of the files, see gpu_files.
        guided: start and end of the guided range, as fractions of the steps.
        tokens: of the conditioning. encoder_pixels: what the encoder sees.
        prompt_seconds, compile_seconds: what one prompt may take at most.
        left_free: GiB left on the card by the ballast, one run after the other.
    """

    cpu: bool
    scale: str
    sizes: Mapping[str, Size]
    steps: int
    guided: tuple[float, float]
    tokens: int
    encoder_pixels: int
    prompt_seconds: float
    compile_seconds: float
    left_free: Sequence[float] = (24, 16, 12, 8)


FULL = Plan(
    cpu=False,
    scale="full",
    sizes={
        "SDXL": Size("sdxl.safetensors", 1024, 2048, 1280),
        "SD1.5": Size("sd15.safetensors", 512, 768),
    },
    steps=4,
    guided=(0.25, 0.75),
    tokens=77,
    encoder_pixels=224,
    prompt_seconds=75,
    compile_seconds=45,
)
TINY = Plan(
    cpu=True,
    scale="tiny",
    sizes={"SDXL": Size("sdxl.safetensors", 32, 2048, 1280), "SD1.5": Size("sd15.safetensors", 64, 768)},
    steps=2,
    guided=(0.5, 1.0),
    tokens=4,
    encoder_pixels=28,
    prompt_seconds=60,
    compile_seconds=30,
)


class Host(Server):
    """A server that may take less time to start than tools.server allows."""

    def _wait_until_ready(self, timeout: float) -> None:
        super()._wait_until_ready(min(timeout, START_SECONDS))


@dataclass
class Bench:
    """The servers of a run, and the time that is left.

    Attributes:
        host: the folder with ComfyUI's main.py. python: what starts it. work: an empty folder for everything.
        search: folders for the import path of the program that makes the files.
        deadline: when no prompt is started any more, as time.monotonic() counts.
    """

    plan: Plan
    host: Path
    python: str
    work: Path
    search: Sequence[Path]
    deadline: float
    hung: int = 0  # prompts of this stage that were not done in their time
    _default: Server | None = None
    _old_logs: str = ""
    _salt: int = 0
    _defaults: dict[str, Row] = field(default_factory=dict)

    @property
    def models(self) -> Path:
        return self.work / "base" / "models"

    @property
    def output(self) -> Path:
        """Where the default server puts what nodes save."""
        return self.work / "base" / "output"

    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def salt(self) -> int:
        """A number that no prompt had before."""
        self._salt += 1
        return self._salt

    # --- servers ------------------------------------------------------------------------------------------

    def default(self) -> Server:
        """The server with the host's defaults, started when there is none or the last one died."""
        if self._default is not None and self._default.process.poll() is None:
            return self._default
        self.stop()
        self._default = self._new("base").__enter__()
        return self._default

    @contextlib.contextmanager
    def beside(self, *arguments: str) -> Iterator[Server]:
        """Another server with these options and the same models, for the length of a block."""
        with self._new("beside", "--models-directory", str(self.models), *arguments) as server:
            yield server

    def _new(self, base: str, *arguments: str) -> Server:
        page = self.work / "no page"
        testing = self.work / "testing"
        for folder in (page, testing, self.models):
            folder.mkdir(parents=True, exist_ok=True)
        (testing / "__init__.py").write_bytes(NODES.read_bytes())
        links = {"custom_nodes/jepa-guidance": ROOT, "custom_nodes/testing": testing}
        # an empty folder instead of the page's package, which only a browser wants
        words = ("--front-end-root", str(page), *arguments)
        return Host(
            self.host,
            links,
            base=self.work / base,
            python=self.python,
            cpu=self.plan.cpu,
            arguments=words,
        )

    def stop(self) -> None:
        """End the default server, if there is one."""
        server, self._default = self._default, None
        if server is not None:
            self._old_logs = server.log()[-LOG_TAIL:]
            server.__exit__(None, None, None)

    def log_tail(self) -> str:
        """The end of the default server's log, or of the one before where none runs."""
        return self._old_logs if self._default is None else self._default.log()[-LOG_TAIL:]

    def free(self, server: Server | None = None) -> None:
        """Have a server unload its models and forget its results."""
        (server or self.default()).forget()
        time.sleep(0.1)  # the queue's thread takes it up by itself

    def defaults(self, node: str) -> Row:
        """The inputs of a node at their defaults, as the server describes them."""
        if node not in self._defaults:
            info = self.default().object_info()[node]["input"]
            sections = (info.get("required", {}), info.get("optional", {}))
            inputs = {name: spec for section in sections for name, spec in section.items()}
            self._defaults[node] = {
                name: spec[1]["default"]
                for name, spec in inputs.items()
                if len(spec) > 1 and "default" in spec[1]
            }
        return self._defaults[node]

    # --- files --------------------------------------------------------------------------------------------

    def make_files(self) -> subprocess.Popen[str]:
        """Start the program that writes the random models."""
        words = [self.python, "-P", str(FILES), "--models", str(self.models), "--scale", self.plan.scale]
        environ = import_path(self.host, *self.search, ROOT)
        # a file: a pipe that nobody reads would fill up
        with open(self.work / "files.log", "w") as log:
            return subprocess.Popen(
                words, env=environ, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True
            )

    def file_rows(self, process: subprocess.Popen[str]) -> list[Row]:
        """Wait for that program; a row for each file."""
        limit = max(1.0, min(FILES_SECONDS, self.remaining()))
        try:
            lines, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            lines, _ = process.communicate()
            lines += json.dumps({"file": "the rest", "error": f"not written within {limit:.0f} s"})
        rows = [json.loads(line) for line in lines.splitlines()]
        if process.returncode != 0:
            rows.append({"file": "log", "error": (self.work / "files.log").read_text()[-TRACEBACK_TAIL:]})
        return [{"name": f"file {row['file']}", "ok": "error" not in row, **row} for row in rows]

    # --- prompts ------------------------------------------------------------------------------------------

    def run(
        self, name: str, prompt: Prompt, seconds: float | None = None, server: Server | None = None
    ) -> Row:
        """Run a prompt to its end, however it ends; returns its row.

        Args:
            seconds: what it may take, at most; the plan's where None. server: the default one where None.

        Raises:
            TimeUp: there is no time left to start it.
            RuntimeError: too many prompts of this stage have hung, and the next stage should have its turn.
            ServerError: no server could be started.
        """
        if self.remaining() < LEAST_SECONDS:
            raise TimeUp
        if self.hung >= HUNG_PROMPTS:
            raise RuntimeError(f"{self.hung} prompts of this stage were not done in their time")
        own = server or self.default()
        limit = min(seconds or self.plan.prompt_seconds, self.remaining())
        mark, read, begun = len(own.log()), bytes_read(own), time.monotonic()
        row: Row = {"name": name, "ok": True}
        try:
            row |= facts_of(own.wait(own.queue(prompt), limit), prompt)
        except ExecutionFailed as error:
            row |= failure(error, str(error.details.get("traceback", "")))
            row["error"] = f"{error.event} in {error.node_type}: {error.message}"
        except TimeoutError:
            self.hung += 1
            row |= {"ok": False, "error": f"not done after {limit:.0f} s"}
            self._make_idle(own)
        except (ServerError, OSError, ValueError) as error:
            row |= failure(error, traceback.format_exc())
            if not isinstance(error, PromptRefused) and own is self._default:
                self.stop()
        row["seconds"] = round(time.monotonic() - begun, 3)
        log = own.log()[mark:] if own.process.poll() is None else own.log()
        row |= log_facts(log)
        if (after := bytes_read(own)) is not None and read is not None:
            row["read_GiB"] = round((after - read) / (1 << 30), 3)
        if not row["ok"]:
            row["log"] = log[-LOG_TAIL:]
        return row

    def _make_idle(self, server: Server) -> None:
        """Interrupt what a server runs; end the default one if it does not stop."""
        with contextlib.suppress(ServerError):
            server.interrupt()
            if seconds_until_idle(server, IDLE_SECONDS) is not None:
                return
        if server is self._default:
            self.stop()


def import_path(*folders: Path) -> dict[str, str]:
    """The environment with these folders as Python's import path."""
    path = os.pathsep.join(str(folder) for folder in folders)
    return {**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"}


def seconds_until_idle(server: Server, limit: float) -> float | None:
    """Seconds until a server's queue is empty; None when that takes longer than `limit`."""
    begun = time.monotonic()
    while time.monotonic() - begun < limit:
        queue = json.loads(server.get("/queue"))
        if not queue["queue_running"] and not queue["queue_pending"]:
            return round(time.monotonic() - begun, 3)
        time.sleep(0.02)
    return None


def bytes_read(server: Server) -> int | None:
    """How much the server's process has read so far, from files and from memory that stands for one."""
    try:
        lines = Path(f"/proc/{server.process.pid}/io").read_text().splitlines()
    except OSError:
        return None
    return int(dict(line.split(": ") for line in lines)["rchar"])
