// On menus of encoders: what is installed, what is downloaded, and what must not be used commercially. Graphs save the names
// alone, so that they fit every machine.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { say, unsay } from "./callouts.js";
import { filled, follow, isLinked, loadWords, words } from "./page.js";
import { allNodes } from "./runs.js";

const MENUS = { JEPAEncoderLoader: "encoder", JEPAPromptFit: "model" };
const FACTS = "jepa_installed"; // FACTS in host/encoders/menu.py
const WIDTH = 330; // of a new node, at least

/** The options of a node's menu as the server described them last. */
function menuOf(kind) {
  return LiteGraph.registered_node_types[kind].nodeData.input.required[MENUS[kind]][1];
}

/** A name with what its choice means, such as "dinov2-small (download 88 MB)". */
function labelled(name, facts) {
  if (!facts || !words) return name;
  const { installed, megabytes, gated, commercial } = facts;
  const fetched = filled(gated ? words.encoderByHand : words.encoderDownload, { megabytes });
  const states = [installed ? words.encoderInstalled : fetched];
  if (commercial === false) states.push(words.encoderNonCommercial);
  return `${name} (${states.join(words.comma)})`;
}

const slashes = (name) => String(name).replaceAll("\\", "/");

/** Choose an installed encoder in place of one that is not here, and say so. */
async function settle(node) {
  const input = MENUS[node.comfyClass];
  const widget = node.widgets.find(({ name }) => name === input);
  const { [FACTS]: facts, default: paper } = menuOf(node.comfyClass);
  const names = Object.keys(facts);
  const wanted = widget.value;
  if (isLinked(node, input) || names.includes(wanted)) return;
  const same = names.find((name) => slashes(name) === slashes(wanted)); // saved on another system
  const instead = same ?? [paper, ...names].find((name) => facts[name]?.installed);
  if (!instead) return;
  widget.value = instead;
  if (same) return;
  await loadWords();
  const text = filled(words.encoderAbsent, { wanted, instead });
  say(node, { kind: "notice", text, input, close: words.close });
}

/** Ask again what is installed, after a run that has downloaded something. */
async function refresh() {
  for (const kind of Object.keys(MENUS)) {
    const used = allNodes().filter(({ comfyClass }) => comfyClass === kind);
    const menu = menuOf(kind);
    const chosen = used.map((node) => node.widgets.find(({ name }) => name === MENUS[kind]).value);
    if (!chosen.some((name) => menu[FACTS][name]?.installed === false)) continue;
    const described = await (await api.fetchApi(`/object_info/${kind}`)).json();
    Object.assign(menu[FACTS], described[kind].input.required[MENUS[kind]][1][FACTS]);
    app.canvas.setDirty(true, true);
  }
}

app.registerExtension({
  name: "jepa-guidance.encoders",
  async setup() {
    for (const end of ["success", "error", "interrupted"]) api.addEventListener(`execution_${end}`, refresh);
    await loadWords(); // before a workflow is opened, for its labels
  },
  nodeCreated(node) {
    const input = MENUS[node.comfyClass];
    if (!input) return;
    const widget = node.widgets.find(({ name }) => name === input);
    widget.options.getOptionLabel = (name) => labelled(name, menuOf(node.comfyClass)[FACTS][name]);
    follow(widget, "callback", () => unsay(node, "notice"));
    node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]);
  },
  loadedGraphNode(node) {
    if (MENUS[node.comfyClass]) settle(node);
  },
});
