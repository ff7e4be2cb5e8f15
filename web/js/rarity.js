// On the guided nodes: the strength scale, what the settings will do, and score and novelty while the sampler runs.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import {
  addElement, filled, follow, followSettings, isLinked, loadWords, nodeOf, valueOf, words,
} from "./page.js";
import { onStale } from "./runs.js";
import { followGraph, refusedSampler } from "./samplers.js";
import { drawScale, drawText, drawTrace, guidedSteps, outcome, palette, traceLines, written } from "./chart.js";

const GUIDED = ["JEPAGuidedKSampler", "JEPAGuidance"];
const EVENT = "jepa_guidance.trace"; // host/guidance/report.py sends it
const HEIGHT = 270; // of the chart
const WIDTH = 330; // of a new node, at least
const RANGE = ["strength", "start_percent", "end_percent", "interval", "steps"];
const USUAL = ["criterion", "target", "apart"];

/** What novelty and the target lack to compare with; null if nothing. host/guidance/usual.py refuses the same. */
function missing(node) {
  const [criterion, target, apart] = USUAL.map((name) => valueOf(node, name));
  const reference = isLinked(node, "reference");
  if (criterion === "score" && apart) return words.apartOfScore;
  if (["novelty", "both"].includes(criterion) && apart === false && !reference) return words.noReference;
  if (target !== null && target !== "none" && !reference) return words.targetAlone;
  return null;
}

/** What the settings will do: {text, warn}. */
function outlook(node) {
  const [strength, start, end, interval, steps] = RANGE.map((name) => valueOf(node, name));
  if (strength === 0) return { text: words.off, warn: true };
  if (start !== null && start === end) return { text: words.empty, warn: true };
  if (start !== null && end !== null && start > end) return { text: words.reversed, warn: true };
  const sampler = refusedSampler(node);
  if (sampler) return { text: filled(words.samplerRefused, { sampler }), warn: true };
  const lacks = missing(node);
  if (lacks) return { text: lacks, warn: true };
  if (![start, end, interval, steps].includes(null)) {
    const count = guidedSteps({ steps, start, end, interval });
    if (count === 0) return { text: words.noStep, warn: true };
    const text = filled(words.guides, { count, steps });
    return { text: strength < 0 ? `${text} ${words.bias}` : text, warn: strength < 0 };
  }
  return strength < 0 ? { text: words.bias, warn: true } : { text: "", warn: false };
}

function draw(node) {
  const canvas = node.jepaCanvas;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !words) return;
  const scale = Math.max(window.devicePixelRatio, 1) * 2; // sharp when the graph is zoomed in
  if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
  if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
  const ctx = canvas.getContext("2d");
  ctx.setTransform(scale, 0, 0, scale, 0, 0);
  ctx.clearRect(0, 0, width, height);
  const colours = palette(getComputedStyle(canvas).backgroundColor);
  const box = { x: 10, width: width - 20 };
  drawScale(ctx, { ...box, y: 6 }, valueOf(node, "strength"), words, colours);
  let y = 52;
  const { text, warn } = outlook(node);
  const trace = node.jepaTrace;
  const found = trace?.total ? outcome(trace, words) : "";
  const paragraphs = warn ? [[text, colours.warn], [found, colours.dim]] : [[`${text} ${found}`.trim(), colours.dim]];
  for (const [line, colour] of paragraphs) if (line) y += drawText(ctx, { ...box, y }, line, colour) + 4;
  if (trace?.total) drawTrace(ctx, { ...box, y, height: height - y - 4 }, trace, words, colours);
  else drawText(ctx, { ...box, y }, words.waiting, colours.dim);
  const lines = trace ? traceLines(trace, words).map(spoken) : [];
  canvas.setAttribute("aria-label", [text, found, ...(lines.length ? lines : [words.waiting])].filter(Boolean).join(" "));
}

/** A line of the chart as text. */
function spoken({ label, points }) {
  const values = written(points.map(({ value }) => value));
  return `${label}; ${points.map(({ step }, index) => `${step}: ${values[index]}`).join(", ")}.`;
}

function addChart(node) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  Object.assign(canvas.style, { width: "100%", height: "100%", background: "var(--comfy-input-bg)", borderRadius: "6px" });
  node.jepaCanvas = canvas;
  addElement(node, { name: "rarity", type: "JEPA_RARITY", element: canvas, width: WIDTH, height: HEIGHT, maxHeight: HEIGHT });
  new ResizeObserver(() => draw(node)).observe(canvas);
  followSettings(node, [...RANGE, ...USUAL, "sampler_name"], () => draw(node));
  loadWords().then(() => draw(node));
}

app.registerExtension({
  name: "jepa-guidance.rarity",
  setup() {
    onStale((node) => {
      if (!node.jepaCanvas) return;
      node.jepaTrace = null;
      draw(node);
    });
    followGraph(["JEPAGuidance"], draw); // whose samplers are other nodes
    api.addEventListener(EVENT, ({ detail: { node: id, trace } }) => {
      const node = nodeOf(id);
      if (!node?.jepaCanvas) return;
      const known = trace.first ? (node.jepaTrace?.steps ?? []).slice(0, trace.first) : [];
      node.jepaTrace = { ...trace, steps: [...known, ...trace.steps] };
      draw(node);
    });
  },
  nodeCreated(node) {
    if (!GUIDED.includes(node.comfyClass)) return;
    addChart(node);
    follow(node, "onExecuted", ({ jepa_trace: shown }) => {
      if (shown) node.jepaTrace = shown.at(-1);  // of a list the last run, as while it ran
      draw(node);
    });
  },
});
