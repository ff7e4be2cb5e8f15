"""A real ComfyUI server with its own base directory, for tests, tools and manual use.

    with Server(host, {"custom_nodes/jepa-guidance": repo, "models/jepa/dinov2": encoder}) as server:
        prompt_id = server.queue(workflow_in_api_format)
        history = server.wait(prompt_id, timeout=60)

As a script, this starts one in the foreground:

    python tools/server.py --host COMFYUI --base FOLDER --port 8188 custom_nodes/jepa-guidance=REPO ...

Standard library only. The server listens on 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

BASE_FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user")
START_SECONDS = 180.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.1
LOG_TAIL = 4000
# Left out of a pack that has to be copied rather than linked.
NOT_COPIED = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".work")


class ServerError(RuntimeError):
    """The server did not start, or no longer answers."""


class PromptRefused(ServerError):
    """The server refused a prompt; `answer` is its JSON with "error" and "node_errors"."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer, indent=1))
        self.answer = answer


class ExecutionFailed(RuntimeError):
    """A node raised, or the run was interrupted.

    Attributes:
        event: "execution_error" or "execution_interrupted".
        node_id, node_type: the node that ended.
        message: the exception's text ("" for an interrupt).
        details: everything that the server reported.
    """

    def __init__(self, event: str, details: dict[str, Any]) -> None:
        self.event = event
        self.details = details
        self.node_id = str(details.get("node_id"))
        self.node_type = str(details.get("node_type"))
        self.message = str(details.get("exception_message", "")).strip()
        where = f"{event} in node {self.node_id} ({self.node_type})"
        super().__init__(f"{where}: {self.message}\n{''.join(details.get('traceback', []))}")


def free_port() -> int:
    """A TCP port on 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def link(target: Path, place: Path) -> None:
    """Link `place` to the file or folder `target`: a symlink, else a junction or hard link, else a copy.

    Replaces a link at `place`; raises FileExistsError for anything else there.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    elif place.exists() and place.samefile(target):
        return
    elif os.name == "nt" and place.is_dir():
        # Removes a junction, but fails for a folder that is not empty.
        with contextlib.suppress(OSError):
            place.rmdir()
    try:
        place.symlink_to(target.absolute(), target_is_directory=target.is_dir())
    except FileExistsError:
        raise
    except OSError:
        # Windows makes symlinks only for administrators and in developer mode.
        if not target.is_dir():
            link_or_copy_file(target, place)
        elif not make_junction(target, place):
            shutil.copytree(target, place, ignore=NOT_COPIED)


def place_files(target: Path, place: Path) -> None:
    """Fill the folder `place` with the files of the folder `target`, as hard links or copies.

    For model folders: the pack refuses weights behind a symlink that leads out of them.
    """
    if place.is_symlink():
        place.unlink()
    place.mkdir(parents=True, exist_ok=True)
    for file in target.iterdir():
        (place / file.name).unlink(missing_ok=True)
        link_or_copy_file(file, place / file.name)


def link_or_copy_file(target: Path, place: Path) -> None:
    """Make `place` a hard link to the file `target`, or a copy if they are on different disks."""
    try:
        os.link(target, place)
    except OSError:
        shutil.copyfile(target, place)


def make_junction(target: Path, place: Path) -> bool:
    """Make a Windows directory junction; False if that fails."""
    if os.name != "nt":
        return False
    words = ["cmd", "/c", "mklink", "/J", str(place), str(target.absolute())]
    return subprocess.run(words, capture_output=True).returncode == 0


def prepare_base(base: Path, links: Mapping[str, Path]) -> None:
    """Make a base directory for the server; `links` maps a path inside it to the file or folder to put there."""
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    for inside, target in links.items():
        if not target.exists():
            raise FileNotFoundError(f"{target} does not exist, so it cannot be linked as {inside}")
        place = place_files if inside.startswith("models/") and target.is_dir() else link
        place(target, base / inside)


def server_command(
    python: str, host: Path, base: Path, port: int, cpu: bool, arguments: Sequence[str] = ()
) -> list[str]:
    """The command line that starts the ComfyUI in `host` with `base` as its base directory."""
    # By default every server shares one database in the host's folder.
    database = f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}"
    words = [python, str(host / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
    words += ["--base-directory", str(base), "--database-url", database]
    return [*words, *(["--cpu"] if cpu else []), *arguments]


def server_environment(environ: Mapping[str, str], offline: bool) -> dict[str, str]:
    """The environment variables for the server: no foreign import path and, if `offline`, no model hub."""
    foreign = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")
    kept = {name: value for name, value in environ.items() if name not in foreign}
    # With a Windows code page, printing the log to a file can fail.
    extra = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    return {**kept, **extra, **({"HF_HUB_OFFLINE": "1"} if offline else {})}


def encode_upload(name: str, content: bytes) -> tuple[str, bytes]:
    """The form that uploads a file and replaces one of the same name, as (content type, body)."""
    boundary, disposition = uuid.uuid4().hex, "Content-Disposition: form-data; name"
    head = (
        f'--{boundary}\r\n{disposition}="overwrite"\r\n\r\ntrue\r\n'
        f'--{boundary}\r\n{disposition}="image"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", body


class Server:
    """A ComfyUI process with its own base directory, running for the length of a `with` block.

    Args:
        host: the folder with ComfyUI's main.py.
        links: what to put into the base directory, by path, as in {"models/jepa/dinov2": encoder_folder}.
        base: the base directory; None for a temporary one.
        python: the interpreter. cpu: compute on the CPU. arguments: more options for main.py.
        start_seconds: how long the server may take to answer.

    The model hub's client stays off the network.
    """

    def __init__(
        self,
        host: Path,
        links: Mapping[str, Path],
        *,
        base: Path | None = None,
        python: str = sys.executable,
        cpu: bool = True,
        arguments: Sequence[str] = (),
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.host = host
        self.links = dict(links)
        self.python = python
        self.cpu = cpu
        self.arguments = tuple(arguments)
        self.start_seconds = start_seconds
        self._given_base = base
        self._cleanup = contextlib.ExitStack()
        # No proxy, whatever the environment says: the server is on this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Server:
        with contextlib.ExitStack() as stack:
            if self._given_base is None:
                # Windows may keep a file open a moment longer than its process lives.
                temporary = tempfile.TemporaryDirectory(prefix="jepa-comfyui-", ignore_cleanup_errors=True)
                self.base = Path(stack.enter_context(temporary))
            else:
                self.base = self._given_base.absolute()
            prepare_base(self.base, self.links)
            self.port = free_port()
            self._log_path = self.base / "server.log"
            log = stack.enter_context(open(self._log_path, "wb"))
            self.process = subprocess.Popen(
                server_command(self.python, self.host, self.base, self.port, self.cpu, self.arguments),
                cwd=self.host,
                env=server_environment(os.environ, offline=True),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(self._stop)
            self._wait_until_ready()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    @property
    def url(self) -> str:
        """The server's address, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Everything the server has printed so far."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def object_info(self) -> dict[str, Any]:
        """The description of every node, by node id."""
        info: dict[str, Any] = self._json("/object_info")
        return info

    def defaults(self, node: str) -> dict[str, Any]:
        """The defaults of a node's inputs, without those that have none."""
        sections = self._json(f"/object_info/{node}")[node]["input"]
        specs = {**sections.get("required", {}), **sections.get("optional", {})}
        options = {name: spec[1] for name, spec in specs.items() if len(spec) > 1}
        return {name: option["default"] for name, option in options.items() if "default" in option}

    def queue(self, prompt: Mapping[str, Any], extra_data: Mapping[str, Any] | None = None) -> str:
        """Queue a workflow in API format, with what a page would send along; returns its prompt id.

        Raises PromptRefused when any of its outputs is invalid, even if the server runs the others.
        """
        try:
            answer = self._json("/prompt", {"prompt": prompt, "extra_data": extra_data or {}})
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRefused(json.loads(error.read())) from None
        if answer.get("node_errors"):
            raise PromptRefused(answer)
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str, timeout: float) -> dict[str, Any]:
        """Wait up to `timeout` seconds for a prompt to end; returns its history entry.

        Raises ExecutionFailed when a node raised or the run was interrupted, TimeoutError when the time is
        up, ServerError when the server died.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry: dict[str, Any] | None = self._json(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                for event, details in entry["status"]["messages"]:
                    if event in ("execution_error", "execution_interrupted"):
                        raise ExecutionFailed(event, details)
                return entry
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"prompt {prompt_id} did not end within {timeout:g} s; {self._tail()}")

    def get(self, path: str) -> bytes:
        """The server's answer to a GET of `path`, which starts with a slash."""
        return self._request(path)

    def image(self, ref: Mapping[str, str]) -> bytes:
        """The file behind an output such as history["outputs"]["9"]["images"][0]."""
        query = urllib.parse.urlencode({name: ref[name] for name in ("filename", "subfolder", "type")})
        return self.get(f"/view?{query}")

    def upload(self, path: Path) -> str:
        """Put a file into the input folder, replacing one of the same name; returns its name for LoadImage."""
        content_type, body = encode_upload(path.name, path.read_bytes())
        answer = json.loads(self._request("/upload/image", body, content_type))
        return str(answer["name"])

    def interrupt(self) -> None:
        """Ask the server to stop the current prompt."""
        self._request("/interrupt", b"{}", "application/json")

    def forget(self) -> None:
        """Have the server unload its models and drop all cached results."""
        body = json.dumps({"unload_models": True, "free_memory": True})
        self._request("/free", body.encode(), "application/json")

    def _json(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to a GET, or to a POST of `body`."""
        data = None if body is None else json.dumps(body).encode()
        return json.loads(self._request(path, data, "application/json"))

    def _request(self, path: str, body: bytes | None = None, content_type: str = "") -> bytes:
        """The answer to a GET, or to a POST of `body`.

        Raises ServerError when the server does not answer, urllib.error.HTTPError when it answers with an error.
        """
        headers = {"Content-Type": content_type} if body is not None else {}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        try:
            with self._opener.open(request, timeout=60) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            raise ServerError(f"{self.url} does not answer ({error}); {self._tail()}") from error

    def _wait_until_ready(self) -> None:
        """Wait until the server answers. Raises ServerError when it ends or takes too long."""
        deadline = time.monotonic() + self.start_seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(f"ComfyUI ended with exit code {self.process.returncode}; {self._tail()}")
            with contextlib.suppress(ServerError):
                self._json("/system_stats")
                return
            time.sleep(POLL_SECONDS)
        limit = f"{self.start_seconds:g} s"
        raise ServerError(f"ComfyUI did not answer on {self.url} within {limit}; {self._tail()}")

    def _stop(self) -> None:
        """Terminate the process and wait for it to end."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _tail(self) -> str:
        """The end of the log, for an error message."""
        return f"the end of its log:\n{self.log()[-LOG_TAIL:]}"


def has_accelerator(python: str) -> bool:
    """Whether torch under that interpreter sees a GPU."""
    code = "import sys, torch; sys.exit(0 if torch.accelerator.is_available() else 1)"
    return subprocess.run([python, "-c", code]).returncode == 0


def link_argument(word: str) -> tuple[str, Path]:
    """The path and the target of a word INSIDE=TARGET."""
    inside, equals, target = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{word!r} is not of the form INSIDE=TARGET")
    return inside, Path(target)


def main() -> int:
    """Start a server in the foreground; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", type=Path, required=True, help="the folder with ComfyUI's main.py")
    parser.add_argument(
        "--base", type=Path, required=True, help="its base directory, made if missing and kept"
    )
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument(
        "links", nargs="*", type=link_argument, metavar="INSIDE=TARGET", help="to put into the base directory"
    )
    options = parser.parse_args()
    base = options.base.absolute()
    prepare_base(base, dict(options.links))
    cpu = not has_accelerator(sys.executable)
    words = server_command(sys.executable, options.host, base, options.port, cpu)
    environ = server_environment(os.environ, offline=False)
    print(
        f"ComfyUI on http://127.0.0.1:{options.port}, its folders in {base}; stop it with Ctrl-C", flush=True
    )
    if os.name == "posix":
        # No process stays between the server and whoever sends it a signal.
        os.chdir(options.host)
        os.execve(words[0], words, environ)
    return subprocess.run(words, cwd=options.host, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
