// On the pick: the images sorted by rarity while the run waits, a click to keep, and what was kept.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { addElement, filled, follow, loadWords, nodeOf, words } from "./page.js";
import { Picker, spoken, STYLE } from "./picker.js";
import { nodeOfRun } from "./runs.js";

const PICK = "JEPAPickImages";
const EVENT = "jepa_guidance.pick"; // host/comfy/picks.py sends it
const ROUTE = "/jepa_guidance/picks"; // and answers there
const HEIGHT = 620; // of the panel, at least
const WIDTH = 480; // of a new node, at least
const MARGIN = 10; // the host's, on each side
const MEMORY = "jepa-guidance.pick."; // in the tab's storage, before the id of a pick: what is picked so far
// how a pick ended, as host/comfy/picks.py and host/scoring/by_eye.py name it
const ENDS = {
  picked: "pickKept", elsewhere: "pickElsewhere", late: "pickLate", stopped: "pickStopped", cancelled: "pickCancelled",
  unasked: "pickUnasked", over: "pickOver",
};

const waiting = new Map(); // the picks that wait, of all workflows, by id
const asked = new Set(); // ids of picks that this page has shown while they waited
const answered = new Set(); // ids of picks that this page has answered

/** What the server sent, with addresses of the pictures. */
function received(record) {
  const images = record.images.map((one) => ({
    ...one, source: api.apiURL(`/view?${new URLSearchParams(one.picture)}`),
  }));
  const kept = JSON.parse(sessionStorage.getItem(MEMORY + record.id) ?? "[]"); // clicked before a reload
  return { kept, ...record, images, until: performance.now() + 1000 * (record.left ?? 0) };
}

/** The node of a pick, if its workflow is the one on the page. */
function placeOf(record) {
  const graph = app.rootGraph;
  if (record.workflow !== null && graph?.id && record.workflow !== graph.id) return null;
  const node = nodeOf(record.node);
  return node?.jepaPicker ? node : null;
}

function timeLeft({ until }) {
  const seconds = Math.max(0, Math.ceil((until - performance.now()) / 1000));
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

/** What to do, or what was done. */
function headline(record) {
  const { state, kept, total, seconds } = record;
  if (state !== "open") return filled(words[ENDS[state]], { count: kept.length, total, seconds });
  return words.pickAsk;
}

function legend(record) {
  const order = record.keep === "rarest" ? words.pickRarestFirst : words.pickTypicalFirst;
  const measure = record.by === "novelty" ? words.pickNovelty : words.pickScore;
  const rarer = record.images.some(({ rarer }) => rarer !== null) ? words.pickRarer : "";
  const some = record.images.length < record.total ? filled(words.pickSome, { shown: record.images.length, total: record.total }) : "";
  return [order, rarer, measure, some].filter(Boolean).join(" ");
}

/** The texts of a panel. */
function describe(record) {
  const list = words.pickList;
  const moves = { look: words.pickLook, previous: words.pickPrevious, next: words.pickNext, all: words.pickAll };
  if (!record) return { head: words.pickWaiting, time: "", legend: "", note: "", button: "", list, moves };
  const { kept, count, state, stops } = record;
  const open = state === "open";
  const time = open ? timeLeft(record) : "";
  return {
    head: headline(record),
    time,
    legend: legend(record),
    note: open ? filled(stops ? words.pickLeftStop : words.pickLeft, { time, count }) : "",
    button: filled(kept.length ? words.pickKeep : words.pickKeepFirst, { count: kept.length || count }),
    list,
    moves,
    speak: (one) => spoken(one, record, words, filled),
  };
}

function show(node) {
  if (words) node.jepaPicker.show(node.jepaPick, describe);
}

function put(node, record) {
  node.jepaPick = record;
  show(node);
}

/** Show the picks that wait on their nodes. */
function showWaiting() {
  for (const record of waiting.values()) {
    const node = placeOf(record);
    if (!node) continue;
    asked.add(record.id);
    put(node, record);
  }
}

/** Say that a pick waits, if its node cannot be seen. */
function call(record) {
  const { x, y, right, bottom } = placeOf(record)?.jepaPicker.element.getBoundingClientRect() ?? {};
  const seen = right > 0 && bottom > 0 && x < window.innerWidth && y < window.innerHeight;
  if (!seen && words) app.extensionManager.toast.add({ severity: "info", summary: words.pickCall, life: 8000 });
}

/** Ask the server for the picks that wait: after the page is opened, or was cut off. */
async function loadWaiting() {
  const answer = await api.fetchApi(ROUTE);
  const open = new Map((await answer.json()).map((record) => [record.id, record]));
  for (const id of waiting.keys()) if (!open.has(id)) end({ id, state: "over", kept: [] });
  for (const [id, record] of open) if (!waiting.has(id)) waiting.set(id, received(record));
  showWaiting();
}

/** A pick is over. */
function end({ id, state, kept }) {
  sessionStorage.removeItem(MEMORY + id);
  const record = waiting.get(id);
  if (!record) return;
  waiting.delete(id);
  Object.assign(record, { state: state === "picked" && !answered.has(id) ? "elsewhere" : state, kept });
  const node = placeOf(record);
  if (node?.jepaPick?.id === id) show(node);
}

/** Answer a pick; without places, with the first. */
async function answer(record, places) {
  if (answered.has(record.id)) return; // a second click
  const kept = places.length ? places : record.images.slice(0, record.count).map(({ index }) => index);
  answered.add(record.id);
  const response = await api.fetchApi(ROUTE, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ id: record.id, kept }),
  });
  if (response.ok) return;
  answered.delete(record.id);
  end({ id: record.id, state: "over", kept: [] });
}

/** Show what a node gave out, if it is a pick. */
function showResult(node, output) {
  if (!node?.jepaPicker || !output?.jepa_pick) return;
  const [result] = output.jepa_pick;
  const known = node.jepaPick;
  if (known?.state === "open" && known.id !== result.id) return; // an older one, of a workflow that is opened again
  // the page knows more about a pick that it has seen: who answered
  if (known?.id !== result.id || known.state === "open") put(node, received(result));
}

function addPicker(node) {
  const picker = new Picker({
    onKeep: (places) => answer(node.jepaPick, places),
    onPick: (kept) => sessionStorage.setItem(MEMORY + node.jepaPick.id, JSON.stringify(kept)),
  });
  Object.assign(picker.element.style, { width: "100%", contain: "size", containIntrinsicHeight: `${HEIGHT - 2 * MARGIN}px` });
  node.jepaPicker = picker;
  node.jepaPick = null;
  addElement(node, { name: "pick", type: "JEPA_PICK", element: picker.element, width: WIDTH, height: HEIGHT });
  loadWords().then(() => show(node));
}

app.registerExtension({
  name: "jepa-guidance.pick",
  async setup() {
    document.head.appendChild(document.createElement("style")).textContent = STYLE;
    api.addEventListener(EVENT, ({ detail }) => {
      if (detail.state !== "open") return end(detail);
      waiting.set(detail.id, received(detail));
      showWaiting();
      call(detail);
    });
    // a new run begins; after a reload the host says so again of one that waits
    api.addEventListener("executing", ({ detail: id }) => {
      const node = nodeOfRun(id);
      if (!node?.jepaPicker) return;
      put(node, null);
      showWaiting();
    });
    api.addEventListener("reconnected", loadWaiting);
    setInterval(() => {
      for (const record of waiting.values()) {
        const node = placeOf(record);
        if (node?.jepaPick === record && words) node.jepaPicker.update();
      }
    }, 1000);
    await loadWaiting();
  },
  nodeCreated(node) {
    if (node.comfyClass !== PICK) return;
    addPicker(node);
    follow(node, "onExecuted", (output) => showResult(node, output));
  },
  // a workflow is opened: at the start, or in another tab of the page
  afterConfigureGraph: showWaiting,
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) showResult(nodeOf(id), output);
  },
});
