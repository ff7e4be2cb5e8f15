// How runs begin and end: an error of this pack is said on its node, at the input that it is about, and so is a cancelled run.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { say, unsay, unsayAll } from "./callouts.js";
import { filled, follow, loadWords, nodeOf, words } from "./page.js";

const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname).match(/\/extensions\/([^/]+)\//)[1];
const LONGEST = 400; // of a sentence on a node, in characters
const BRIEF = 140; // in a toast
const TOLD = 4; // characters of a value that an error tells, at least
const TOAST_MS = 12000;

export const isOurs = (node) => node.constructor.nodeData?.python_module === `custom_nodes.${FOLDER}`;

/** The input that an error is about: the first that it names, else the one whose value it tells; null if it does neither. */
export function inputOf(message, inputs) {
  const at = (text) => new RegExp(`(?<![\\w-])${text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}(?![\\w-])`).exec(message)?.index ?? Infinity;
  const first = (texts) => {
    const places = texts.map((text) => (text ? at(text) : Infinity));
    const nearest = Math.min(...places);
    return nearest === Infinity ? null : inputs[places.indexOf(nearest)].name;
  };
  const told = ({ value }) => (typeof value === "string" && value.length >= TOLD ? value : null);
  return first(inputs.map(({ name }) => name)) ?? first(inputs.map(told));
}

/** The text, cut at a space where it is too long. */
export function cut(text, most) {
  return text.length <= most ? text : `${text.slice(0, most).replace(/\s+\S*$/, "")} \u2026`;
}

/** The nodes of this pack that a node's MODEL has come through, the node itself included, the nearest first. */
function guidesOf(node) {
  const found = [];
  const seen = new Set();
  for (let one = node; one && !seen.has(one); ) {
    seen.add(one);
    if (isOurs(one)) found.push(one);
    const slot = one.inputs?.findIndex(({ type, link }) => type === "MODEL" && link != null) ?? -1;
    one = slot < 0 ? null : one.getInputNode(slot);
  }
  return found;
}

/** The node of this pack that an event of a run is about; null if it is none. */
function concerned({ node_id: id, node_type: type }) {
  const node = nodeOf(id);
  return node?.comfyClass === type ? guidesOf(node)[0] : null; // of another type: in another workflow
}

/** Say an error on its node, and briefly in the corner. */
function complain(node, message) {
  const text = message.trim();
  const values = new Map(node.widgets?.map(({ name, value }) => [name, value]));
  const input = inputOf(text, (node.inputs ?? []).map(({ name }) => ({ name, value: values.get(name) })));
  say(node, { kind: "error", text: cut(text, LONGEST), input, close: words.close });
  app.extensionManager.toast.add({ severity: "error", summary: node.title, detail: cut(text, BRIEF), life: TOAST_MS });
}

/** Whether the last line of Python that ran is this pack's; the host names files by their paths. */
function raisedHere(traceback) {
  return (traceback?.at(-1) ?? "").replaceAll("\\", "/").includes(`/${FOLDER}/`);
}

async function onError({ detail }) {
  const node = concerned(detail);
  if (!node || (!isOurs(nodeOf(detail.node_id)) && !raisedHere(detail.traceback))) return;
  await loadWords();
  complain(node, detail.exception_message);
}

async function onCancelled({ detail }) {
  const node = concerned(detail);
  if (!node || node.jepaPicker) return; // it says so itself
  await loadWords();
  say(node, { kind: "note", text: words.cancelled, close: words.close });
}

/** Say what this pack's checks before a run have refused; the host marks their inputs. */
async function onRefused(errors) {
  await loadWords();
  for (const [id, { errors: own }] of Object.entries(errors ?? {})) {
    const node = nodeOf(id);
    const checked = own.find(({ type }) => type === "custom_validation_failed");
    if (!node || !checked || !isOurs(node)) continue;
    const { input_name: input } = checked.extra_info;
    complain(node, checked.details.replace(`${input} - `, ""));
  }
}

/** Learn what the server refuses: the host has no event for it. */
function watchQueue() {
  const queue = api.queuePrompt;
  api.queuePrompt = async function (...args) {
    unsayAll("error", "note");
    try {
      const answer = await queue.apply(this, args);
      onRefused(answer.node_errors);
      return answer;
    } catch (error) {
      onRefused(error.response?.node_errors);
      throw error;
    }
  };
}

/** All nodes of the workflow, those in subgraphs too. */
function allNodes() {
  const root = app.rootGraph ?? app.graph;
  return [root, ...(root.subgraphs?.values() ?? [])].flatMap(({ nodes }) => nodes);
}

/** Call `clear` with nodes whose results a run makes anew: as it begins, and again where a node begins. */
export function onStale(clear) {
  api.addEventListener("execution_cached", ({ detail }) => {
    const kept = new Set(detail.nodes.map(nodeOf));
    const anew = allNodes().filter((node) => node.mode === 0 && !kept.has(node));
    new Set(anew.flatMap(guidesOf)).forEach(clear);
  });
  api.addEventListener("executing", ({ detail: id }) => {
    const node = id === null ? null : nodeOf(id);
    if (node) guidesOf(node).forEach(clear);
  });
}

app.registerExtension({
  name: "jepa-guidance.runs",
  setup() {
    watchQueue();
    api.addEventListener("execution_start", () => unsayAll("error", "note"));
    api.addEventListener("execution_error", onError);
    api.addEventListener("execution_interrupted", onCancelled);
  },
  nodeCreated(node) {
    if (!isOurs(node)) return;
    const clear = () => unsay(node, "error", "note");
    follow(node, "onConnectionsChange", clear);
    for (const widget of node.widgets ?? []) follow(widget, "callback", clear);
  },
});
