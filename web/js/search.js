// On the search: what the settings will do, and the candidates with their scores while the sampler runs.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import {
  addElement, filled, follow, followSettings, isLinked, loadWords, nodeOf, valueOf, words,
} from "./page.js";
import { nodeOfRun, onStale } from "./runs.js";
import { refusedSampler } from "./samplers.js";
import { looksOf, planLooks, roundEven, stepsTaken, workShare } from "./search_plan.js";
import { spoken, Strip, STYLE, withPictures } from "./strip.js";

const SEARCH = "JEPARareSearch";
const EVENT = "jepa_guidance.search"; // host/search/report.py sends it
const HEIGHT = 340; // of the panel, at least
const WIDTH = 360; // of a new node, at least
const MARGIN = 10; // the host's, on each side
const SETTINGS = [
  "candidates", "count", "looks", "steps", "by", "variety", "floor_kind", "floor", "start_at_step", "end_at_step",
];

/** What the node would refuse, as text; null if nothing. nodes/rare_search.py refuses the same. */
function refusal(node, { looks, steps, by, floor_kind, floor, start_at_step, end_at_step }) {
  const sampler = refusedSampler(node);
  if (sampler) return filled(words.samplerRefused, { sampler });
  if (looks !== null && looksOf(looks).wrong) return words[looksOf(looks).wrong];
  const measures = ["prompt_fit", "quality"].filter((name) => isLinked(node, name));
  if (measures.length > 1) return words.twoQualities;
  if (floor_kind !== null && floor_kind !== "none" && !measures.length) return words.noQuality;
  if (floor_kind === "percentile" && floor !== null && (floor < 0 || floor > 100)) return words.noPercentile;
  if (by === "novelty" && !isLinked(node, "reference")) return words.searchNoReference;
  if (![steps, start_at_step, end_at_step].includes(null) && start_at_step >= Math.min(end_at_step, steps)) {
    return words.searchNoStep;
  }
  return null;
}

/** What the settings will do: {text, warn}. */
function outlook(node) {
  const settings = Object.fromEntries(SETTINGS.map((name) => [name, valueOf(node, name)]));
  const refused = refusal(node, settings);
  if (refused) return { text: refused, warn: true };
  const { candidates, looks, variety, start_at_step: start, end_at_step: end } = settings;
  if ([candidates, settings.count, looks, variety, settings.steps, start, end].includes(null)) return { text: "", warn: false };
  if (candidates === 1) return { text: words.searchOne, warn: false };
  if (settings.count > candidates) return { text: filled(words.countAbove, { count: settings.count, candidates }), warn: true };
  const { count } = settings;
  const steps = stepsTaken({ steps: settings.steps, start, end, variety });
  const plan = planLooks({ looks: looksOf(looks).looks, steps, candidates, count });
  if (!plan.length) return { text: filled(words.searchWhole, { candidates, count }), warn: false };
  const parts = plan.map(([step, left], i) => filled(i ? words.searchLater : words.searchLook, { left, step: step + 1 }));
  const share = workShare(plan, { steps, candidates });
  const text = filled(words.searchPlan, { candidates, looks: parts.join(words.comma), steps, share });
  const fewer = count < plan.at(-1)[1];
  return { text: fewer ? `${text} ${filled(words.searchKeeps, { count })}` : text, warn: false };
}

/** How far a search has come. */
function progress({ candidates, done, steps, kept, rows, calls }) {
  const total = candidates.length;
  if (kept.length) {
    const share = roundEven((100 * rows) / (calls * total));
    return filled(words.searchKept, { count: kept.length, candidates: total, share });
  }
  return filled(words.searchStep, { done, steps, left: candidates.filter(({ dropped }) => !dropped).length, candidates: total });
}

function show(node) {
  if (!words) return;
  const records = node.jepaSearches;
  node.jepaStrip.say(outlook(node));
  node.jepaStrip.show(records, {
    resting: records.length ? progress(records.at(-1)) : words.searchWaiting,
    label: (number) => [words.searchList, records.length > 1 ? `${number + 1} / ${records.length}` : ""].join(" ").trim(),
    speak: (one, record) => spoken(one, record, words, filled),
    qualityText: (quality) => filled(words.qualityBrief, { quality }),
  });
}

function addStrip(node) {
  const strip = new Strip();
  // without regard to its content, which scrolls
  Object.assign(strip.element.style, { width: "100%", contain: "size", containIntrinsicHeight: `${HEIGHT - 2 * MARGIN}px` });
  node.jepaStrip = strip;
  node.jepaSearches = [];
  addElement(node, { name: "search", type: "JEPA_SEARCH", element: strip.element, width: WIDTH, height: HEIGHT });
  followSettings(node, [...SETTINGS, "sampler_name"], () => show(node));
  loadWords().then(() => show(node));
}

/** Show what a node gave out, if it is a search. */
function showResult(node, output) {
  if (!node?.jepaStrip || !output?.jepa_search) return;
  node.jepaSearches = output.jepa_search;
  show(node);
}

app.registerExtension({
  name: "jepa-guidance.search",
  setup() {
    document.head.appendChild(document.createElement("style")).textContent = STYLE;
    onStale((node) => {
      if (!node.jepaStrip) return;
      node.jepaSearches = [];
      show(node);
    });
    api.addEventListener(EVENT, ({ detail: { node: id, search } }) => {
      const node = nodeOfRun(id);
      if (!node?.jepaStrip) return;
      node.jepaSearches = [withPictures(search, node.jepaSearches[0])];
      show(node);
    });
  },
  nodeCreated(node) {
    if (node.comfyClass !== SEARCH) return;
    addStrip(node);
    follow(node, "onExecuted", (output) => showResult(node, output));
  },
  // a workflow is opened again, from another tab of the page or from the history
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) showResult(nodeOf(id), output);
  },
});
