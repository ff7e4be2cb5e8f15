"""The checks for a machine with CUDA: all of them on a processor, and how they handle failures."""

from __future__ import annotations

import json
import os
import platform
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.conftest import HOST, ROOT
from tools.gpu import bundle as gpu_bundle
from tools.gpu import run as gpu
from tools.gpu import stages as gpu_stages
from tools.gpu.plan import FULL, TINY
from tools.gpu.rows import NOT_ON_A_PROCESSOR, Row, TimeUp, facts_of, log_facts, run_stages, table
from tools.gpu.session import Session
from tools.server import ExecutionFailed, ServerError

# The number of rows of each stage, all of which succeed on a processor.
ROWS = {
    "environment": 13,
    "presets": 36,
    "precisions": 16,
    "companions": 12,
    "gradients": 13,
    "memory": 8,
    "bits": 80,
    "cancel": 4,
    "torch.compile": 2,
}


@pytest.mark.long
def test_every_stage_runs_on_a_processor(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = [sys.executable, "-P", str(ROOT / "tools" / "gpu" / "run.py"), "--dry-run", "--minutes", "13"]
    path = os.pathsep.join((str(HOST), str(ROOT)))
    done = subprocess.run([*words, "--out", str(out)], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0
    record = json.loads(out.read_text())
    assert set(record) == {"command", "machine", "finished", "seconds", "stages"}
    assert record["command"] == "python dev.py gpu --dry-run --minutes 13"
    assert record["finished"]
    assert record["machine"]["device"] == "cpu"
    assert {"torch", "host", "comfy-aimdo", "system"} <= set(record["machine"])
    failed = [row for stage in record["stages"] for row in stage["rows"] if not row["ok"]]
    assert not failed, json.dumps(failed, indent=1)
    assert {stage["name"]: len(stage["rows"]) for stage in record["stages"]} == ROWS
    assert all(stage["ok"] and stage["seconds"] > 0 for stage in record["stages"])
    rows = {row["name"]: row for stage in record["stages"] for row in stage["rows"]}
    check_rows(rows)


def check_rows(rows: dict[str, Row]) -> None:
    """Check the contents of a dry run's rows, given by name."""
    assert rows["SDXL, loaded"]["network"] == "SDXL"
    assert rows["SD1.5, loaded"]["network"] == "BaseModel"
    assert rows["SDXL, loaded"][NOT_ON_A_PROCESSOR] == "dynamic VRAM"
    for setting, way in {
        "defaults": "through denoiser",
        "faithful": "cold",
        "subtle": "decoder at encoder resolution",
        "fast": "no taesdxl_decoder.safetensors",
        "denoiser constant": "denoiser constant",
    }.items():
        first, again, after = (
            rows[f"SDXL, {setting}, {when}"] for when in ("first", "again", "after unloading")
        )
        assert way in first["trace"]
        assert first["sha256"] == after["sha256"] != again["sha256"]
        assert (again["networks_built"], after["networks_built"]) == (0, 1)
    # another LoRA strength patches the same network
    assert rows["LoRA at 0.8, defaults"]["networks_built"] == 0
    assert rows["LoRA at 0.8, defaults"]["sha256"] != rows["LoRA at 0.5, defaults"]["sha256"]
    assert rows["ControlNet, defaults, first"]["sha256"] != rows["SD1.5, defaults, first"]["sha256"]
    assert rows["SDXL, defaults, gradients"]["cosines"] == [1.0]
    assert rows["ballast, 8 GiB left"][NOT_ON_A_PROCESSOR] == "ballast"
    assert rows["SDXL, 8 GiB left"]["notices"] == 0
    assert rows["SDXL, defaults five times"]["largest_change_by_guidance"] > 0
    assert rows["SDXL, defaults, cancelled"]["seconds_until_idle"] < 30


# --- what goes wrong ------------------------------------------------------------------------------------------------


def session_with(tmp_path: Path, seconds: float = 60.0) -> Session:
    """A session that never starts a real server."""
    return Session(TINY, tmp_path, sys.executable, tmp_path, [], time.monotonic() + seconds)


def empty_record() -> Row:
    return {"finished": False, "seconds": 0.0, "stages": []}


def test_a_stage_that_fails_keeps_its_rows_and_the_next_one_runs(tmp_path: Path) -> None:
    def broken(session: Session) -> Iterator[Row]:
        yield {"name": "good", "ok": True}
        raise ServerError("the server is gone\nits log")

    def fine(session: Session) -> Iterator[Row]:
        yield {"name": "bad", "ok": False, "error": "no gradient\nmore"}

    record, written = empty_record(), []
    run_stages(
        {"one": broken, "two": fine},
        session_with(tmp_path),
        record,
        lambda record: written.append(json.dumps(record)),
    )
    one, two = record["stages"]
    assert [row["name"] for row in one["rows"]] == ["good"]
    assert not one["ok"]
    assert one["error"].startswith("ServerError: the server is gone")
    assert "in broken" in one["traceback"]
    assert not two["ok"]
    assert record["finished"]
    # the file is complete after every row
    assert json.loads(written[0])["stages"][0]["rows"] == [{"name": "good", "ok": True}]
    shown = table(record)
    assert "the server is gone" in shown
    assert "bad: no gradient" in shown


def test_when_the_time_is_up_what_is_there_stays(tmp_path: Path) -> None:
    def first(session: Session) -> Iterator[Row]:
        yield {"name": "done", "ok": True}

    def second(session: Session) -> Iterator[Row]:
        session.deadline = time.monotonic()
        yield {"name": "half", "ok": True}
        yield session.run("late", {})

    record = empty_record()
    run_stages({"1": first, "2": second, "3": first}, session_with(tmp_path), record, lambda record: None)
    assert [stage["name"] for stage in record["stages"]] == ["1", "2"]
    assert record["stages"][0]["ok"]
    assert record["stages"][1]["error"] == "the time was up"
    assert [row["name"] for row in record["stages"][1]["rows"]] == ["half"]
    assert not record["finished"]
    assert "not finished" in table(record)


class FakeServer:
    """A server whose prompts end with `ending`."""

    def __init__(self, ending: Any) -> None:
        self.ending = ending
        self.process = SimpleNamespace(pid=-1, poll=lambda: None)
        self.interrupted = self.stopped = False
        self.busy = True

    def log(self) -> str:
        return "before\n" if self.ending is None else "before\n[WARNING] it is so\nOut of Memory\n"

    def queue(self, prompt: Any) -> str:
        return "id"

    def wait(self, prompt_id: str, timeout: float) -> Any:
        if isinstance(self.ending, BaseException):
            raise self.ending
        return self.ending

    def get(self, path: str) -> bytes:
        running = [1] if self.busy else []
        return json.dumps({"queue_running": running, "queue_pending": []}).encode()

    def interrupt(self) -> None:
        self.interrupted = True

    def __exit__(self, *_: object) -> None:
        self.stopped = True


def run_on(session: Session, server: FakeServer) -> Row:
    session._default = server  # type: ignore[assignment]
    return session.run("row", {"sample": {"class_type": "x", "inputs": {"strength": 0.5}}})


def test_a_prompt_that_raises_says_where_and_leaves_the_server_alone(tmp_path: Path) -> None:
    details = {"node_type": "Sampler", "exception_message": "no grad", "traceback": ["a", "b"]}
    server = FakeServer(ExecutionFailed("execution_error", details))
    row = run_on(session_with(tmp_path), server)
    assert not row["ok"]
    assert row["error"] == "execution_error in Sampler: no grad"
    assert "log" in row
    assert not server.stopped


@pytest.mark.parametrize("busy", [True, False])
def test_a_prompt_that_hangs_is_interrupted_and_then_its_server_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    monkeypatch.setattr("tools.gpu.session.IDLE_SECONDS", 0.1)
    server, session = FakeServer(TimeoutError()), session_with(tmp_path)
    server.busy = busy
    row = run_on(session, server)
    assert "not done after" in row["error"]
    assert server.interrupted
    assert server.stopped == busy
    assert (session._default is None) == busy


def test_a_stage_whose_prompts_hang_gives_way_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.gpu.session.IDLE_SECONDS", 0.1)

    def hanging(session: Session) -> Iterator[Row]:
        while True:
            yield run_on(session, FakeServer(TimeoutError()))

    record = empty_record()
    run_stages({"1": hanging, "2": hanging}, session_with(tmp_path), record, lambda record: None)
    assert [len(stage["rows"]) for stage in record["stages"]] == [2, 2]
    assert all("2 prompts" in stage["error"] for stage in record["stages"])
    assert record["finished"]


def test_a_server_that_dies_is_replaced(tmp_path: Path) -> None:
    server, session = FakeServer(ServerError("does not answer")), session_with(tmp_path)
    assert run_on(session, server)["error"].startswith("ServerError")
    assert server.stopped
    assert session._default is None


def test_no_prompt_is_started_when_no_time_is_left(tmp_path: Path) -> None:
    with pytest.raises(TimeUp):
        run_on(session_with(tmp_path, seconds=0.5), FakeServer(None))


def history(steps: list[bool], finite: bool = True) -> Row:
    trace = {"message": "two lines", "steps": [{"guided": guided} for guided in steps]}
    facts = {"facts": [json.dumps({"finite": finite, "peak_GiB": 1.5})]}
    return {"outputs": {"sample": {"jepa_trace": [trace]}, "result": facts}}


def test_a_row_says_what_guidance_did_and_whether_numbers_are_finite() -> None:
    prompt = {"sample": {"class_type": "x", "inputs": {"strength": 0.5}}}
    assert facts_of(history([False, True]), prompt) == {
        "trace": "two lines",
        "guided_steps": 1,
        "finite": True,
        "peak_GiB": 1.5,
    }
    assert facts_of(history([True], finite=False), prompt)["error"] == "the latent is not finite"
    assert facts_of(history([False]), prompt)["error"] == "no step was guided"
    prompt["sample"]["inputs"]["strength"] = 0
    assert "error" not in facts_of(history([]), prompt)


def test_the_log_is_counted() -> None:
    log = (
        "model weight dtype torch.float16\n[INFO] x\n[WARNING] out of memory: y\n[WARNING] out of memory: y\n"
    )
    found = log_facts(log)
    assert found == {
        "networks_built": 1,
        "out_of_memory": 2,
        "warnings": ["[WARNING] out of memory: y"],
    }


# --- comparisons ----------------------------------------------------------------------------------------------------


def save_calls(file: Path, shift: np.ndarray) -> Path:
    """GPUWatch's record of a step without guidance and of one that asks again at the shifted latent."""
    latents = [np.zeros_like(shift), np.ones_like(shift), np.ones_like(shift), np.ones_like(shift) + shift]
    np.savez(file, times=[3.0, 2.0, 2.0, 2.0], latents=np.stack(latents))
    return file


def test_gradients_are_compared_by_the_shifts_of_guided_steps(tmp_path: Path) -> None:
    shift = np.random.default_rng(0).normal(size=(4, 8, 8))
    one = save_calls(tmp_path / "one.npz", shift)
    (found,) = gpu_stages.shifts(one)
    assert np.allclose(found, shift)
    assert gpu_stages.compared(one, save_calls(tmp_path / "same.npz", 3 * shift)) == {
        "ok": True,
        "cosines": [1.0],
    }
    other = gpu_stages.compared(one, save_calls(tmp_path / "other.npz", shift[::-1]))
    assert not other["ok"]
    assert "cosines" in other["error"]
    assert "nothing to compare" in gpu_stages.compared(one, tmp_path / "none.npz")["error"]
    nothing = save_calls(tmp_path / "nothing.npz", 0 * shift)
    assert not gpu_stages.compared(nothing, nothing)["ok"]


def test_other_bits_fail_a_row() -> None:
    stock = {"name": "stock", "ok": True, "sha256": "1"}
    assert gpu_stages.same_bits(stock, {"name": "x", "ok": True, "sha256": "1"})["ok"]
    row = gpu_stages.same_bits(stock, {"name": "x", "ok": True, "sha256": "2"})
    assert (row["ok"], row["error"]) == (False, "other bits than stock")


@pytest.mark.parametrize(("on", "wanted"), [(True, True), (True, False), (False, True)])
def test_dynamic_vram_has_to_be_as_it_is_wanted(tmp_path: Path, on: bool, wanted: bool) -> None:
    session = session_with(tmp_path)
    session.plan = FULL
    patcher = "ModelPatcherDynamic" if on else "ModelPatcher"
    row = {"ok": True, "aimdo_enabled": on, "core_patcher_is_dynamic": on}
    row |= {"model_patcher": patcher, "vae_patcher": patcher}
    found = gpu_stages.is_dynamic(session, row, wanted)
    assert found["ok"] == (on == wanted)
    assert ("error" in found) == (on != wanted)


# --- the bundle -----------------------------------------------------------------------------------------------------


def image(kind: int, capability: int, code: bytes) -> bytes:
    """An image of CUDA code with a header of 64 bytes."""
    head = struct.pack("<HHIQ", kind, 0x101, 64, len(code)).ljust(28, b"\1") + struct.pack("<I", capability)
    return head.ljust(64, b"\2") + code


def container(*images: bytes) -> bytes:
    content = b"".join(images)
    return gpu_bundle.FATBIN + struct.pack("<HHQ", 1, 16, len(content)) + content


def test_kernels_for_other_cards_are_blanked_and_nothing_moves() -> None:
    old, own, text = image(2, 75, b"old!" * 8), image(2, 90, b"own!" * 8), image(1, 90, b"ptx!" * 8)
    library = b"ELF" + container(old, own) + b"between" + container(text) + b"end"
    blank = gpu_bundle.blank_kernels(library, 90)
    assert len(blank) == len(library)
    assert b"own!" * 8 in blank
    assert blank == library.replace(b"old!", bytes(4)).replace(b"ptx!", bytes(4))
    with pytest.raises(gpu_bundle.BundleError, match="120"):
        gpu_bundle.blank_kernels(library, 120)


def test_every_package_of_the_bundle_has_a_pinned_version() -> None:
    versions = gpu_bundle.versions(HOST)
    assert set(versions) == set(gpu_bundle.PACKAGES)
    assert all(version[0].isdigit() for version in versions.values())
    words = gpu_bundle.wheel_arguments("comfy-aimdo", versions["comfy-aimdo"], Path("x"))
    assert words[-1] == f"comfy-aimdo=={versions['comfy-aimdo']}"
    assert "manylinux2014_x86_64" in words


def test_a_bundle_that_is_too_large_says_so() -> None:
    gpu_bundle.check_size(20 << 20, 44 << 20)
    with pytest.raises(gpu_bundle.BundleError, match=r"20\.0 MiB and the repository's files 45\.0"):
        gpu_bundle.check_size(20 << 20, 45 << 20)


def test_a_folder_with_something_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(gpu_bundle.BundleError, match="not empty"):
        gpu_bundle.prepare(tmp_path, tmp_path, HOST)
    assert (tmp_path / "precious").exists()


def test_a_bundle_is_for_one_python_and_looked_at_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, work = tmp_path / "bundle", tmp_path / "work"
    bundle.mkdir()
    with pytest.raises(gpu_bundle.BundleError, match="no complete bundle"):
        gpu_bundle.unpack(bundle, work)
    (bundle / "one.whl").write_bytes(b"content")
    manifest = {"python": "3.12", "sha256": {"one.whl": "another"}}
    (bundle / gpu_bundle.MANIFEST).write_text(json.dumps(manifest))
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "99", "0"))
    with pytest.raises(gpu_bundle.BundleError, match=r"3\.12.*3\.99"):
        gpu_bundle.unpack(bundle, work)
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "12", "1"))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(gpu_bundle.BundleError, match=r"one\.whl is missing or damaged"):
        gpu_bundle.unpack(bundle, work)


@pytest.mark.skipif(os.name != "posix", reason="the bundle is for Linux")
@pytest.mark.parametrize("code", [0, 1])
def test_kernels_that_do_not_run_here_are_left_out(tmp_path: Path, code: int) -> None:
    kernels = tmp_path / gpu_bundle.KITCHEN_KERNELS
    kernels.parent.mkdir(parents=True)
    kernels.touch()
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho 'no kernel image' >&2\nexit {code}\n")
    python.chmod(0o755)
    row = gpu_bundle.check_kernels(gpu_bundle.Unpacked(tmp_path, tmp_path, str(python)))
    assert row["ok"] == kernels.exists() == (code == 0)
    assert ("no kernel image" in str(row.get("error"))) == (code != 0)


@pytest.mark.skipif(os.name != "posix", reason="the bundle is for Linux")
def test_the_bundle_comes_first_on_the_import_path(tmp_path: Path) -> None:
    python = gpu_bundle.interpreter(tmp_path / "python", tmp_path / "my site")
    code = "import sys; print(sys.path[0], sys.path[1], sep='\\n')"
    environ = {**os.environ, "PYTHONPATH": "/other"}
    shown = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, env=environ).stdout
    assert shown.splitlines() == [str(tmp_path / "my site"), "/other"]


def test_the_stand_in_gives_the_host_the_names_that_it_imports(tmp_path: Path) -> None:
    (tmp_path / "av").mkdir()
    (tmp_path / "av" / "__init__.py").write_text(gpu_bundle.STAND_IN)
    code = (
        "import av; from av.container import InputContainer; from av.subtitles.stream import SubtitleStream; "
        "from av.video.reformatter import ColorRange; print(av.__file__, issubclass(av.AudioStream, object))"
    )
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.stdout.split() == [str(tmp_path / "av" / "__init__.py"), "True"], done.stderr


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--prepare", "x", "--dry-run"]])
def test_one_of_the_ways_has_to_be_named(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.parse(words)


def test_a_machine_without_a_card_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "has_cuda", lambda: False)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert gpu.main(["--bundle", str(tmp_path), "--out", str(tmp_path / "x.json")]) == 1
    assert gpu.NO_CARD in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_what_servers_say_of_the_machine_is_collected(tmp_path: Path) -> None:
    row = {"name": "x", "ok": True, "torch": "9", "device": "card", "seconds": 1}
    record = {"machine": {"system": "s"}, "stages": [{"rows": [row]}]}
    gpu.writer(tmp_path / "deep" / "out.json")(record)
    written = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert written["machine"] == {"system": "s", "torch": "9", "device": "card"}


def test_files_go_where_there_is_room() -> None:
    assert gpu.fast_folder(1 << 60) is None
    if sys.platform == "linux":
        assert gpu.fast_folder(1 << 20) is not None
