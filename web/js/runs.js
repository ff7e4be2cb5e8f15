// How runs begin and end: an error of this pack is said on its node, at the input that it is about, and so is a cancelled run.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { say, unsay, unsayAll } from "./callouts.js";
import { follow, loadWords, nodeOf, words } from "./page.js";

const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname).match(/\/extensions\/([^/]+)\//)[1];
const LONGEST = 400; // of a sentence on a node, in characters
const BRIEF = 140; // in a toast
const TOAST_MS = 12000;
const STYLE = ".jepa-toast { margin-top: var(--jepa-toast) !important } .jepa-toast ~ .jepa-toast { margin-top: 0 !important }";

const workflows = new Map(); // ids of the workflows that runs were queued from on this page, by the runs' ids
let running = null; // the id of the run that goes on

export const isOurs = (node) => node.constructor.nodeData?.python_module === `custom_nodes.${FOLDER}`;

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/** The input that an error is about: the one that it begins with, whose value it tells, or that it names; else null.
 *  A plain word, such as the name "steps" or the value "none", may mean something else inside a sentence. */
export function inputOf(message, inputs) {
  const says = (text) => new RegExp(`(?<![\\w-])${escaped(text)}(?![\\w-])`).test(message);
  const begins = ({ name }) => new RegExp(`^((the|this|an?) )?${escaped(name)}(?![\\w-])`, "i").test(message);
  const tells = ({ value }) =>
    typeof value === "string" && value !== "" && (message.includes(`'${value}'`) || (/[\d_./-]/.test(value) && says(value)));
  const names = ({ name }) => name.includes("_") && says(name);
  return (inputs.find(begins) ?? inputs.find(tells) ?? inputs.find(names))?.name ?? null;
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
    const slot = one.inputs?.findIndex(({ type }, at) => type === "MODEL" && one.isInputConnected(at)) ?? -1;
    one = slot < 0 ? null : one.getInputNode(slot);
  }
  return found;
}

/** Whether a run is one of the workflow on the page, as far as is known: nodes of another workflow may have the same ids. */
function isShown(run) {
  return (workflows.get(run) ?? app.rootGraph.id) === app.rootGraph.id;
}

/** The node that an event of a run is about; null if its workflow is not the one on the page. */
export function nodeOfRun(id, run = running) {
  return id !== null && isShown(run) ? nodeOf(id) : null;
}

/** The node of this pack that an event of a run is about; null if it is none. */
function concerned({ node_id: id, node_type: type, prompt_id: run }) {
  const node = nodeOfRun(id, run);
  return node?.comfyClass === type ? guidesOf(node)[0] : null; // of another type: in another workflow
}

/** Say an error on its node, and on the one of the outermost graph that holds it: what is inside a subgraph is not seen. */
function complain(node, text, id) {
  const values = new Map(node.widgets?.map(({ name, value }) => [name, value]));
  const input = inputOf(text, (node.inputs ?? []).map(({ name }) => ({ name, value: values.get(name) })));
  say(node, { kind: "error", text: cut(text, LONGEST), input, close: words.close });
  const outer = nodeOf(String(id).split(":")[0]);
  if (!outer || outer.graph === node.graph) return;
  say(outer, { kind: "error", text: cut(`${node.title}: ${text}`, LONGEST), close: words.close });
}

/** Keep messages in the corner below what the host says there, which would lie over them. */
function makeRoom() {
  const lower = document.querySelector("[data-testid=error-overlay]")?.getBoundingClientRect().bottom ?? 0;
  document.documentElement.style.setProperty("--jepa-toast", `${lower}px`);
}

/** Say it briefly in the corner too. */
function toast(node, text) {
  const message = { severity: "error", summary: node.title, detail: cut(text, BRIEF), life: TOAST_MS };
  app.extensionManager.toast.add({ ...message, styleClass: "jepa-toast" });
  const timer = setInterval(makeRoom, 200); // the host's comes and goes
  setTimeout(() => clearInterval(timer), TOAST_MS);
}

/** Whether the last line of Python that ran is this pack's; the host names files by their paths. */
function raisedHere(traceback) {
  return (traceback?.at(-1) ?? "").replaceAll("\\", "/").includes(`/${FOLDER}/`);
}

async function onError({ detail }) {
  const node = concerned(detail);
  if (!node || (!isOurs(nodeOf(detail.node_id)) && !raisedHere(detail.traceback))) return;
  await loadWords();
  const text = detail.exception_message.trim();
  complain(node, text, detail.node_id);
  toast(node, text);
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
  const refused = [];
  for (const [id, { errors: found }] of Object.entries(errors ?? {})) {
    const node = nodeOf(id);
    const own = found.find(({ type }) => type === "custom_validation_failed");
    if (!node || !own || !isOurs(node)) continue;
    const text = own.details.replace(`${own.extra_info.input_name} - `, "");
    complain(node, text, id);
    refused.push([node, text]);
  }
  if (refused.length) toast(...refused[0]);
}

/** Learn what the server refuses: the host has no event for it. */
function watchQueue() {
  const queue = api.queuePrompt;
  api.queuePrompt = async function (...args) {
    unsayAll("error", "note"); // not when the run starts: what is not refused starts, and the answer may come later
    try {
      const answer = await queue.apply(this, args);
      workflows.set(answer.prompt_id, args[1]?.workflow?.id);
      onRefused(answer.node_errors);
      return answer;
    } catch (error) {
      onRefused(error.response?.node_errors);
      throw error;
    }
  };
}

/** All nodes of the workflow, those in subgraphs too. */
export function allNodes() {
  const root = app.rootGraph;
  return [root, ...(root.subgraphs?.values() ?? [])].flatMap(({ nodes }) => nodes);
}

/** Call `clear` with nodes whose results a run makes anew: as it begins, and again where a node begins. */
export function onStale(clear) {
  api.addEventListener("execution_cached", ({ detail }) => {
    if (!isShown(detail.prompt_id)) return;
    const kept = new Set(detail.nodes.map(nodeOf));
    const anew = allNodes().filter((node) => node.mode === 0 && !kept.has(node));
    new Set(anew.flatMap(guidesOf)).forEach(clear);
  });
  api.addEventListener("executing", ({ detail: id }) => {
    const node = nodeOfRun(id);
    if (node) guidesOf(node).forEach(clear);
  });
}

app.registerExtension({
  name: "jepa-guidance.runs",
  setup() {
    document.head.appendChild(document.createElement("style")).textContent = STYLE;
    watchQueue();
    api.addEventListener("execution_start", ({ detail }) => { running = detail.prompt_id; });
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
