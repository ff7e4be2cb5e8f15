"""dev.py and its set-up, without a network and without ComfyUI."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import dev
from tools.environment import building, commands, components, pinned

ROOT = pinned.ROOT
HOST_REQUIREMENTS = """\
comfyui-frontend-package==1.2.3
comfyui-workflow-templates==4.5.6
torch
torchvision
torchaudio
transformers>=4.50
Pillow

# comment
pydantic~=2.0
"""


def make_host(folder: Path) -> Path:
    """Write the files by which a ComfyUI folder is recognised."""
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "requirements.txt", "comfy/samplers.py"):
        (folder / name).touch()
    return folder


def archive_of(content: bytes) -> pinned.Archive:
    """An archive pinned to this content."""
    return pinned.Archive("thing", "1.0", "thing-1.0.tar.gz", hashlib.sha256(content).hexdigest(), 1)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a .tar.gz with these files."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


# --- keys and requirements ----------------------------------------------------------------------------------


def test_key_tells_apart_where_parts_end() -> None:
    assert components.component_key("ab", "c") != components.component_key("a", "bc")
    assert components.component_key("ab", "c") == components.component_key("ab", "c")


def test_environment_key_changes_with_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    key = components.environment_key(HOST_REQUIREMENTS, "numpy==2.0", "cpython-3.11")
    assert (
        components.environment_key(HOST_REQUIREMENTS + "\n# a comment\n", "numpy==2.0", "cpython-3.11") == key
    )
    changed = {
        components.environment_key(HOST_REQUIREMENTS + "einops\n", "numpy==2.0", "cpython-3.11"),
        components.environment_key(HOST_REQUIREMENTS, "numpy==2.1", "cpython-3.11"),
        components.environment_key(HOST_REQUIREMENTS, "numpy==2.0", "cpython-3.12"),
    }
    monkeypatch.setattr(pinned, "TORCH", ("torch==9.9",))
    changed.add(components.environment_key(HOST_REQUIREMENTS, "numpy==2.0", "cpython-3.11"))
    monkeypatch.undo()
    monkeypatch.setattr(platform, "machine", lambda: "another")
    changed.add(components.environment_key(HOST_REQUIREMENTS, "numpy==2.0", "cpython-3.11"))
    assert key not in changed
    assert len(changed) == 5


def test_encoder_key_changes_with_conversion_and_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    key = components.encoder_key(b"a")
    assert components.encoder_key(b"b") != key
    monkeypatch.setattr(pinned, "ENCODER_ARCHIVE", archive_of(b"another"))
    assert components.encoder_key(b"a") != key


def test_older_host_key_changes_with_both_hosts_that_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        components.older_host_key(),
        components.host_key(pinned.HOST),
        components.host_key(pinned.OLDER_HOST),
    }
    for name in ("HOST", "OLDER_HOST"):
        monkeypatch.setattr(pinned, name, pinned.PinnedHost("1.0", archive_of(b"another"), "folder"))
        keys.add(components.older_host_key())
        monkeypatch.undo()
    monkeypatch.setattr(pinned, "OLDER_LACKS", "comfy/another")
    keys.add(components.older_host_key())
    assert len(keys) == 6


def test_host_requirements_give_way_to_the_pins() -> None:
    needed, alone = pinned.split_requirements(HOST_REQUIREMENTS)
    assert needed == [
        *pinned.TORCH,
        *pinned.TOOLS,
        "comfyui-frontend-package==1.2.3",
        "Pillow",
        "pydantic~=2.0",
        *pinned.TEMPLATES_INDEX,
    ]
    assert alone == [pinned.TORCHAUDIO, "comfyui-workflow-templates==4.5.6"]


def test_host_without_a_template_gallery() -> None:
    needed, alone = pinned.split_requirements("einops\n")
    assert needed == [*pinned.TORCH, *pinned.TOOLS, "einops"]
    assert alone == [pinned.TORCHAUDIO]


def test_every_tool_and_constraint_is_pinned_exactly() -> None:
    constraints = [
        line for line in pinned.CONSTRAINTS.read_text().splitlines() if pinned.requirement_name(line)
    ]
    assert all("==" in line for line in (*pinned.TORCH, pinned.TORCHAUDIO, *pinned.TOOLS, *constraints))


# --- downloads ----------------------------------------------------------------------------------------------


def test_download_fetches_by_name_version_and_hash(tmp_path: Path) -> None:
    archive = archive_of(b"good")

    def fetch(words: Sequence[str]) -> None:
        wanted = Path(words[words.index("-r") + 1]).read_text()
        assert wanted == f"thing==1.0 --hash=sha256:{archive.sha256}\n"
        (Path(words[words.index("-d") + 1]) / archive.filename).write_bytes(b"good")

    assert building.download(archive, tmp_path / "new", fetch).read_bytes() == b"good"


def test_download_refuses_and_removes_another_file(tmp_path: Path) -> None:
    archive = archive_of(b"good")
    with pytest.raises(
        building.SetupError, match=rf"(?s)thing-1\.0\.tar\.gz has sha256.*expected {archive.sha256}"
    ):
        building.download(archive, tmp_path, lambda words: (tmp_path / archive.filename).write_bytes(b"bad"))
    assert not (tmp_path / archive.filename).exists()


def test_download_keeps_a_good_file_and_replaces_a_damaged_one(tmp_path: Path) -> None:
    archive = archive_of(b"good")
    path = tmp_path / archive.filename
    path.write_bytes(b"good")
    assert building.download(archive, tmp_path, lambda words: pytest.fail("fetched again")) == path
    path.write_bytes(b"goo")
    building.download(archive, tmp_path, lambda words: path.write_bytes(b"good"))
    assert path.read_bytes() == b"good"


def test_download_names_what_pip_did_not_bring(tmp_path: Path) -> None:
    with pytest.raises(building.SetupError, match=r"thing 1\.0"):
        building.download(archive_of(b"good"), tmp_path, lambda words: None)


# --- building, killing, locking -----------------------------------------------------------------------------


def test_component_is_made_once(tmp_path: Path) -> None:
    calls: list[Path] = []
    for _ in range(2):
        building.build("thing", tmp_path / "thing", tmp_path / "lock", calls.append)
    assert calls == [tmp_path / "thing"]


def test_component_of_a_killed_process_is_made_again(tmp_path: Path) -> None:
    folder, lock = tmp_path / "thing", tmp_path / "lock"
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); from tools.environment import building\n"
        "from pathlib import Path\n"
        "def make(folder):\n    (folder / 'half').write_text('half'); os._exit(9)\n"
        f"building.build('thing', Path({str(folder)!r}), Path({str(lock)!r}), make)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 9
    assert (folder / "half").exists()
    assert not building.is_complete(folder)

    building.build("thing", folder, lock, lambda folder: (folder / "whole").touch())
    assert building.is_complete(folder)
    assert (folder / "whole").exists()
    assert not (folder / "half").exists()


def test_lock_is_exclusive_and_ends_with_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from tools.environment import building\n"
        "from pathlib import Path\n"
        f"with building.setup_lock(Path({str(lock)!r})):\n    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with open(lock, "a") as file:
            assert not building.try_lock(file.fileno())
        holder.kill()
    with building.setup_lock(lock):
        pass


@pytest.mark.skipif(os.name == "nt", reason="a lock of Windows belongs to one process")
def test_pip_keeps_the_lock_when_its_starter_is_killed(tmp_path: Path) -> None:
    lock, pip = tmp_path / "lock", tmp_path / "python"
    pip.write_text("#!/bin/sh\necho $$ >&2\nexec sleep 60\n")
    pip.chmod(0o755)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tools.environment import building\n"
        "from pathlib import Path\n"
        f"with building.setup_lock(Path({str(lock)!r})):\n    building.pip(Path({str(pip)!r}), ['download'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as starter:
        assert starter.stderr is not None
        process = int(starter.stderr.readline())
        starter.kill()
    with open(lock, "a") as file:
        assert not building.try_lock(file.fileno())
    os.kill(process, signal.SIGKILL)
    with building.setup_lock(lock):
        pass


def test_too_little_space_names_folder_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(building.SetupError, match="JEPA_CACHE") as error:
        building.check_space(tmp_path, 10**18)
    assert str(tmp_path) in str(error.value)


# --- finding things -----------------------------------------------------------------------------------------


def test_host_is_the_named_one_then_the_one_around_then_the_pinned(tmp_path: Path) -> None:
    around, named = make_host(tmp_path / "around"), make_host(tmp_path / "named")
    pack = around / "custom_nodes" / "pack"
    pack.mkdir(parents=True)
    assert components.find_host(str(named), pack) == named
    assert components.find_host(None, pack) == around
    assert components.find_host(None, tmp_path / "elsewhere" / "pack") is None
    assert components.find_host(None, tmp_path / "no host" / "custom_nodes" / "pack") is None


def test_a_named_folder_that_is_no_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(building.SetupError, match="is not a ComfyUI folder") as error:
        components.find_host(str(tmp_path), tmp_path)
    assert str(tmp_path) in str(error.value)


def test_cache_folder_of_each_platform(tmp_path: Path) -> None:
    assert components.cache_folder({}, "Linux", tmp_path) == tmp_path / ".cache" / "jepa-guidance"
    assert components.cache_folder({"XDG_CACHE_HOME": "/x"}, "Linux", tmp_path) == Path("/x/jepa-guidance")
    assert (
        components.cache_folder({}, "Darwin", tmp_path) == tmp_path / "Library" / "Caches" / "jepa-guidance"
    )
    assert components.cache_folder({"LOCALAPPDATA": "/l"}, "Windows", tmp_path) == Path("/l/jepa-guidance")
    assert components.cache_folder({"JEPA_CACHE": str(tmp_path)}, "Linux", Path("/home")) == tmp_path


def test_an_unsupported_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "PYTHON_VERSIONS", ("2.0",))
    with pytest.raises(building.SetupError, match=platform.python_version()):
        components.find_python()


# --- archives -----------------------------------------------------------------------------------------------


def test_only_the_inner_folder_is_extracted(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", {"p/in/x/y.py": b"1", "p/other.py": b"2", "p/inner.py": b"3"})
    building.extract_subfolder(archive, "p/in", tmp_path / "out")
    files = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")]
    assert files == ["x/y.py"]


@pytest.mark.parametrize(
    "name", ["p/in/../../../evil", "p/in/a/../../../../evil", "p/in/..\\evil", "p/in/C:/evil"]
)
def test_paths_that_leave_the_target_are_refused(tmp_path: Path, name: str) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", {name: b"1"})
    with pytest.raises(building.SetupError, match="unsafe path"):
        building.extract_subfolder(archive, "p/in", tmp_path / "deep" / "er" / "out")
    assert not list(tmp_path.rglob("*evil"))


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("p/in/link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(info)
    with pytest.raises(building.SetupError, match="no files below p/in"):
        building.extract_subfolder(tmp_path / "a.tar.gz", "p/in", tmp_path / "out")


def test_older_host_is_completed_from_the_newer_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    downloads, folder, newer = tmp_path / "downloads", tmp_path / "older", tmp_path / "newer"
    for path in (downloads, folder, newer / pinned.OLDER_LACKS):
        path.mkdir(parents=True)
    (newer / pinned.OLDER_LACKS / "autoencoder.py").write_text("newer")
    file = write_tar(downloads / "thing-1.0.tar.gz", {"p/ComfyUI/comfy/ldm/flux/math.py": b"older"})
    older = pinned.PinnedHost("1.0", archive_of(file.read_bytes()), "p/ComfyUI")
    monkeypatch.setattr(pinned, "OLDER_HOST", older)
    # The archive is already there, so no pip is needed.
    monkeypatch.setattr(components, "make_environment", lambda python, folder: folder.mkdir())
    components.install_older_host(sys.executable, downloads, newer, folder)
    made = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}
    assert made == {
        "ComfyUI/comfy/ldm/flux/math.py": "older",
        f"ComfyUI/{pinned.OLDER_LACKS}/autoencoder.py": "newer",
    }


# --- commands -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows lets only some users make links")
def test_a_linked_clone_finds_itself_at_the_link(tmp_path: Path) -> None:
    link = tmp_path / "custom_nodes" / "pack"
    link.parent.mkdir()
    link.symlink_to(ROOT)
    code = (
        "import runpy, sys\nsys.argv[1:] = ['--help']\ntry:\n"
        f"    runpy.run_path({str(link / 'dev.py')!r}, run_name='__main__')\nexcept SystemExit as end:\n"
        "    from tools.environment.pinned import ROOT\n    print(end.code, ROOT)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"0 {link}", done.stderr


def test_arguments_reach_the_program_that_a_command_runs() -> None:
    options, rest = dev.parse(["test", "--long", "-k", "name", "--comfyui", "/x"])
    assert (options.long, options.comfyui, rest) == (True, "/x", ["-k", "name"])
    options, _ = dev.parse(["--comfyui", "/x", "run", "file.py", "--comfyui", "theirs", "-h"])
    assert (options.comfyui, options.file) == ("/x", Path("file.py"))
    assert options.arguments == ["--comfyui", "theirs", "-h"]
    assert dev.parse(["demo", "--steps", "3", "--help"])[1] == ["--steps", "3", "--help"]
    assert dev.parse(["bench", "gradient", "--folder", "x"])[1] == ["gradient", "--folder", "x"]
    assert dev.parse(["gpu", "--bundle", "x", "--minutes", "3"])[1] == ["--bundle", "x", "--minutes", "3"]
    with pytest.raises(SystemExit):
        dev.parse(["setup", "--unknown"])


@pytest.mark.parametrize("words", [["--bundle", "x"], ["--dry-run", "--bundle=x"]])
def test_a_bundle_runs_without_the_set_up(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    ran: list[tuple[list[str], str]] = []

    def become(command: list[str], environ: dict[str, str]) -> int:
        ran.append((command, environ["PYTHONPATH"]))
        return 5

    def set_up(*_: object) -> components.Setup:
        raise AssertionError("the set-up needs a network")

    monkeypatch.setattr(commands, "become", become)
    monkeypatch.setattr(dev, "set_up", set_up)
    assert dev.main(["gpu", *words]) == 5
    assert ran == [([sys.executable, "-P", str(ROOT / "tools" / "gpu" / "run.py"), *words], str(ROOT))]
    with pytest.raises(AssertionError, match="network"):
        dev.main(["gpu", "--dry-run"])


def test_tests_marked_long_are_left_out_unless_asked_for() -> None:
    assert commands.check_commands(False, ["-x"])["pytest"] == ["pytest", "-m", "not long", "-x"]
    assert commands.check_commands(True, ["-x"])["pytest"] == ["pytest", "-x"]
    # only all tests make the matrix
    matrix = ["-p", "tests.support", "--support", str(commands.SUPPORT)]
    assert commands.check_commands(True, [])["pytest"] == ["pytest", *matrix]
    # the quick tests run in parallel, but not those that somebody names
    several = commands.parallel()
    assert several[:2] == ["-n", str(min((os.cpu_count() or 1) + 1, 4))]
    assert commands.check_commands(False, [])["pytest"] == ["pytest", *several, "-m", "not long"]


def test_every_check_runs_and_failures_are_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command[2])
        return subprocess.CompletedProcess(command, 1 if command[2] in ("ruff", "mypy") else 0)

    monkeypatch.setattr(subprocess, "run", run)
    setup = components.Setup(Path("python"), Path("host"), Path("encoder"))
    assert commands.run_tests(setup, False, []) == 1
    assert ran == ["ruff", "ruff", "mypy", "pytest"]
    assert "failed: ruff check, ruff format, mypy" in capsys.readouterr().err


def test_some_tests_run_against_the_older_host_and_all_of_the_engine_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, list[str]]] = []

    def run(command: list[str], env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append((env["JEPA_HOST"], command[2:]))
        return subprocess.CompletedProcess(command, 1 if env["JEPA_HOST"] == "older" else 0)

    monkeypatch.setattr(subprocess, "run", run)
    setup = components.Setup(Path("python"), Path("host"), Path("encoder"), Path("older"))
    for long in (False, True):
        ran.clear()
        assert commands.run_tests(setup, long, []) == 1
        assert [host for host, _ in ran] == ["host"] * 4 + ["older"]
        words = ran[-1][1]
        assert (words[-2:] == ["-m", "not long"]) is not long
        files = [word for word in words if word.startswith("tests/")]
        assert (files == ["tests/host"]) is long
        assert all((ROOT / file).exists() for file in files)
    assert f"failed: pytest, ComfyUI {pinned.OLDER_HOST.version}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["test"], True), (["test", "--long"], True), (["test", "-x"], False), (["setup"], False)],
)
def test_the_older_host_is_asked_for_by_all_tests_alone(
    monkeypatch: pytest.MonkeyPatch, words: list[str], expected: bool
) -> None:
    asked: list[bool] = []

    def set_up(explicit_host: str | None, cache: Path, older_too: bool) -> components.Setup:
        asked.append(older_too)
        raise building.SetupError("no need for more")

    monkeypatch.setattr(dev, "set_up", set_up)
    assert dev.main(words) == 2
    assert asked == [expected]


def test_the_older_host_is_made_beside_the_pinned_one_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def build(what: str, folder: Path, lock: Path, make: object) -> None:
        (folder / "ComfyUI").mkdir(parents=True)
        (folder / "ComfyUI" / "requirements.txt").touch()

    monkeypatch.setattr(components, "build", build)
    monkeypatch.setattr(components, "find_python", lambda: ("python", "cpython-3.11"))
    monkeypatch.setattr(components, "ROOT", tmp_path / "pack")
    named = str(make_host(tmp_path / "named"))
    assert components.set_up(named, tmp_path / "1", True).older_host is None
    assert components.set_up(None, tmp_path / "2", False).older_host is None
    made = components.set_up(None, tmp_path / "3", True)
    assert made.older_host is not None
    assert made.older_host.parent.parent == tmp_path / "3"
    assert made.older_host != made.host


def test_host_comes_before_pack_and_neighbours_on_the_path() -> None:
    setup = components.Setup(Path("python"), Path("host"), Path("encoder"))
    environ = commands.child_environment(setup, {"PYTHONPATH": "foreign", "KEPT": "1"}, Path("near"))
    assert environ["PYTHONPATH"].split(os.pathsep) == ["host", str(ROOT), "near"]
    assert environ["KEPT"] == "1"
