"""What went wrong is said on the node, at its input, and briefly in the corner; the menu of encoders says what is here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.browser.conftest import IDLE, run
from tests.browser.test_page import DEMO, make_small, open_demo
from tests.conftest import ROOT
from tools.page import Comfy

CALLOUT = ".jepa-callout"
# What the sentences on nodes say: [kind, node's id, text without its sign, whether a frame is shown].
SAID = """() => [...document.querySelectorAll(".jepa-callout")].map((one) => [
    one.className.replace("jepa-callout ", ""), one.querySelector(".text").firstChild.textContent,
    !one.querySelector(".frame").hidden,
])"""
# Whether the frame lies on the row of an input, in pixels of the screen: the socket of the input is within it.
FRAMED = """([id, name]) => {
    const node = app.graph.getNodeById(id), { ds, canvas } = app.canvas, box = canvas.getBoundingClientRect();
    const [x, y] = node.getInputPos(node.inputs.findIndex((input) => input.name === name));
    const across = (x + ds.offset[0]) * ds.scale + box.left, down = (y + ds.offset[1]) * ds.scale + box.top;
    const row = document.querySelector(".jepa-callout .frame").getBoundingClientRect();
    return row.top < down && down < row.bottom && Math.abs(row.left - across) < 20;
}"""
LABEL = "(id) => app.graph.getNodeById(id).widgets[0].options.getOptionLabel(app.graph.getNodeById(id).widgets[0].value)"


# Whether a message with a text is in the corner, and the host's own does not cover it.
TOASTED = """(text) => {
    const toast = [...document.querySelectorAll(".jepa-toast")].find((one) => one.textContent.includes(text));
    const host = document.querySelector("[data-testid=error-overlay]");
    return toast && (!host || toast.getBoundingClientRect().top >= host.getBoundingClientRect().bottom - 1);
}"""


def said(page: Comfy, kind: str) -> list[Any]:
    """Wait until something of this kind is said; returns all that is said."""
    page.wait(f"document.querySelector('{CALLOUT}.{kind} .text')", seconds=120)
    page.page.wait_for_timeout(300)
    found: list[Any] = page.ask(SAID)
    return found


@pytest.mark.parametrize("vue", [False, pytest.param(True, marks=pytest.mark.long)], ids=["classic", "vue"])
def test_an_error_is_said_on_its_node_at_its_input_and_goes_when_it_is_mended(comfy, encoder_name, vue):
    page = open_demo(comfy)
    page.change("Comfy.VueNodes.Enabled", vue)
    try:
        name = "vue" if vue else "classic"
        make_small(page, encoder_name)
        sampler, loader = page.node("JEPAGuidedKSampler"), page.node("JEPAEncoderLoader")
        # refused before the run
        page.show(loader)
        page.set("JEPAEncoderLoader", "encoder", "theirs/model.safetensors")
        run(page)
        page.wait(TOASTED, "There is no encoder 'theirs/model.safetensors' here", 60)
        errors = said(page, "error")
        page.picture(f"error_refused_{name}")
        sentence = (
            f"\u26a0 There is no encoder 'theirs/model.safetensors' here; put its .safetensors file (and config.json) "
            f"into models/jepa, or choose {encoder_name}, which is installed."
        )
        assert errors == [["error", sentence, True]] * 2  # both loaders
        page.set("JEPAEncoderLoader", "encoder", encoder_name)
        assert page.ask(SAID) == []
        # in the run
        page.show(sampler)
        page.ask("([id, old]) => { app.graph.getNodeById(id).jepaTrace = old; }", [sampler, OLD])
        page.set("JEPAGuidedKSampler", "start_percent", 0.9)
        run(page)
        page.wait(TOASTED, "start_percent 0.9 is larger than end_percent 0.8", 60)
        errors = said(page, "error")
        page.picture(f"error_in_run_{name}")
        sentence = "\u26a0 start_percent 0.9 is larger than end_percent 0.8; swap them, or set both equal to guide nothing"
        assert errors == [["error", sentence, True]]
        assert page.ask(FRAMED, [sampler, "start_percent"])
        # the chart of an older run is gone
        assert page.ask("(id) => app.graph.getNodeById(id).jepaTrace", sampler) is None
        page.set("JEPAGuidedKSampler", "start_percent", 0.2)
        assert page.ask(SAID) == []
        # cancelled: while guided steps are slow, so that it does not end before
        page.set("JEPAEncoderLoader", "image_size", 224)
        run(page)
        page.wait("(id) => app.graph.getNodeById(id).jepaTrace?.steps.length >= 2", sampler, 120)
        page.click(page.page.get_by_role("button", name="Cancel current run"))
        assert said(page, "note") == [["note", "Cancelled: this node did not finish.", False]]
        page.picture(f"cancelled_{name}")
        page.wait(IDLE, seconds=60)
        assert not page.errors
    finally:
        page.change("Comfy.VueNodes.Enabled", False)


OLD = {"guides": ["g"], "judges": [], "total": 14, "places": [], "steps": []}


def test_the_menu_of_encoders_tells_what_is_here_and_an_absent_one_is_replaced_aloud(comfy, encoder_name):
    page = open_demo(comfy)
    loader = page.node("JEPAEncoderLoader")
    assert page.ask(LABEL, loader) == "dinov2-with-registers-small (download 88 MB)"
    labels = page.ask(
        """(id) => {
            const { options } = app.graph.getNodeById(id).widgets[0];
            return options.values.map((name) => options.getOptionLabel(name));
        }""",
        loader,
    )
    assert labels[0] == f"{encoder_name} (installed)"
    assert "ijepa_vith14_1k (download 2523 MB, non-commercial)" in labels
    gated = "dinov3-vits16-pretrain-lvd1689m (gated: agree on the hub, put 86 MB in place yourself)"
    assert gated in labels
    # the name alone is saved; one that is to be downloaded stays
    assert page.ask("(id) => app.graph.getNodeById(id).serialize().widgets_values[0]", loader) == (
        "dinov2-with-registers-small"
    )
    open_again = """(value) => {
        const graph = app.graph.serialize();
        for (const node of graph.nodes) if (node.type === "JEPAEncoderLoader") node.widgets_values[0] = value;
        return app.loadGraphData(graph);
    }"""
    page.ask(open_again, "theirs/model.safetensors")
    (*_, notice) = said(page, "notice")
    page.show(loader)
    page.picture("encoder_absent")
    assert notice == [
        "notice",
        f"\u26a0 theirs/model.safetensors is not on this machine. {encoder_name} is chosen in its place: it has its own "
        "idea of rare, so images and scores will differ.",
        True,
    ]
    assert page.ask("(id) => app.graph.getNodeById(id).widgets[0].value", loader) == encoder_name
    page.set("JEPAEncoderLoader", "encoder", "dinov2-base")
    assert page.ask(SAID) == []
    # of another system, or to be downloaded: nothing to say
    for value, chosen in [(encoder_name.replace("/", "\\"), encoder_name), ("dinov2-large", "dinov2-large")]:
        page.ask(open_again, value)
        page.page.wait_for_timeout(300)
        assert page.ask("(id) => app.graph.getNodeById(id).widgets[0].value", loader) == chosen
        assert page.ask(SAID) == []
    assert not page.errors


# A guided MODEL for a KSampler of the host; returns the id of the node that guides.
PATCHED = """(encoder) => {
    app.graph.clear();
    const make = (kind, x, y, values = {}) => {
        const node = LiteGraph.createNode(kind);
        node.pos = [x, y];
        app.graph.add(node);
        for (const [name, value] of Object.entries(values)) node.widgets.find((one) => one.name === name).value = value;
        return node;
    };
    const link = (from, type, to, name) => from.connect(
        from.outputs.findIndex((one) => one.type === type), to, to.inputs.findIndex((one) => one.name === name));
    const loader = make("JEPADemoLoader", 0, 0), drawn = make("JEPADemoClass", 0, 150), any = make("JEPADemoClass", 0, 300);
    const guide = make("JEPAEncoderLoader", 0, 450, { encoder, image_size: 28 });
    const empty = make("EmptyLatentImage", 0, 650, { width: 128, height: 128 });
    const patch = make("JEPAGuidance", 400, 0);
    const sampler = make("KSampler", 800, 0, { steps: 4, sampler_name: "dpm_adaptive" });
    const decode = make("VAEDecode", 1150, 0), shown = make("PreviewImage", 1150, 150);
    link(loader, "MODEL", patch, "model");
    link(loader, "VAE", patch, "vae");
    link(loader, "VAE", decode, "vae");
    link(guide, "JEPA_ENCODER", patch, "encoder");
    link(patch, "MODEL", sampler, "model");
    link(drawn, "CONDITIONING", sampler, "positive");
    link(any, "CONDITIONING", sampler, "negative");
    link(empty, "LATENT", sampler, "latent_image");
    link(sampler, "LATENT", decode, "samples");
    link(decode, "IMAGE", shown, "images");
    return patch.id;
}"""


@pytest.mark.long
def test_an_error_of_a_patch_in_the_hosts_sampler_is_said_on_the_patch(comfy, encoder_name):
    page = comfy()
    page.close_templates()
    patch = page.ask(PATCHED, encoder_name)
    page.show(patch, scale=0.8)
    run(page)
    ((kind, sentence, framed),) = said(page, "error")
    page.picture("error_of_a_patch")
    assert (kind, framed) == ("error", False)  # the sampler is no input of the patch
    assert sentence.startswith("\u26a0 JEPA guidance does not support the sampler 'dpm_adaptive'")
    left, right = page.ask(
        """(id) => {
            const { pos, size } = app.graph.getNodeById(id), { ds, canvas } = app.canvas;
            const text = document.querySelector(".jepa-callout .text").getBoundingClientRect();
            const left = (pos[0] + ds.offset[0]) * ds.scale + canvas.getBoundingClientRect().left;
            return [Math.abs(text.left - left), Math.abs(text.width - size[0] * ds.scale)];
        }""",
        patch,
    )
    assert left < 2
    assert right < 2
    assert not page.errors


INPUTS = [
    {"name": "model"}, {"name": "encoder", "value": None}, {"name": "steps", "value": 14},
    {"name": "sampler_name", "value": "dpm_adaptive"}, {"name": "start_percent", "value": 0.9},
    {"name": "end_percent", "value": 0.8}, {"name": "weights", "value": "dinov2-large"}, {"name": "non_commercial"},
    {"name": "target", "value": "none"},
]  # fmt: skip
NAMED = {
    "start_percent 0.9 is larger than end_percent 0.8; swap them": "start_percent",
    "JEPA guidance does not support the sampler 'dpm_adaptive': it chooses its steps as it goes": "sampler_name",
    "cannot download dinov2-large from the Hugging Face hub (no network). Put config.json": "weights",
    "the encoder sees 3 channels, not 4": "encoder",
    "images have 4 channels, unlike those that the encoder sees in its steps": None,
    "so none has a fixed place": None,
    "dinov2-large is not for commercial use. Turn non_commercial on to agree": "weights",
    "Turn non_commercial on": "non_commercial",
    "model_type 'x' is not supported": None,
    "out of memory": None,
}


@pytest.mark.long
def test_the_input_that_a_sentence_is_about_is_found(comfy):
    page = comfy()
    found = page.ask(
        """async ([messages, inputs]) => {
            const { inputOf } = await import("/extensions/jepa-guidance/js/runs.js");
            return messages.map((message) => inputOf(message, inputs));
        }""",
        [list(NAMED), INPUTS],
    )
    assert dict(zip(NAMED, found, strict=True)) == NAMED


@pytest.mark.long
def test_the_panel_of_a_patch_warns_of_the_samplers_behind_it(comfy):
    page = comfy()
    page.close_templates()
    patch = page.ask(
        """() => {
            app.graph.clear();
            const make = (kind, x) => {
                const node = LiteGraph.createNode(kind);
                node.pos = [x, 100];
                app.graph.add(node);
                return node;
            };
            const link = (from, type, to) => from.connect(
                from.outputs.findIndex((one) => one.type === type), to, to.inputs.findIndex((one) => one.type === type));
            const patch = make("JEPAGuidance", 0);
            const [plain, guider, custom, chosen] = ["KSampler", "CFGGuider", "SamplerCustomAdvanced", "KSamplerSelect"].map(
                (kind, place) => make(kind, 500 + 350 * place));
            link(patch, "MODEL", plain);
            link(patch, "MODEL", guider);
            link(guider, "GUIDER", custom);
            link(chosen, "SAMPLER", custom);
            return patch.id;
        }"""
    )
    label = "(id) => app.graph.getNodeById(id).jepaCanvas?.ariaLabel"
    page.wait(label, patch)
    for kind in ("KSampler", "KSamplerSelect"):
        for sampler, warned in (("dpm_adaptive", True), ("euler", False)):
            page.set(kind, "sampler_name", sampler)
            page.ask(
                "import('/scripts/api.js').then(({ api }) => api.dispatchEvent(new CustomEvent('graphChanged')))"
            )
            said_so = "Sampler dpm_adaptive is not supported" in page.ask(label, patch)
            assert said_so == warned, (kind, sampler)
    assert not page.errors


@pytest.mark.long
@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_the_menu_speaks_the_users_language(comfy, server, language):
    words = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))[
        "jepaGuidance"
    ]
    page = comfy()
    page.change("Comfy.Locale", language)
    try:
        page.page.wait_for_timeout(1000)
        page.page.goto(server.url)
        page.open_template(DEMO)
        page.wait(
            "window.app?.graph?.nodes.some((node) => node.comfyClass === 'JEPAEncoderLoader')", None, 120
        )
        loader = page.node("JEPAEncoderLoader")
        page.wait("(id) => app.graph.getNodeById(id)?.widgets?.[0]?.options.getOptionLabel", loader)
        page.show(loader)
        page.picture(f"encoders_{language}")
        text = words["encoderDownload"].format(megabytes=88)
        assert page.ask(LABEL, loader) == f"dinov2-with-registers-small ({text})"
    finally:
        page.change("Comfy.Locale", "en")
        page.page.wait_for_timeout(1000)
