// Sentences on nodes, with a frame around the input that they are about. They lie above the canvas, so that no node changes
// its size, and both of the host's renderers show them.

import { app } from "../../../scripts/app.js";
import { made } from "./grid.js";

const ROW = 24; // height of the row of an input, in units of the graph
const SMALLEST = 11; // of letters, in pixels of the screen
const NARROWEST = 220; // of a sentence, in pixels of the screen
const SIGNS = { error: "\u26a0 ", notice: "\u26a0 ", note: "" };
const STYLE = `
.jepa-callouts { position: absolute; inset: 0; overflow: hidden; pointer-events: none; z-index: 50; }
.jepa-callout { position: absolute; left: 0; top: 0; --edge: #8a8a8a; --ground: #303030; }
.jepa-callout.error { --edge: #ff5c5c; --ground: #5a1616; }
.jepa-callout.notice { --edge: #f0c000; --ground: #4a3b00; }
.jepa-callout .frame { position: absolute; box-sizing: border-box; border: 2px solid var(--edge); border-radius: 8px; }
.jepa-callout .text { position: absolute; box-sizing: border-box; left: 0; margin: 0; padding: 0.5em 2em 0.5em 0.7em;
  border: 1px solid var(--edge); border-radius: 6px; background: var(--ground); color: #fff; line-height: 1.35;
  font-family: sans-serif; overflow-wrap: anywhere; white-space: pre-line; pointer-events: auto; user-select: text; }
.jepa-callout button { position: absolute; right: 0.2em; top: 0.1em; border: 0; background: none; color: inherit;
  font: inherit; cursor: pointer; padding: 0.2em 0.4em; }
`;

const callouts = new Set(); // {node, kind, input, element, frame, text, layout}
let layer = null;
let following = false;

/** Say something on a node, in place of what it said of this kind: "error", "notice" or "note". */
export function say(node, { kind, text, input = null, close }) {
  unsay(node, kind);
  const element = made("div", `jepa-callout ${kind}`);
  const frame = element.appendChild(made("div", "frame"));
  const paragraph = element.appendChild(made("p", "text"));
  paragraph.setAttribute("role", kind === "error" ? "alert" : "status");
  paragraph.append(SIGNS[kind] + text);
  const button = paragraph.appendChild(made("button"));
  button.textContent = "\u00d7";
  button.setAttribute("aria-label", close);
  button.addEventListener("click", () => unsay(node, kind));
  // the graph zooms and moves below it, as elsewhere
  paragraph.addEventListener("wheel", (event) => app.canvas.processMouseWheel(event), { passive: false });
  ground().appendChild(element);
  callouts.add({ node, kind, input, element, frame, text: paragraph });
  if (!following) requestAnimationFrame(follow);
  following = true;
}

/** Take back what a node says, of these kinds. */
export function unsay(node, ...kinds) {
  for (const one of callouts) {
    if (one.node !== node || !kinds.includes(one.kind)) continue;
    one.element.remove();
    callouts.delete(one);
  }
}

/** Take back what all nodes say, of these kinds. */
export function unsayAll(...kinds) {
  for (const { node } of callouts) unsay(node, ...kinds);
}

function ground() {
  if (layer) return layer;
  document.head.appendChild(document.createElement("style")).textContent = STYLE;
  layer = made("div", "jepa-callouts");
  return app.canvas.canvas.parentElement.appendChild(layer);
}

/** Keep the sentences on their nodes while there are any. */
function follow() {
  for (const one of callouts) {
    const { node, kind } = one;
    const { rootGraph } = app;
    const open = node.graph === rootGraph || rootGraph.subgraphs?.get(node.graph?.id) === node.graph;
    if (open && node.graph?.getNodeById(node.id) === node) place(one);
    else unsay(node, kind); // it was removed, or another workflow opened
  }
  following = callouts.size > 0;
  if (following) requestAnimationFrame(follow);
}

function place(one) {
  const { node, input, element, frame, text } = one;
  const { ds, graph } = app.canvas;
  element.hidden = node.graph !== graph;
  if (element.hidden) return;
  const { scale, offset } = ds;
  const [left, top] = [0, 1].map((side) => (node.pos[side] + offset[side]) * scale);
  const width = node.size[0] * scale;
  const slot = node.flags.collapsed ? -1 : node.inputs.findIndex(({ name }) => name === input);
  const middle = slot < 0 ? null : (node.getInputPos(slot)[1] - node.pos[1]) * scale;
  const layout = [left, top, width, middle, scale].join();
  if (layout === one.layout) return; // as in the frame before
  one.layout = layout;
  const half = (ROW * scale) / 2;
  element.style.transform = `translate(${left}px, ${top}px)`;
  frame.hidden = middle === null;
  if (middle !== null) Object.assign(frame.style, { top: `${middle - half}px`, width: `${width}px`, height: `${2 * half}px` });
  Object.assign(text.style, { width: `${Math.max(width, NARROWEST)}px`, fontSize: `${Math.max(13 * scale, SMALLEST)}px` });
  // below its input, else below the title
  text.style.top = `${middle === null ? 0 : middle + half}px`;
}
