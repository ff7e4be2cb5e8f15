"""The servers of a run and the time that is left.

A prompt that fails raises nothing: its row says how, and the next prompt gets a working server.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.environment.pinned import ROOT
from tools.gpu.plan import Plan
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

PROBE_NODES = ROOT / "tools" / "gpu" / "probe_nodes.py"
RANDOM_MODELS = ROOT / "tools" / "gpu" / "random_models.py"
# Four times what a start takes on a busy machine.
START_SECONDS = 90.0
IDLE_SECONDS = 6.0
FILES_SECONDS = 150.0
# After this many the rest of a stage is skipped.
HUNG_PROMPTS = 2


@dataclass
class Session:
    """The servers of a run and the time that is left.

    Attributes:
        host: the folder with ComfyUI's main.py. python: the interpreter. work: an empty folder for everything.
        search: import path of the program that makes the model files.
        deadline: when to start no more prompts, by time.monotonic().
        hung: prompts of this stage that took too long.
    """

    plan: Plan
    host: Path
    python: str
    work: Path
    search: Sequence[Path]
    deadline: float
    hung: int = 0
    _default: Server | None = None
    _old_logs: str = ""
    _salt: int = 0

    @property
    def models(self) -> Path:
        """The models folder of every server."""
        return self.work / "base" / "models"

    @property
    def output(self) -> Path:
        """The default server's output folder."""
        return self.work / "base" / "output"

    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def salt(self) -> int:
        """A new number at each call."""
        self._salt += 1
        return self._salt

    # --- servers ------------------------------------------------------------------------------------------

    def default(self) -> Server:
        """The server with the host's defaults, started if none is running."""
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
        # an empty folder instead of the page's package, which only a browser needs
        page, probes = self.work / "no page", self.work / "testing"
        for folder in (page, probes, self.models):
            folder.mkdir(parents=True, exist_ok=True)
        (probes / "__init__.py").write_bytes(PROBE_NODES.read_bytes())
        return Server(
            self.host,
            {"custom_nodes/jepa-guidance": ROOT, "custom_nodes/testing": probes},
            base=self.work / base,
            python=self.python,
            cpu=self.plan.cpu,
            arguments=("--front-end-root", str(page), *arguments),
            start_seconds=START_SECONDS,
        )

    def stop(self) -> None:
        """Stop the default server, if there is one."""
        server, self._default = self._default, None
        if server is not None:
            self._old_logs = server.log()[-LOG_TAIL:]
            server.__exit__(None, None, None)

    def log_tail(self) -> str:
        """The end of the default server's log; of the last one's if none is running."""
        return self._old_logs if self._default is None else self._default.log()[-LOG_TAIL:]

    def free(self) -> None:
        """Have the default server unload its models and drop its results."""
        self.default().forget()
        time.sleep(0.1)  # the queue's thread reads the request on its own time

    # --- files --------------------------------------------------------------------------------------------

    def make_files(self) -> subprocess.Popen[str]:
        """Start the program that writes the random models."""
        program = [self.python, "-P", str(RANDOM_MODELS)]
        path = os.pathsep.join(str(folder) for folder in (self.host, *self.search, ROOT))
        # a log file, since a pipe that nobody reads would fill up
        with open(self.work / "files.log", "w") as log:
            return subprocess.Popen(
                [*program, "--models", str(self.models), "--scale", self.plan.scale],
                env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
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
        """Run a prompt to its end, whatever that is; returns its row.

        Args:
            seconds: its time limit; None for the plan's. server: None for the default one.

        Raises:
            TimeUp: there is no time left to start it.
            RuntimeError: too many prompts of this stage took too long; the next stage should have its turn.
            ServerError: no server could be started.
        """
        if self.remaining() < LEAST_SECONDS:
            raise TimeUp
        if self.hung >= HUNG_PROMPTS:
            raise RuntimeError(f"{self.hung} prompts of this stage took too long")
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
        """Interrupt a server; stop the default one if its prompt goes on."""
        with contextlib.suppress(ServerError):
            server.interrupt()
            if seconds_until_idle(server, IDLE_SECONDS) is not None:
                return
        if server is self._default:
            self.stop()


def seconds_until_idle(server: Server, limit: float) -> float | None:
    """Seconds until a server's queue is empty; None if that takes longer than `limit`."""
    begun = time.monotonic()
    while time.monotonic() - begun < limit:
        queue = json.loads(server.get("/queue"))
        if not queue["queue_running"] and not queue["queue_pending"]:
            return round(time.monotonic() - begun, 3)
        time.sleep(0.02)
    return None


def bytes_read(server: Server) -> int | None:
    """Bytes that the server's process has read so far, from disk or cache; None where the system does not say."""
    try:
        lines = Path(f"/proc/{server.process.pid}/io").read_text().splitlines()
    except OSError:
        return None
    return int(dict(line.split(": ") for line in lines)["rchar"])
