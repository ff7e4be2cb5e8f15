// On the guided nodes: the strength scale, what the settings will do, and score and novelty while the sampler runs.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import {
  addElement, filled, follow, followSettings, isLinked, loadWords, nodeOf, valueOf, words,
} from "./page.js";
import { allNodes, nodeOfRun, onStale } from "./runs.js";
import { followGraph, refusedSampler } from "./samplers.js";
import {
  drawScale, drawText, drawTrace, guidedSteps, outcome, pace, palette, SCALE_END, SCALE_HEIGHT, stepAt, strengthAt, traceLines, written,
} from "./chart.js";

const GUIDED = ["JEPAGuidedKSampler", "JEPAGuidance"];
const EVENT = "jepa_guidance.trace"; // host/guidance/report.py sends it
const HEIGHT = 270; // of the chart
const WIDTH = 330; // of a new node, at least
const MARGIN = 10;
const RANGE = ["strength", "start_percent", "end_percent", "steps"];
const USUAL = ["target", "apart"];
const SETTINGS = "JEPAGuidanceSettings";
const TECHNICAL = { criterion: "auto", interval: 1 }; // settings that the panel needs, with their defaults

/** The value of a setting that the panel needs; null if it is not known. */
function setting(node, name) {
  if (name === "interval" && valueOf(node, "preset") === "faithful") return 1;
  if (!isLinked(node, "settings")) return TECHNICAL[name];
  const from = node.getInputNode(node.inputs.findIndex((input) => input.name === "settings"));
  return from?.comfyClass === SETTINGS ? valueOf(from, name) : null;
}

/** How many steps will be guided; null if that is not known. */
function planned(node) {
  const [, start, end, steps] = RANGE.map((name) => valueOf(node, name));
  const interval = setting(node, "interval");
  return [start, end, interval, steps].includes(null) ? null : guidedSteps({ steps, start, end, interval });
}

/** What novelty and the target lack to compare with; null if nothing. host/guidance/usual.py refuses the same. */
function missing(node) {
  const criterion = setting(node, "criterion");
  const [target, apart] = USUAL.map((name) => valueOf(node, name));
  const reference = isLinked(node, "reference");
  if (criterion === "score" && apart) return words.apartOfScore;
  if (["novelty", "both"].includes(criterion) && apart === false && !reference) return words.noReference;
  if (target !== null && target !== "none" && !reference) return words.targetAlone;
  return null;
}

/** What speaks against a strength, or "". */
function doubt(strength) {
  if (strength > SCALE_END) return filled(words.strong, { limit: SCALE_END });
  return strength < 0 ? words.bias : "";
}

/** What the settings will do: {text, warn}. */
function outlook(node) {
  const [strength, start, end, steps] = RANGE.map((name) => valueOf(node, name));
  if (strength === 0) return { text: words.off, warn: true };
  if (start !== null && start === end) return { text: words.empty, warn: true };
  if (start !== null && end !== null && start > end) return { text: words.reversed, warn: true };
  const sampler = refusedSampler(node);
  if (sampler) return { text: filled(words.samplerRefused, { sampler }), warn: true };
  const lacks = missing(node);
  if (lacks) return { text: lacks, warn: true };
  const count = planned(node);
  if (count !== null) {
    if (count === 0) return { text: words.noStep, warn: true };
    const text = filled(words.guides, { count, steps });
    return { text: `${text} ${doubt(strength)}`.trim(), warn: Boolean(doubt(strength)) };
  }
  return { text: doubt(strength), warn: Boolean(doubt(strength)) };
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
  const box = boxOf(canvas);
  drawScale(ctx, { ...box, y: 6 }, { strength: valueOf(node, "strength"), preset: valueOf(node, "preset") }, words, colours);
  let y = SCALE_HEIGHT + 6;
  const { text, warn } = outlook(node);
  const trace = node.jepaTrace;
  const found = trace?.total ? [outcome(trace, words), speed(node)].filter(Boolean).join(" ") : "";
  const paragraphs = warn ? [[text, colours.warn], [found, colours.dim]] : [[`${text} ${found}`.trim(), colours.dim]];
  for (const [line, colour] of paragraphs) if (line) y += drawText(ctx, { ...box, y }, line, colour) + 4;
  const shown = { trace, last: node.jepaLast, hover: node.jepaHover ?? null };
  if (trace?.total) drawTrace(ctx, { ...box, y, height: height - y - 4 }, shown, words, colours);
  else drawText(ctx, { ...box, y }, words.waiting, colours.dim);
  const lines = trace ? traceLines(trace, words).map(spoken) : [];
  canvas.setAttribute("aria-label", [text, found, ...(lines.length ? lines : [words.waiting])].filter(Boolean).join(" "));
}

/** Where the scale and the chart lie on the canvas. */
function boxOf({ clientWidth }) {
  return { x: MARGIN, width: clientWidth - 2 * MARGIN };
}

/** How long a guided step of the run took, and how long the rest will take, as text; "" if that is not known. */
function speed(node) {
  const { guided, left } = pace(node.jepaTrace, node.jepaTimes ?? new Map(), planned(node));
  if (guided === null) return "";
  const seconds = guided < 10 ? guided.toFixed(1) : String(Math.round(guided));
  if (!left || node.jepaEnded || node.jepaTrace.steps.length === node.jepaTrace.total) return filled(words.pace, { seconds });
  const rest = Math.ceil(left);
  const time = `${Math.floor(rest / 60)}:${String(rest % 60).padStart(2, "0")}`;
  return filled(words.paceLeft, { seconds, time });
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
  followPointer(node, canvas);
  addElement(node, { name: "rarity", type: "JEPA_RARITY", element: canvas, width: WIDTH, height: HEIGHT, maxHeight: HEIGHT });
  new ResizeObserver(() => draw(node)).observe(canvas);
  followSettings(node, [...RANGE, ...USUAL, "preset", "sampler_name"], () => draw(node));
  loadWords().then(() => draw(node));
}

/** Dragging on the scale sets the strength; over the chart the values of a step are shown. */
function followPointer(node, canvas) {
  let dragging = false;
  const dial = () => (isLinked(node, "strength") ? null : node.widgets?.find(({ name }) => name === "strength"));
  const turn = (event) => {
    const widget = dial();
    widget.value = strengthAt(event.offsetX, boxOf(canvas));
    widget.callback?.(widget.value, app.canvas, node);
    node.graph?.setDirtyCanvas(true, true);
  };
  const isOnScale = (event) => event.offsetY <= SCALE_HEIGHT && dial();
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !isOnScale(event)) return;
    event.preventDefault();
    event.stopPropagation(); // or the host moves the node
    canvas.setPointerCapture(event.pointerId);
    dragging = true;
    turn(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragging) turn(event);
    const onScale = dragging || isOnScale(event);
    canvas.style.cursor = onScale ? "ew-resize" : "";
    canvas.title = onScale && !dragging ? words?.dial ?? "" : "";
    const trace = node.jepaTrace;
    const isOnChart = trace?.total && event.offsetY > SCALE_HEIGHT && !dragging;
    hover(node, isOnChart ? stepAt(event.offsetX, trace, words, boxOf(canvas)) : null);
  });
  for (const type of ["pointerup", "pointercancel"]) canvas.addEventListener(type, () => { dragging = false; });
  canvas.addEventListener("pointerleave", () => hover(node, null));
}

function hover(node, step) {
  if (step === (node.jepaHover ?? null)) return;
  node.jepaHover = step;
  draw(node);
}

/** Take the chart of a run away; what was guided stays as a shadow. */
function retire(node) {
  if (node.jepaTrace?.steps.some(({ guided }) => guided)) node.jepaLast = node.jepaTrace;
  node.jepaTrace = null;
  node.jepaEnded = false;
  node.jepaTimes = new Map();
}

/** A run has ended early: no time is left. */
function stop() {
  for (const node of allNodes().filter(({ jepaTrace }) => jepaTrace)) {
    node.jepaEnded = true;
    draw(node);
  }
}

/** Show the trace of a run that is over. */
function showResult(node, output) {
  if (!node?.jepaCanvas || !output?.jepa_trace) return;
  node.jepaTrace = output.jepa_trace.at(-1); // of a list the last run, as while it ran
  node.jepaEnded = true;
  draw(node);
}

/** Take in what the server tells of a run, and note when each step ended. */
function take(node, trace) {
  if (node.jepaEnded || (!trace.first && node.jepaTrace?.steps.length > trace.steps.length)) retire(node);
  const before = node.jepaTrace;
  const times = (node.jepaTimes ??= new Map());
  for (const { step } of trace.steps) if (!times.has(step)) times.set(step, performance.now());
  const known = trace.first ? (before?.steps ?? []).slice(0, trace.first) : [];
  node.jepaTrace = { ...trace, steps: [...known, ...trace.steps] };
}

app.registerExtension({
  name: "jepa-guidance.rarity",
  setup() {
    onStale((node) => {
      if (!node.jepaCanvas) return;
      retire(node);
      draw(node);
    });
    followGraph(GUIDED, draw); // samplers and links may be those of other nodes
    for (const type of ["execution_interrupted", "execution_error"]) api.addEventListener(type, stop);
    api.addEventListener(EVENT, ({ detail: { node: id, trace } }) => {
      const node = nodeOfRun(id);
      if (!node?.jepaCanvas) return;
      take(node, trace);
      draw(node);
    });
  },
  nodeCreated(node) {
    if (node.comfyClass === SETTINGS) {
      const guided = () => (node.graph?.nodes ?? []).filter((one) => one.jepaCanvas);
      followSettings(node, Object.keys(TECHNICAL), () => guided().forEach(draw));
    }
    if (!GUIDED.includes(node.comfyClass)) return;
    addChart(node);
    follow(node, "onExecuted", (output) => showResult(node, output));
  },
  // a workflow is opened again, from another tab of the page or from the history
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) showResult(nodeOf(id), output);
  },
});
