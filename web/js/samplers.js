// Which samplers this pack cannot follow, on the node itself and after a node that patches MODEL.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { valueOf } from "./page.js";

const LISTED_BY = "JEPAGuidedKSampler"; // nodes/sampling_inputs.py notes the samplers at each such input
const CARRIERS = ["MODEL", "GUIDER"]; // what takes a patch to a sampler

function refused() {
  const { required } = LiteGraph.registered_node_types[LISTED_BY].nodeData.input;
  return required.sampler_name[1].jepa_unguided;
}

/** The names of the samplers that use what a node gives out. */
function namesAfter(node, seen = new Set()) {
  const names = [];
  node.outputs.forEach(({ type }, slot) => {
    if (!CARRIERS.includes(type)) return;
    for (const user of node.getOutputNodes(slot) ?? []) {
      if (seen.has(user)) continue;
      seen.add(user);
      const linked = user.inputs.findIndex(({ type: kind }, at) => kind === "SAMPLER" && user.isInputConnected(at));
      names.push(valueOf((linked < 0 ? null : user.getInputNode(linked)) ?? user, "sampler_name"));
      names.push(...namesAfter(user, seen));
    }
  });
  return names;
}

/** A sampler that is chosen here, or behind a node without a choice of its own, and whose steps cannot be followed; else null. */
export function refusedSampler(node) {
  const chooses = node.inputs.some(({ name }) => name === "sampler_name");
  const names = chooses ? [valueOf(node, "sampler_name")] : namesAfter(node);
  return names.find((name) => refused().includes(name)) ?? null;
}

/** Call `after` with every node of these types when something in the graph has changed. */
export function followGraph(types, after) {
  const call = () => app.rootGraph.nodes.filter(({ comfyClass }) => types.includes(comfyClass)).forEach(after);
  api.addEventListener("graphChanged", () => {
    call();
    setTimeout(call, 500); // other packs note their links when the graph is drawn
  });
}
