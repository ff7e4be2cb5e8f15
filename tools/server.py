"""A real ComfyUI server with its own base directory, for tests, the demo and for trying by hand.

    with Server(host, {"custom_nodes/jepa-guidance": repo, "models/jepa/dinov2": encoder}) as server:
        prompt_id = server.queue(workflow_in_api_format)
        history = server.wait(prompt_id, timeout=60)

Run as a script it starts one in the foreground:

    python tools/server.py --host COMFYUI --base FOLDER --port 8188 custom_nodes/jepa-guidance=REPO ...

Standard library only. The server listens on 127.0.0.1 alone.
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
# Not part of a pack when it has to be copied rather than linked.
NOT_COPIED = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".work")


class ServerError(RuntimeError):
    """The server did not start, or it is gone."""


class PromptRefused(ServerError):
    """The server refused a prompt; `answer` is its JSON, with "error" and "node_errors"."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer, indent=1))
        self.answer = answer


class ExecutionFailed(RuntimeError):
    """A node raised, or the run was interrupted.

    `event` is "execution_error" or "execution_interrupted"; `node_id` and `node_type` say where; `message` is
    the exception's text ("" for an interrupt); `details` is everything the server reported.
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
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def link(target: Path, place: Path) -> None:
    """Make `place` lead to the file or folder `target`: a symlink, else a junction or hard link, else a copy.

    A link that stands at `place` already is replaced; anything else there raises FileExistsError.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    elif place.exists() and place.samefile(target):
        return
    elif os.name == "nt" and place.is_dir():
        # Removes a junction, and fails on a folder that holds something.
        with contextlib.suppress(OSError):
            place.rmdir()
    try:
        place.symlink_to(target.absolute(), target_is_directory=target.is_dir())
    except FileExistsError:
        raise
    except OSError:
        # Windows makes symlinks for administrators and developer mode only.
        if not target.is_dir():
            link_or_copy_file(target, place)
        elif not make_junction(target, place):
            shutil.copytree(target, place, ignore=NOT_COPIED)


def place_files(target: Path, place: Path) -> None:
    """Put the files of the folder `target` into a folder `place`, as hard links or copies.

    For model folders: the pack loads no weights through a symlink that leads out of them.
    """
    if place.is_symlink():
        place.unlink()
    place.mkdir(parents=True, exist_ok=True)
    for file in target.iterdir():
        (place / file.name).unlink(missing_ok=True)
        link_or_copy_file(file, place / file.name)


def link_or_copy_file(target: Path, place: Path) -> None:
    """Make `place` a hard link to the file `target`, or a copy when they lie on different disks."""
    try:
        os.link(target, place)
    except OSError:
        shutil.copyfile(target, place)


def make_junction(target: Path, place: Path) -> bool:
    """Make a Windows directory junction; False where that cannot be done."""
    if os.name != "nt":
        return False
    words = ["cmd", "/c", "mklink", "/J", str(place), str(target.absolute())]
    return subprocess.run(words, capture_output=True).returncode == 0


def prepare_base(base: Path, links: Mapping[str, Path]) -> None:
    """Make a base directory for the server; `links` maps a path below it to what stands there."""
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
    words = [python, str(host / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
    # The database would otherwise lie in the host's folder, shared by every server.
    words += [
        "--base-directory",
        str(base),
        "--database-url",
        f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}",
    ]
    return [*words, *(["--cpu"] if cpu else []), *arguments]


def server_environment(environ: Mapping[str, str], offline: bool) -> dict[str, str]:
    """The environment variables for the server: no foreign import path and, if `offline`, no model hub."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")
    }
    # Without UTF-8 a Windows console's code page cannot print the server's log into a file.
    extra = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    return {**kept, **extra, **({"HF_HUB_OFFLINE": "1"} if offline else {})}


def encode_upload(fields: Mapping[str, str], name: str, content: bytes) -> tuple[str, bytes]:
    """A multipart form with text fields and one file in field "image", as (content type, body)."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
    parts += [
        head.encode(),
        b"Content-Type: application/octet-stream\r\n\r\n",
        content,
        f"\r\n--{boundary}--\r\n".encode(),
    ]
    return f"multipart/form-data; boundary={boundary}", b"".join(parts)


class Server:
    """A ComfyUI process with its own base directory, started by `with` and stopped at its end.

    host: the folder with ComfyUI's main.py. links: what to put into the base directory, as path below it ->
    file or folder, for instance {"models/jepa/dinov2": encoder}. base: the base directory; without one a
    temporary folder is used and removed at the end. python: the interpreter. cpu: compute on the CPU.
    offline: keep the model hub's client off the network. port: 0 takes a free one. arguments: more options
    for main.py.
    """

    def __init__(
        self,
        host: Path,
        links: Mapping[str, Path],
        *,
        base: Path | None = None,
        python: str = sys.executable,
        cpu: bool = True,
        offline: bool = True,
        port: int = 0,
        arguments: Sequence[str] = (),
    ) -> None:
        self.host = host
        self.links = dict(links)
        self.python = python
        self.cpu = cpu
        self.offline = offline
        self.port = port
        self.arguments = tuple(arguments)
        self._given_base = base
        self._cleanup = contextlib.ExitStack()
        # A proxy named in the environment must not come between us and our own machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Server:
        with contextlib.ExitStack() as stack:
            if self._given_base is None:
                # Windows may hold a file a moment longer than the process that had it open.
                temporary = tempfile.TemporaryDirectory(prefix="jepa-comfyui-", ignore_cleanup_errors=True)
                self.base = Path(stack.enter_context(temporary))
            else:
                self.base = self._given_base.absolute()
            prepare_base(self.base, self.links)
            self.port = self.port or free_port()
            self._log_path = self.base / "server.log"
            log = stack.enter_context(open(self._log_path, "wb"))
            self.process = subprocess.Popen(
                server_command(self.python, self.host, self.base, self.port, self.cpu, self.arguments),
                cwd=self.host,
                env=server_environment(os.environ, self.offline),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(self._stop)
            self._wait_until_ready(START_SECONDS)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    @property
    def url(self) -> str:
        """The server's address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Everything the server has printed so far."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def object_info(self) -> dict[str, Any]:
        """The description of every node, by node id."""
        info: dict[str, Any] = self._json("/object_info")
        return info

    def queue(self, prompt: Mapping[str, Any], extra_data: Mapping[str, Any] | None = None) -> str:
        """Queue a workflow in API format, with what a page sends along; returns its prompt id.

        Raises PromptRefused when the server finds fault with any of its outputs (it may run the others).
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

        Raises ExecutionFailed when a node raised or the run was interrupted, TimeoutError when it takes
        longer, ServerError when the server died.
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
        """The server's answer to a GET of `path`, which begins with a slash."""
        return self._request(path)

    def image(self, ref: Mapping[str, str]) -> bytes:
        """The file that an output refers to, for instance history["outputs"]["9"]["images"][0]."""
        query = urllib.parse.urlencode({name: ref[name] for name in ("filename", "subfolder", "type")})
        return self.get(f"/view?{query}")

    def upload(self, path: Path) -> str:
        """Put a file into the input folder, replacing one of that name; returns its name for LoadImage."""
        content_type, body = encode_upload({"overwrite": "true"}, path.name, path.read_bytes())
        answer = json.loads(self._request("/upload/image", body, content_type))
        return str(answer["name"])

    def interrupt(self) -> None:
        """Ask the server to stop what it runs now."""
        self._request("/interrupt", b"{}", "application/json")

    def forget(self) -> None:
        """Have the server drop its models and all results that it keeps from earlier runs."""
        self._request(
            "/free", json.dumps({"unload_models": True, "free_memory": True}).encode(), "application/json"
        )

    def _json(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to a GET, or to a POST of `body`."""
        data = None if body is None else json.dumps(body).encode()
        return json.loads(self._request(path, data, "application/json"))

    def _request(self, path: str, body: bytes | None = None, content_type: str = "") -> bytes:
        """The answer to a GET, or to a POST of `body`.

        Raises ServerError when the server is gone and urllib.error.HTTPError when it answers with an error.
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

    def _wait_until_ready(self, timeout: float) -> None:
        """Wait until the server answers. Raises ServerError when it ends or `timeout` seconds pass."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(f"ComfyUI ended with exit code {self.process.returncode}; {self._tail()}")
            with contextlib.suppress(ServerError):
                self._json("/system_stats")
                return
            time.sleep(POLL_SECONDS)
        raise ServerError(f"ComfyUI did not answer on {self.url} within {timeout:g} s; {self._tail()}")

    def _stop(self) -> None:
        """End the process that this object started, and wait until it is gone."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _tail(self) -> str:
        """The end of the log, introduced, for an error message."""
        return f"the end of its log:\n{self.log()[-LOG_TAIL:]}"


def has_accelerator(python: str) -> bool:
    """Whether torch under that interpreter sees a GPU."""
    code = "import sys, torch; sys.exit(0 if torch.accelerator.is_available() else 1)"
    return subprocess.run([python, "-c", code]).returncode == 0


def parse_links(words: Sequence[str]) -> dict[str, Path]:
    """The links that "inside=target" words name. Raises ValueError for a word without "="."""
    pairs = [word.partition("=") for word in words]
    for word, (_, equals, _) in zip(words, pairs, strict=True):
        if not equals:
            raise ValueError(f"{word!r} is not of the form inside=target")
    return {inside: Path(target) for inside, _, target in pairs}


def main() -> int:
    """Start a server in the foreground; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", type=Path, required=True, help="the folder with ComfyUI's main.py")
    parser.add_argument(
        "--base", type=Path, required=True, help="its base directory, made if missing and kept"
    )
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument(
        "links", nargs="*", metavar="INSIDE=TARGET", help="what to link into the base directory"
    )
    options = parser.parse_args()
    base = options.base.absolute()
    prepare_base(base, parse_links(options.links))
    cpu = not has_accelerator(sys.executable)
    words = server_command(sys.executable, options.host, base, options.port, cpu)
    environ = server_environment(os.environ, offline=False)
    print(
        f"ComfyUI on http://127.0.0.1:{options.port}, its folders in {base}; end it with Ctrl-C", flush=True
    )
    if os.name == "posix":
        # Becoming the server leaves no process between it and whoever sends it a signal.
        os.chdir(options.host)
        os.execve(words[0], words, environ)
    return subprocess.run(words, cwd=options.host, env=environ).returncode


if __name__ == "__main__":
    sys.exit(main())
