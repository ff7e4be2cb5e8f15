"""The panels on the newest page that the package registry has, and on the installed one: no use of what is deprecated."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.browser.conftest import IDLE, SCREENSHOTS, run
from tests.conftest import HOST, ROOT
from tools.page import Comfy
from tools.server import Server

TEMPLATE = "01 First try without a checkpoint"
LABEL = "(id) => app.rootGraph.getNodeById(id).jepaCanvas?.ariaLabel"
LINK = """(id) => {
    const node = app.rootGraph.getNodeById(id), number = LiteGraph.createNode("PrimitiveInt");
    number.pos = [node.pos[0] - 300, node.pos[1]];
    app.rootGraph.add(number);
    number.connect(0, node, node.inputs.findIndex((input) => input.name === "steps"));
}"""
# Notes where each warning about deprecation comes from; the page warns of its own scripts too.
LISTEN = """
window.deprecated = [];
const warn = console.warn;
console.warn = (...all) => {
    if (/deprecated/i.test(String(all[0]))) window.deprecated.push(`${all[0]} ${new Error().stack}`);
    warn(...all);
};
"""
UNLINK = """(id) => {
    const node = app.rootGraph.getNodeById(id);
    node.disconnectInput(node.inputs.findIndex((input) => input.name === "steps"));
}"""


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the newest page."""
    folder = tmp_path_factory.mktemp("frontend")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
    had = subprocess.run([*command, "comfyui-frontend-package"], capture_output=True, text=True)
    if had.returncode:
        pytest.skip(f"the newest comfyui-frontend-package cannot be had here: {had.stderr[-300:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / "comfyui_frontend_package" / "static"


@pytest.fixture(scope="module")
def newest_server(newest: Path, encoder_dir: Path) -> Iterator[Server]:
    links = {"custom_nodes/jepa-guidance": ROOT, f"models/jepa/{encoder_dir.name}": encoder_dir}
    arguments = ["--front-end-root", str(newest)]
    with Server(HOST, links, cpu=not torch.cuda.is_available(), arguments=arguments) as running:
        yield running


@pytest.fixture(params=["server", "newest_server"])
def any_server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.mark.long
def test_settings_links_and_a_run_are_followed_without_a_warning_about_deprecation(
    browser, any_server, encoder_dir
):
    context = browser.new_context(viewport={"width": 1600, "height": 1100})
    tab = context.new_page()
    tab.add_init_script(LISTEN)
    try:
        page = Comfy(tab, any_server.url, SCREENSHOTS)
        page.open_template(TEMPLATE)
        sampler = page.node("JEPAGuidedKSampler")
        page.show(sampler)
        page.wait(LABEL, sampler)
        assert "Guides 9 of 14 steps" in page.ask(LABEL, sampler)
        page.ask(LINK, sampler)
        assert "Guides" not in page.ask(LABEL, sampler)
        page.ask(UNLINK, sampler)
        page.set("JEPAGuidedKSampler", "interval", 2)
        assert "Guides 4 of 14 steps" in page.ask(LABEL, sampler)
        page.set("JEPAGuidedKSampler", "steps", 4)
        page.set("JEPAEncoderLoader", "encoder", f"{encoder_dir.name}/model.safetensors")
        page.set("JEPAEncoderLoader", "image_size", 56)
        page.set("EmptyLatentImage", "batch_size", 1)
        run(page)
        page.wait("(id) => app.rootGraph.getNodeById(id).jepaTrace?.steps.length === 4", sampler, 400)
        page.wait(IDLE, None, 400)
        page.picture("newest_frontend")
        assert not page.errors
        ours = page.ask("window.deprecated.filter((text) => text.includes('/extensions/jepa-guidance/'))")
        assert not ours
        page.ask("console.warn('this is deprecated')")  # to show that it would be seen
        assert "this is deprecated" in page.ask("window.deprecated.at(-1)")
    finally:
        context.close()
