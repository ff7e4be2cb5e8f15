"""The archive that the Comfy Registry would publish: its contents, and that a host runs it as it is.

`comfy node pack` and `comfy node publish` take the files that git tracks, except those matched by .comfyignore. This is
repeated here without comfy-cli and its dependencies; the list agreed with that of comfy-cli 1.23.0. Untracked files that
git does not ignore are included, as they will be once committed.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import tomllib
import torch
from pathspec import PathSpec

from tests.conftest import HOST, ROOT
from tests.server.test_graph import djepa, graph, guided
from tools.help_pages import OTHERS
from tools.server import Server

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAME = PROJECT["project"]["name"]
MEGABYTES = 40
TOP = {
    *("CHANGELOG.md", "LICENSE", "README.md", "__init__.py", "pyproject.toml"),
    *("assets", "docs", "host", "jepa_core", "locales", "nodes", "subgraphs", "web", "workflows"),
}

# What the registry's scan flags, or should flag.
STARTS_PROGRAMS = {"subprocess", "multiprocessing", "pty", "pip", "ensurepip", "ctypes"}
RUNS_TEXT = {"pickle", "marshal", "shelve", "dill", "runpy", "code", "zipimport", "base64", "importlib"}
SPEAKS_TO_NETWORK = {
    *("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "telnetlib", "xmlrpc", "asyncio", "webbrowser"),
    *("requests", "httpx", "aiohttp", "urllib3", "websocket", "websockets", "huggingface_hub"),
}
FUNCTIONS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    *("import_module", "system", "popen", "startfile", "fork", "execv", "execve", "spawnv", "posix_spawn"),
    *("urlopen", "urlretrieve", "snapshot_download", "load_state_dict_from_url"),
}
# The only file that uses the network, to download two files of a repository named in it when a user picks an encoder.
DOWNLOADS = "jepa_core/hub.py"


def published() -> list[str]:
    """The paths of the files that would be published, relative to the repository."""
    git = shutil.which("git")
    command = [git or "git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True) if git else None
    if done is None or done.returncode:
        pytest.skip("what would be published is what git tracks, and this is no git repository")
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    left_out = PathSpec.from_lines("gitwildmatch", patterns)
    paths = sorted(set(done.stdout.split("\0")) - {""})
    return [path for path in paths if not left_out.match_file(path) and (ROOT / path).is_file()]


@pytest.fixture(scope="module")
def files() -> list[str]:
    return published()


@pytest.fixture(scope="module")
def archive(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, as comfy-cli writes it."""
    path = tmp_path_factory.mktemp("archive") / "node.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        for file in files:
            content.write(ROOT / file, file)
    return path


@pytest.fixture(scope="module")
def server_of_archive(
    archive: Path, encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A ComfyUI with only the unpacked archive as a custom node, in a folder with the project's name."""
    base = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(archive) as content:
        content.extractall(base / "custom_nodes" / NAME)
    links = {f"models/jepa/{encoder_dir.name}": encoder_dir}
    with Server(HOST, links, base=base, cpu=not torch.cuda.is_available()) as running:
        yield running


@pytest.fixture(scope="module")
def sources(files: list[str]) -> dict[str, ast.Module]:
    """The syntax of every published Python file, by path."""
    paths = [path for path in files if path.endswith(".py")]
    return {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in paths}


def test_the_archive_holds_what_nodes_need_and_users_read(files):
    top = {path.split("/")[0] for path in files}
    assert top == TOP
    assert [path for path in files if path.startswith("assets/")] == [
        "assets/README.md",
        "assets/demo128.safetensors",
        "assets/djepa128.safetensors",
        "assets/jepa_example.jpg",
        "assets/tokenizer128.safetensors",
    ]
    folders = [ROOT / name for name in ("nodes", "host", "jepa_core")]
    code = {file.relative_to(ROOT).as_posix() for folder in folders for file in folder.rglob("*.py")}
    assert code <= set(files)


def test_what_the_readme_links_is_in_the_archive_with_its_pictures(files):
    readme = links(ROOT / "README.md")
    assert readme - set(files) == {"CONTRIBUTING.md"}  # for those who have the repository
    pages = {path for path in files if path.startswith("docs/") and path.endswith(".md")}
    shown = {
        path
        for page in ["README.md", *pages]
        for path in links(ROOT / page)
        if path.endswith((".jpg", ".png"))
    }
    assert shown == {path for path in files if path.startswith("docs/images/")}


def links(page: Path) -> set[str]:
    """What a page shows or links of this repository; from docs/ only what is in that folder, the rest is for developers."""
    targets = [
        target
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target
    ]
    found = {(page.parent / target).resolve().relative_to(ROOT.resolve()).as_posix() for target in targets}
    return {path for path in found if page.parent == ROOT or path.startswith("docs/")}


def test_the_archive_is_small(archive):
    assert archive.stat().st_size < MEGABYTES * 10**6


def test_every_template_is_published_with_its_thumbnail(files):
    templates = {path for path in files if path.startswith("workflows/") and path.endswith(".json")}
    assert templates
    assert {path.removesuffix(".json") + ".jpg" for path in templates} <= set(files)


def test_every_help_page_is_published_in_every_language(files):
    nodes = json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8"))
    pages = {f"web/docs/{node}{rest}.md" for node in nodes for rest in ("", *(f"/{one}" for one in OTHERS))}
    assert {path for path in files if path.startswith("web/docs/") and path.endswith(".md")} == pages
    # the sentences that they are made of are for those who have the repository
    assert not [path for path in files if path.endswith("help.json")]


def test_a_wheel_would_hold_all_of_jepa_core():
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "jepa_core").rglob("*.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == {".".join(folder.parts) for folder in folders}


def test_published_code_can_be_read_as_cp1252(sources):
    for path in sources:
        (ROOT / path).read_text(encoding="utf-8").encode("cp1252")


def modules(tree: ast.Module) -> set[str]:
    """The top-level names of modules that a file imports from outside the pack."""
    found = set()
    for part in ast.walk(tree):
        if isinstance(part, ast.Import):
            found |= {alias.name.split(".")[0] for alias in part.names}
        elif isinstance(part, ast.ImportFrom) and not part.level:
            found.add((part.module or "").split(".")[0])
    return found


def doubtful(tree: ast.Module) -> Iterator[str]:
    """Names in a file that run code or programs, download, unpickle, or assume one kind of device."""
    for part in ast.walk(tree):
        match part:
            case ast.Name(id=name) if name in FUNCTIONS | METHODS:
                yield name
            case ast.Attribute(attr=name) if name in METHODS:
                yield name
            case ast.Call(func=ast.Attribute(attr="from_pretrained"), args=[ast.Constant(value=None), *_]):
                pass  # only builds the network; with a name or a folder it would look for files
            case ast.Call(func=ast.Attribute(attr="from_pretrained" | "cuda" as name)):
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")):
                yield "torch.load"


def test_published_code_starts_no_program_and_evaluates_no_text(sources):
    for path, tree in sources.items():
        assert not modules(tree) & (STARTS_PROGRAMS | RUNS_TEXT), path
        assert not list(doubtful(tree)), path


@pytest.mark.parametrize(
    "line",
    [
        "eval(x)",
        "run = exec",
        "os.system(x)",
        "model.cuda()",
        "torch.load(x)",
        "Model.from_pretrained('name')",
    ],
)
def test_doubtful_names_are_found(line):
    assert list(doubtful(ast.parse(line)))


def test_one_published_file_reaches_the_network_and_only_through_the_hubs_client(sources):
    reaching = {path: found for path, tree in sources.items() if (found := modules(tree) & SPEAKS_TO_NETWORK)}
    assert reaching == {DOWNLOADS: {"huggingface_hub"}}


def test_the_host_runs_the_archive_as_it_is(server_of_archive, encoder_dir, files):
    server = server_of_archive
    ours = {
        name for name, node in server.object_info().items() if node["python_module"] == f"custom_nodes.{NAME}"
    }
    assert ours == set(json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8")))
    assert "IMPORT FAILED" not in server.log()

    templates = json.loads(server.get("/workflow_templates"))
    names = [Path(path).stem for path in files if path.startswith("workflows/") and path.endswith(".json")]
    assert sorted(templates[NAME]) == sorted(names)
    for name in map(quote, names):
        assert json.loads(server.get(f"/api/workflow_templates/{NAME}/{name}.json"))["nodes"]
        assert server.get(f"/api/workflow_templates/{NAME}/{name}.jpg")[:2] == b"\xff\xd8"

    options = server.object_info()["JEPAEncoderLoader"]["input"]["required"]["encoder"][1]["options"]
    (encoder,) = [name for name in options if name.endswith(".safetensors")]
    for prompt in (graph(encoder, guided(rank=2)), djepa(steps=2, batch_size=1)):
        outputs = server.wait(server.queue(prompt), timeout=300)["outputs"]
        assert server.image(outputs["save"]["images"][0]).startswith(b"\x89PNG")
