// What the panels of several nodes need of the host's page: nodes, widgets, links, and texts in the page's language.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

export let words = null; // from locales/*/main.json; null until they are loaded
let loading = null;

/** Load the texts, once. */
export function loadWords() {
  return (loading ??= fetchWords());
}

async function fetchWords() {
  const all = await (await api.fetchApi("/i18n")).json();
  const language = app.extensionManager.setting.get("Comfy.Locale");
  words = { ...all.en?.jepaGuidance, ...all[language]?.jepaGuidance };
}

/** A text with its {places} filled in. */
export function filled(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** The node with an id such as "12" or, inside a subgraph, "5:12"; the page's outputs have the subgraph's own id for the 5. */
export function nodeOf(id) {
  let graph = app.rootGraph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part));
    graph = graph?.subgraphs?.get(part) ?? node?.subgraph;
  }
  return node;
}

/** Whether a node's input is linked, or will be in a run: by a link that another pack, Use Everywhere, makes then. */
export function isLinked(node, name) {
  const index = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return index >= 0 && (node.isInputConnected(index) || isBroadcastTo(node, index));
}

/** Whether Use Everywhere is here and sends something to an input; it lists that with the graph as it draws it. */
function isBroadcastTo(node, index) {
  const listed = node.graph?.extra?.ue_links;
  if (!Array.isArray(listed) || !app.extensions.some(({ name }) => name === "cg.customnodes.use_everywhere")) return false;
  return listed.some((link) => String(link?.downstream) === String(node.id) && link.downstream_slot === index);
}

/** A widget's value; null if the input is linked. */
export function valueOf(node, name) {
  if (isLinked(node, name)) return null;
  return node.widgets?.find((widget) => widget.name === name)?.value ?? null;
}

/** Call `after` after a method of the host's node or widget. */
export function follow(owner, method, after) {
  const before = owner[method];
  owner[method] = function (...args) {
    const result = before?.apply(this, args);
    after(...args);
    return result;
  };
}

/** Call `after` when a node is loaded, its links change, or one of these widgets is set. */
export function followSettings(node, names, after) {
  follow(node, "onConfigure", after);
  follow(node, "onConnectionsChange", after);
  for (const widget of node.widgets.filter(({ name }) => names.includes(name))) follow(widget, "callback", after);
}

/** Let a wheel zoom the graph as beside the node, unless a list can scroll there. The host's newer renderer does so itself. */
function passOn(event) {
  const list = event.target.closest("[data-capture-wheel]");
  const scrolls = list && list.scrollHeight > list.clientHeight && !event.ctrlKey; // with Ctrl, a browser would zoom the page
  if (!LiteGraph.vueNodesMode && !scrolls) app.canvas.processMouseWheel(event);
}

/** Add an element to a node, at least `height` high; the node becomes at least `width` wide. */
export function addElement(node, { name, type, element, width, height, maxHeight }) {
  const widget = node.addDOMWidget(name, type, element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true, // the page's panel of parameters would take the element and its width
    getMinHeight: () => height,
    getMaxHeight: () => maxHeight,
  });
  widget.serialize = false;
  element.addEventListener("wheel", passOn, { passive: false });
  const [, needed] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], needed)]);
}
