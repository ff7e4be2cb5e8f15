// Opens graphs that were saved when the guiding nodes had their technical inputs on them: nodes/old_form.py says what became
// of each. What is not at its default goes to a JEPA Guidance Settings node below the guiding node.

import { app } from "../../../scripts/app.js";

const SETTINGS = "JEPAGuidanceSettings";
const KIND = "JEPA_GUIDANCE_SETTINGS";
// guiding node -> how many widget values come before its strength
const BEFORE = { JEPAGuidedKSampler: 7, JEPAStrengthStrip: 7, JEPAGuidance: 0 };
const FEWEST = 13; // values of the first graphs, from strength on
const FACE = ["strength", "preset", "start_percent", "end_percent", "target", "apart"]; // in the order of today's widgets
const [ROW, GAP, HEAD] = [24, 50, 60]; // pixels of a widget, between nodes, and of a node without widgets

/** A node's inputs as the server declares them: [[name, options], ...]. */
function declared(type) {
  const { required, optional } = LiteGraph.registered_node_types[type].nodeData.input;
  return Object.entries({ ...required, ...optional }).map(([name, [, options]]) => [name, options]);
}

/** Whether a saved node has the old form: start_percent after the strength, where today's has the preset, and no less than
 * the first graphs had. */
function isOld({ type, widgets_values: values }) {
  if (!Object.hasOwn(BEFORE, type) || !Array.isArray(values)) return false;
  return values.length >= BEFORE[type] + FEWEST && typeof values[BEFORE[type] + 1] === "number";
}

/** The values of the old widgets by name, and the preset of today in place of the old one. */
function oldValues({ type, widgets_values: values }, { order, defaults, presets }) {
  const saved = values.slice(BEFORE[type], BEFORE[type] + order.length);
  const named = { ...defaults, ...Object.fromEntries(saved.map((value, index) => [order[index], value])) };
  const [preset, stoodFor] = Object.hasOwn(presets, named.preset) ? presets[named.preset] : [named.preset, {}];
  return { ...named, ...stoodFor, preset };
}

/** One way to read and write links, which are lists or objects. */
function link(saved) {
  if (!Array.isArray(saved)) return saved;
  const places = ["id", "origin_id", "origin_slot", "target_id", "target_slot", "type"];
  const properties = places.map((name, index) => [name, {
    get: () => saved[index],
    set: (value) => { saved[index] = value; },
  }]);
  return Object.defineProperties({}, Object.fromEntries(properties));
}

/** Free ids of nodes and links in a saved workflow, whose subgraphs share them. */
class Ids {
  constructor(graphs) {
    this.graphs = graphs;
    this.node = Math.max(0, ...graphs.flatMap(({ nodes }) => nodes.map(({ id }) => Number(id) || 0)));
    this.link = Math.max(0, ...graphs.flatMap(({ links }) => (links ?? []).map((one) => link(one).id)));
  }

  /** Write the last ids into the workflow, in either of its two forms. */
  note() {
    for (const graph of this.graphs) {
      if (graph.state) Object.assign(graph.state, { lastNodeId: this.node, lastLinkId: this.link });
      if ("last_node_id" in graph) Object.assign(graph, { last_node_id: this.node, last_link_id: this.link });
    }
  }
}

/** Give a node of the old form today's widgets and, where it needs them, settings. */
function modernise(graph, node, ids) {
  const names = declared(node.type);
  const form = names.find(([name]) => name === "settings")[1].jepa_old_form;
  const values = oldValues(node, form);
  const moved = declared(SETTINGS);
  const counts = ([name, { default: usual }]) =>
    values[name] !== usual && (values.preset === "custom" || !form.set.includes(name));
  const own = new Set(moved.map(([name]) => name));
  const linked = (node.inputs ?? []).filter(({ name, link: number }) => own.has(name) && number != null);
  const before = node.widgets_values.slice(0, BEFORE[node.type]);
  node.widgets_values = [...before, ...FACE.map((name) => values[name])];
  node.inputs = (node.inputs ?? []).filter(({ name }) => !own.has(name));
  const height = Math.min(node.size[1], Math.max(node.size[1] - ROW * own.size, HEAD + 270 + ROW * names.length));
  node.size = [node.size[0], height];
  const socket = { name: "settings", type: KIND, shape: 7, link: null };
  node.inputs.push(socket);
  const places = names.map(([name]) => name);
  const rank = ({ name, widget }) => places.indexOf(name) + (widget ? places.length : 0);
  node.inputs.sort((one, other) => rank(one) - rank(other));
  if (linked.length || moved.some(counts)) {
    const settings = addSettings(graph, node, ids, moved.map(([name]) => values[name]), linked);
    const number = (ids.link += 1);
    socket.link = number;
    settings.outputs[0].links.push(number);
    const slot = node.inputs.indexOf(socket);
    graph.links.push(
      graph.links.some((one) => !Array.isArray(one))
        ? { id: number, origin_id: settings.id, origin_slot: 0, target_id: node.id, target_slot: slot, type: KIND }
        : [number, settings.id, 0, node.id, slot, KIND],
    );
  }
  for (const saved of graph.links.map(link)) {
    const slot = node.inputs.findIndex((input) => input.link === saved.id);
    if (slot >= 0) saved.target_slot = slot;
  }
}

/** Add a settings node below a node, with the links that the values had there. */
function addSettings(graph, node, ids, values, linked) {
  const [[x, y], [width, height]] = [node.pos, node.size].map((pair) => [pair[0], pair[1]]);
  const settings = {
    id: (ids.node += 1),
    type: SETTINGS,
    pos: [x, y + height + GAP],
    size: [width, HEAD + ROW * values.length],
    flags: {},
    order: 0,
    mode: node.mode ?? 0,
    inputs: linked,
    outputs: [{ name: "settings", type: KIND, links: [] }],
    properties: {},
    widgets_values: values,
  };
  for (const saved of graph.links.map(link)) {
    const slot = linked.findIndex((input) => input.link === saved.id);
    if (slot >= 0) Object.assign(saved, { target_id: settings.id, target_slot: slot });
  }
  graph.nodes.push(settings);
  return settings;
}

app.registerExtension({
  name: "jepa-guidance.oldForm",
  // Nodes that come into a graph by other ways (inserted, pasted, of a published subgraph) get no settings node beside them,
  // but their values stand where they belong.
  beforeRegisterNodeDef(type, { name }) {
    if (!Object.hasOwn(BEFORE, name)) return;
    const { configure } = type.prototype;
    type.prototype.configure = function (saved) {
      const node = { ...saved, type: name };
      if (!isOld(node)) return configure.call(this, saved);
      const values = oldValues(node, declared(name).find(([input]) => input === "settings")[1].jepa_old_form);
      const before = node.widgets_values.slice(0, BEFORE[name]);
      return configure.call(this, { ...saved, widgets_values: [...before, ...FACE.map((one) => values[one])] });
    };
  },
  beforeConfigureGraph(workflow) {
    const graphs = [workflow, ...(workflow.definitions?.subgraphs ?? [])].filter(({ nodes }) => nodes);
    const old = graphs.flatMap((graph) => graph.nodes.filter(isOld).map((node) => [graph, node]));
    if (!old.length) return;
    const ids = new Ids(graphs);
    for (const [graph, node] of old) {
      graph.links ??= [];
      modernise(graph, node, ids);
    }
    ids.note();
  },
});
