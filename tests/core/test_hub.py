"""Downloading from a local server that answers like the Hugging Face hub, and from none."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from filelock import FileLock

from jepa_core import load_encoder
from jepa_core.architectures import architecture_of
from jepa_core.hub import ENCODERS, EncoderDownloadError, EncoderLicenceError, fetch_encoder, fetch_tokenizer
from jepa_core.prompt_fit import load_prompt_fit
from research.costs.guides import published_model
from tests.core.conftest import save_clip

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "dinov2-small"


class Hub(ThreadingHTTPServer):
    """Serves files of one repository at /<repo_id>/resolve/<main or COMMIT>/<file>."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.repo_id = f"facebook/{NAME}"
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.tokens: list[str] = []
        self.break_after: list[int | None] = []  # bytes after which each next GET of the weights is cut off
        self.commit: str | None = COMMIT
        self.ranges = True
        self.lengths = True
        self.status = 200

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, method: str, file: str) -> int:
        return sum(m == method and path.endswith(file) for m, path, _ in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def start(self) -> bytes | None:
        """Send the headers for this path; return the bytes that a GET sends after them."""
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        if "authorization" in self.headers:
            self.server.tokens.append(self.headers["authorization"])
        _, owner, repo, resolve, revision, file = self.path.split("/")
        here = (f"{owner}/{repo}", resolve) == (self.server.repo_id, "resolve")
        found = here and revision in ("main", COMMIT)
        content = self.server.files.get(file) if found and self.server.status == 200 else None
        if content is None:
            self.send_response(404 if self.server.status == 200 else self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        first = 0
        span = self.headers.get("Range")
        if span and self.server.ranges:
            first = int(span.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.commit:
            self.send_header("X-Repo-Commit", self.server.commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if self.command == "GET" or self.server.lengths:
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        return content[first:]

    def do_HEAD(self) -> None:
        self.start()

    def do_GET(self) -> None:
        content = self.start()
        if content is None:
            return
        cut = None
        if self.path.endswith("model.safetensors") and self.server.break_after:
            cut = self.server.break_after.pop(0)
        self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def files(save_model) -> dict[str, bytes]:
    folder = save_model(hidden_size=64)
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    server = Hub(dict(files))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def held(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


COMPLETE = {f"{NAME}/{file}" for file in ("config.json", "model.safetensors", "source.json")} | {
    f".{NAME}.lock"
}


def test_a_first_use_downloads_two_files_and_a_second_none(hub, files, tmp_path):
    folder = tmp_path / "models" / "jepa"
    path = fetch_encoder(NAME, folder, endpoint=hub.endpoint)
    assert path == folder / NAME
    assert held(folder) == COMPLETE
    assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]
    source = json.loads((path / "source.json").read_text())
    assert source == {"repo_id": "facebook/dinov2-small", "commit": COMMIT, "licence": "Apache-2.0"}
    assert load_encoder(path, image_size=28).embed_dim == 64
    assert hub.count("GET", "model.safetensors") == hub.count("GET", "config.json") == 1
    assert {request[1].rsplit("/", 1)[1] for request in hub.requests} == {"config.json", "model.safetensors"}

    seen = len(hub.requests)
    assert fetch_encoder(NAME, folder, endpoint=hub.endpoint) == path
    assert len(hub.requests) == seen


def test_a_fresh_process_asks_the_mirror_of_the_environment_and_fills_no_cache_of_the_hub(hub, tmp_path):
    folder, home = tmp_path / "models" / "jepa", tmp_path / "home"
    home.mkdir()
    script = (
        f"import sys\nfrom jepa_core.hub import fetch_encoder\nprint(fetch_encoder({NAME!r}, sys.argv[1]))"
    )
    places = dict.fromkeys(("HOME", "HF_HOME", "XDG_CACHE_HOME", "USERPROFILE"), str(home))
    environment = os.environ | places | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.endpoint}
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    asked = []
    for _ in range(2):
        command = [sys.executable, "-c", script, str(folder)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == str(folder / NAME)
        asked.append(len(hub.requests))
    assert asked[0] == asked[1] > 0  # the second start asks nobody
    assert held(folder) == COMPLETE
    assert not [
        file for file in held(home) if file.endswith((".safetensors", "config.json")) or "blobs" in file
    ]


def test_a_folder_filled_by_hand_is_complete_without_a_network(files, tmp_path):
    (tmp_path / NAME).mkdir()
    for name, content in files.items():
        (tmp_path / NAME / name).write_bytes(content)
    assert fetch_encoder(NAME, str(tmp_path), endpoint=closed_port()) == tmp_path / NAME


def test_progress_counts_the_bytes_of_both_files(hub, files, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    seen = []
    fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint, on_progress=lambda *pair: seen.append(pair))
    total = sum(map(len, files.values()))
    assert {pair[1] for pair in seen} == {total}
    done = [pair[0] for pair in seen]
    assert done == sorted(done)
    assert done[-1] == total
    assert len(set(done)) > 10
    assert len(files["config.json"]) in done


class Interrupted(Exception):
    pass


def test_progress_may_stop_and_the_next_call_goes_on(hub, files, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)

    def stop(done, total):
        if done > total / 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint, on_progress=stop)
    assert not (tmp_path / NAME).exists()
    fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint)
    assert held(tmp_path) == COMPLETE
    assert hub.count("GET", "config.json") == 1  # had arrived
    assert (tmp_path / NAME / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_a_connection_that_breaks_is_resumed(hub, files, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.break_after = [100_000]
    seen = []
    path = fetch_encoder(
        NAME, tmp_path, endpoint=hub.endpoint, on_progress=lambda *pair: seen.append(pair[0])
    )
    assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]
    spans = [
        span for method, path, span in hub.requests if method == "GET" and path.endswith("model.safetensors")
    ]
    assert spans[0] is None
    assert spans[1] is not None
    assert seen == sorted(seen)
    assert seen[-1] == sum(map(len, files.values()))


def test_a_server_without_ranges_starts_again_and_progress_never_goes_back(hub, files, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.ranges = False
    hub.break_after = [100_000]
    seen = []
    path = fetch_encoder(
        NAME, tmp_path, endpoint=hub.endpoint, on_progress=lambda *pair: seen.append(pair[0])
    )
    assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert hub.count("GET", "model.safetensors") == 2
    assert seen == sorted(seen)
    assert seen[-1] == sum(map(len, files.values()))


def test_progress_without_known_sizes_stays_below_its_total(hub, files, tmp_path):
    hub.lengths = False
    seen = []
    path = fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint, on_progress=lambda *pair: seen.append(pair))
    assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert seen
    assert all(0 <= done <= total and total > 0 for done, total in seen)


def test_a_killed_download_is_not_taken_for_complete_and_leaves_no_waste(hub, files, tmp_path):
    script = (
        "import os, sys, huggingface_hub\n"
        "from jepa_core.hub import fetch_encoder\n"
        "huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 10_000\n"
        "half = lambda done, total: done > total / 2 and os._exit(9)\n"  # as a kill, without any clean-up
        f"fetch_encoder({NAME!r}, sys.argv[1], endpoint=sys.argv[2], on_progress=half)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path), hub.endpoint], env=environment)
        assert done.returncode == 9
        assert not (tmp_path / NAME).exists()
        assert sum(name.endswith(".incomplete") for name in held(tmp_path)) == 1
    path = fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint)
    assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert held(tmp_path) == COMPLETE


@pytest.mark.parametrize("keep", [10, 5_000, -1])
def test_weights_truncated_on_the_server_are_refused_and_not_kept(hub, files, tmp_path, keep):
    hub.files["model.safetensors"] = files["model.safetensors"][:keep]
    with pytest.raises(EncoderDownloadError, match="damaged"):
        fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint)
    assert held(tmp_path) == {f".{NAME}.lock"}
    hub.files = dict(files)
    fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint)
    assert held(tmp_path) == COMPLETE


@pytest.mark.parametrize("config", [b"{", b"{}", b'{"model_type": "clip"}'])
def test_a_config_of_something_else_is_refused(hub, tmp_path, config):
    hub.files["config.json"] = config
    with pytest.raises(EncoderDownloadError, match="damaged"):
        fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint)
    assert not (tmp_path / NAME).exists()


def test_a_damaged_folder_is_replaced(hub, files, tmp_path):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "config.json").write_bytes(files["config.json"])
    (tmp_path / NAME / "model.safetensors").write_bytes(files["model.safetensors"][:-1])
    path = fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint)
    assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_no_credentials_are_sent(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint)
    assert hub.tokens == []


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def check_says_what_to_do(message: str, folder: Path) -> None:
    for words in (
        "config.json",
        "model.safetensors",
        "88 MB",
        "facebook/dinov2-small",
        str(folder / NAME),
    ):
        assert words in message


def test_an_unreachable_hub_fails_fast_and_says_what_to_do(tmp_path):
    start = time.monotonic()
    with pytest.raises(EncoderDownloadError) as caught:
        fetch_encoder(NAME, tmp_path, endpoint=closed_port())
    assert time.monotonic() - start < 10
    assert isinstance(caught.value, OSError)
    check_says_what_to_do(str(caught.value), tmp_path)
    assert "ConnectError" in str(caught.value)
    assert not (tmp_path / NAME).exists()


def test_a_hub_that_never_answers_counts_as_unreachable(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_core.hub._TIMEOUT_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(EncoderDownloadError, match="Timeout"):
            fetch_encoder(NAME, tmp_path, endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 10


def test_offline_mode_asks_nobody(hub, tmp_path):
    script = (
        "import sys, time\n"
        "from jepa_core.hub import EncoderDownloadError, fetch_encoder\n"
        "start = time.monotonic()\n"
        "try:\n"
        f"    fetch_encoder({NAME!r}, sys.argv[1], endpoint=sys.argv[2])\n"
        "except EncoderDownloadError as error:\n"
        "    assert time.monotonic() - start < 10\n"
        "    print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), hub.endpoint],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    check_says_what_to_do(done.stdout, tmp_path)
    assert "Offline" in done.stdout
    assert hub.requests == []


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_a_hub_that_refuses_is_reported_at_once(hub, tmp_path, status):
    hub.status = status
    start = time.monotonic()
    with pytest.raises(EncoderDownloadError) as caught:
        fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint)
    assert time.monotonic() - start < 10
    check_says_what_to_do(str(caught.value), tmp_path)
    assert str(status) in str(caught.value)


def test_a_server_that_is_no_hub_is_refused(hub, tmp_path):
    hub.commit = None  # such as the sign-in page of a hotel's network
    with pytest.raises(EncoderDownloadError) as caught:
        fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint)
    check_says_what_to_do(str(caught.value), tmp_path)
    assert not (tmp_path / NAME).exists()


def test_a_second_process_does_not_wait_forever(hub, tmp_path):
    start = time.monotonic()
    with FileLock(tmp_path / f".{NAME}.lock"), pytest.raises(EncoderDownloadError, match="another process"):
        fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint)
    assert time.monotonic() - start < 10
    assert hub.requests == []


def test_what_another_process_finished_meanwhile_is_taken(hub, files, tmp_path):
    lock = FileLock(tmp_path / f".{NAME}.lock", thread_local=False)
    lock.acquire()

    def finish():
        time.sleep(0.3)
        (tmp_path / NAME).mkdir()
        for name, content in files.items():
            (tmp_path / NAME / name).write_bytes(content)
        lock.release()

    other = threading.Thread(target=finish)
    other.start()
    assert fetch_encoder(NAME, tmp_path, endpoint=hub.endpoint) == tmp_path / NAME
    other.join()
    assert hub.requests == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../dinov2-small", "dinov2-small/..", "/etc", "facebook/dinov2-small", "DINOV2-SMALL"],
)
def test_only_names_of_the_table_are_taken(hub, tmp_path, name):
    with pytest.raises(ValueError, match="dinov2-with-registers-small"):
        fetch_encoder(name, tmp_path, endpoint=hub.endpoint)
    assert hub.requests == []
    assert held(tmp_path) == set()


@pytest.mark.parametrize("name", ENCODERS)
def test_the_table_counts_the_weights_of_its_architectures(name):
    source = ENCODERS[name]
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in published_model(name).parameters())
    assert source.parameters == weights
    assert source.megabytes == round(weights * 4 / 1e6)
    assert source.repo_id.endswith(f"/{name}")
    assert architecture_of(source.model_type) is not None
    assert source.commercial == ("NC" not in source.licence)


@pytest.mark.parametrize("name", [name for name, source in ENCODERS.items() if not source.commercial])
def test_weights_for_non_commercial_use_are_fetched_with_consent_alone(hub, tmp_path, name):
    with pytest.raises(EncoderLicenceError, match=r"CC-BY-NC-4\.0: not for commercial use.*non_commercial"):
        fetch_encoder(name, tmp_path, endpoint=hub.endpoint)
    assert hub.requests == []
    assert held(tmp_path) == set()
    with pytest.raises(EncoderDownloadError, match=re.escape(ENCODERS[name].repo_id)):
        # asked for now, and this hub does not have it
        fetch_encoder(name, tmp_path, endpoint=hub.endpoint, non_commercial=True)
    assert hub.requests


@pytest.mark.parametrize("name", [name for name, source in ENCODERS.items() if source.gated])
def test_a_gated_repository_is_not_asked(hub, tmp_path, name):
    with pytest.raises(
        EncoderDownloadError, match=r"agree to the DINOv3 License there first.*model\.safetensors"
    ):
        fetch_encoder(name, tmp_path, endpoint=hub.endpoint)
    assert hub.requests == []


def test_a_float32_checkpoint_is_as_large_as_its_weights(files):
    content = files["model.safetensors"]
    weights = sum(tensor.numel() for tensor in safetensors.torch.load(content).values())
    assert 0 < len(content) - 4 * weights < 10_000  # the header


# --- the tokenizer of a CLIP ----------------------------------------------------------------------------------------

CLIP = "CLIP-ViT-B-32-laion2B-s34B-b79K"
WEIGHTS, TOKENIZER = ("config.json", "model.safetensors"), ("merges.txt", "vocab.json")


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory) -> dict[str, bytes]:
    folder = save_clip(tmp_path_factory.mktemp("clip"))
    return {name: (folder / name).read_bytes() for name in (*WEIGHTS, *TOKENIZER)}


@pytest.fixture
def clip_hub(hub, clip_files) -> Hub:
    hub.repo_id = ENCODERS[CLIP].repo_id
    hub.files = dict(clip_files)
    return hub


def put(folder: Path, files: dict[str, bytes], *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(files[name])


def test_a_tokenizer_is_fetched_once_beside_weights_that_are_already_there(clip_hub, tmp_path):
    path = fetch_encoder(CLIP, tmp_path, endpoint=clip_hub.endpoint)
    before = held(tmp_path)
    assert {request[1].rsplit("/", 1)[1] for request in clip_hub.requests} == set(WEIGHTS)
    fetch_tokenizer(CLIP, tmp_path, endpoint=clip_hub.endpoint)
    assert held(tmp_path) - before == {f"{CLIP}/{name}" for name in (*TOKENIZER, "tokenizer_source.json")}
    for name in ("source.json", "tokenizer_source.json"):
        source = json.loads((path / name).read_text())
        assert source == {"repo_id": f"laion/{CLIP}", "commit": COMMIT, "licence": "MIT"}
    assert [clip_hub.count("GET", name) for name in (*WEIGHTS, *TOKENIZER)] == [1, 1, 1, 1]
    assert load_prompt_fit(path).fit(torch.rand(1, 9, 9, 3), "a cat").isfinite()

    seen = len(clip_hub.requests)
    fetch_tokenizer(CLIP, tmp_path, endpoint=clip_hub.endpoint)
    assert fetch_encoder(CLIP, tmp_path, endpoint=clip_hub.endpoint) == path
    assert len(clip_hub.requests) == seen


def test_a_tokenizer_put_in_place_by_hand_needs_no_network(clip_files, tmp_path):
    put(tmp_path / CLIP, clip_files, *TOKENIZER)
    fetch_tokenizer(CLIP, tmp_path, endpoint=closed_port())


def test_half_a_tokenizer_is_completed_and_a_damaged_one_replaced(clip_hub, clip_files, tmp_path):
    put(tmp_path / CLIP, clip_files, "vocab.json")
    fetch_tokenizer(CLIP, tmp_path, endpoint=clip_hub.endpoint)
    (tmp_path / CLIP / "vocab.json").write_bytes(clip_files["vocab.json"][:1000])
    fetch_tokenizer(CLIP, tmp_path, endpoint=clip_hub.endpoint)
    assert {name: (tmp_path / CLIP / name).read_bytes() for name in TOKENIZER} == {
        name: clip_files[name] for name in TOKENIZER
    }


def test_a_damaged_tokenizer_on_the_server_is_refused_and_the_weights_stay(clip_hub, clip_files, tmp_path):
    put(tmp_path / CLIP, clip_files, *WEIGHTS)
    clip_hub.files["merges.txt"] = b"#version: 0.2\nnot three tokens\n"
    with pytest.raises(EncoderDownloadError, match=r"damaged.*Put merges\.txt and vocab\.json \(2 MB\)"):
        fetch_tokenizer(CLIP, tmp_path, endpoint=clip_hub.endpoint)
    assert held(tmp_path) == {f"{CLIP}/{name}" for name in WEIGHTS} | {f".{CLIP}.lock"}


@pytest.mark.parametrize("status", [0, 404])
def test_a_tokenizer_that_cannot_be_fetched_is_named(clip_hub, tmp_path, status):
    clip_hub.status = status
    endpoint = clip_hub.endpoint if status else closed_port()
    with pytest.raises(EncoderDownloadError) as caught:
        fetch_tokenizer(CLIP, tmp_path, endpoint=endpoint)
    for words in (*TOKENIZER, f"laion/{CLIP}", str(tmp_path / CLIP)):
        assert words in str(caught.value)
