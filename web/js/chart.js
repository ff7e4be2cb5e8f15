// Draws the strength scale and the chart of a trace on a canvas. Independent of the host's page.

const DARK = {
  ink: "#e8e8e8", dim: "#a8a8a8", grid: "#4a4a4a", grey: "#3a3a3a", warn: "#F0E442",
  score: "#56B4E9", novelty: "#3DCB9D", judge: "#E69F00",
};
const LIGHT = {
  ink: "#1a1a1a", dim: "#505050", grid: "#c8c8c8", grey: "#e0e0e0", warn: "#7A4B00",
  score: "#0072B2", novelty: "#006B4E", judge: "#B34700",
};
// Strengths at which images change and stay intact: research/figures/strengths.json. Subtle does half as much, and wild
// counts double: docs/guidance.md.
const USEFUL = { subtle: [1, 4], wild: [0.25, 1] };
const USEFUL_OTHERWISE = [0.5, 2];
const STEP = 0.05; // of the strength's widget
export const SCALE_HEIGHT = 46;
export const SCALE_END = 4; // where images break up; larger strengths are drawn at the end of the scale
const FONT = "12px sans-serif";
const LISTED = 6; // images of a batch; of more, only the range of their places is written
const NOVELTY_JUDGE = / \(novelty\)$/; // NOVELTY_JUDGE in host/options.py

/** The palette that is legible on a background, given as a CSS rgb() colour. */
export function palette(background) {
  const [r, g, b] = (background.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
  return 0.3 * r + 0.59 * g + 0.11 * b > 128 ? LIGHT : DARK;
}

/** The number of guided steps: start <= i / steps < end, every `interval`-th. */
export function guidedSteps({ steps, start, end, interval }) {
  let count = 0;
  for (let i = 0; i < steps; i++) if (i / steps >= start && i / steps < end && i % interval === 0) count++;
  return count;
}

/** The seconds of a guided step and the seconds left, of a run whose steps ended at `times`, in milliseconds by step; null
 * where they are not known. planned: how many steps the run guides. */
export function pace(trace, times, planned) {
  const took = (wanted) => {
    const found = trace.steps.filter(({ guided }) => guided === wanted)
      .map(({ step }) => (times.get(step) - times.get(step - 1)) / 1000)
      .filter((seconds) => seconds > 0).sort((one, other) => one - other);
    return found.length ? found[Math.floor((found.length - 1) / 2)] : null; // a median: the first one plans and checks too
  };
  const [guided, plain] = [took(true), took(false)];
  const done = trace.steps.filter((step) => step.guided).length;
  const ahead = planned === null ? 0 : Math.max(0, planned - done);
  const rest = Math.max(0, trace.total - trace.steps.length - ahead);
  const known = planned !== null && (guided !== null || !ahead) && (plain !== null || !rest);
  return { guided, left: known ? ahead * (guided ?? 0) + rest * (plain ?? 0) : null };
}

/** The mean of the numbers in a list, ignoring nulls; null if there are none. */
export function mean(values) {
  const known = (values ?? []).filter((value) => value !== null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

/** The guided steps so far. */
function guided(trace) {
  return trace.steps.filter((step) => step.guided);
}

/** The points {step from 1, value, push} of the guided steps: means over the batch; push is 1 without a target. */
function points(trace, pick) {
  return guided(trace)
    .map((step) => ({ step: step.step + 1, value: mean(pick(step)), push: mean(step.push) ?? 1 }))
    .filter(({ value }) => value !== null);
}

/** What the chart draws, {kind, label, points} each: score, novelty or both, and the first judge. */
export function traceLines(trace, words) {
  const lines = [
    { kind: "score", label: words.score, points: points(trace, (step) => step.score) },
    { kind: "novelty", label: words.novelty, points: points(trace, (step) => step.novelty) },
  ].filter((line) => line.points.length);
  const [judge] = trace.judges;
  if (!judge || !lines.length) return lines;
  const label = NOVELTY_JUDGE.test(judge) ? words.judgeNovelty : words.judgeScore;
  const judged = points(trace, (step) => step.judged[judge]).map((point) => ({ ...point, push: 1 }));
  return judged.length ? [...lines, { kind: "judge", label, points: judged }] : lines;
}

/** Numbers as text, with as many digits as it takes to tell them apart. */
export function written(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || Math.abs(high) / 10 || 1;
  const digits = Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(span))));
  return values.map((value) => value.toFixed(digits));
}

/** What became of the target, and where the finished images lie in the reference; "" if there is neither. */
export function outcome(trace, words) {
  const pushes = guided(trace).map((step) => step.push ?? []);
  const last = pushes.at(-1) ?? [];
  const stopped = last.filter((push) => push === 0).length;
  const texts = [];
  if (stopped === last.length && stopped) texts.push(words.stopped);
  else if (stopped) texts.push(words.stoppedSome.replace("{count}", stopped).replace("{images}", last.length));
  else if (pushes.flat().some((push) => push < 1)) texts.push(words.nearing);
  const places = trace.places ?? [];
  const criteria = Object.keys(places[0] ?? {});
  for (const criterion of criteria) {
    // null for an image that is not finite
    const shares = places.map((place) => place[criterion]).filter((rarer) => rarer !== null).map((rarer) => Math.round(100 - rarer));
    if (!shares.length) continue;
    const listed = shares.length > LISTED ? `${Math.min(...shares)}\u2013${Math.max(...shares)}` : shares.join(" %, ");
    const text = criteria.length === 1 ? words.place : criterion === "novelty" ? words.placeNovelty : words.placeScore;
    texts.push(text.replace("{percent}", listed));
  }
  return texts.join(" ");
}

/** The strength at a place on the scale, a multiple of the widget's step. */
export function strengthAt(place, { x, width }) {
  const share = Math.max(-1, Math.min(1, (place - x - width / 2) / (width / 2)));
  return Number((Math.round((Math.sign(share) * share ** 2 * SCALE_END) / STEP) * STEP).toFixed(2));
}

/** The strength scale from more typical to rarer, with the preset's useful range and the current strength marked. */
export function drawScale(ctx, { x, y, width }, { strength, preset }, words, colours) {
  const middle = x + width / 2;
  const across = (value) => middle + (Math.sign(value) * Math.sqrt(Math.min(Math.abs(value), SCALE_END) / SCALE_END) * width) / 2;
  const useful = USEFUL[preset] ?? USEFUL_OTHERWISE;
  ctx.font = FONT;
  ctx.textBaseline = "middle";
  ctx.fillStyle = colours.dim;
  ctx.textAlign = "left";
  ctx.fillText(`\u25c2 ${words.typical}`, x, y + 7);
  ctx.textAlign = "right";
  ctx.fillText(`${words.rarer} \u25b8`, x + width, y + 7);
  ctx.textAlign = "center";
  const line = y + 22;
  ctx.fillStyle = colours.grid;
  ctx.fillRect(x, line - 1, width, 2);
  ctx.fillStyle = colours.score;
  ctx.fillRect(across(useful[0]), line - 3, across(useful[1]) - across(useful[0]), 6);
  ctx.fillStyle = colours.dim;
  for (const tick of [-SCALE_END, -1, 0, 1, SCALE_END]) {
    ctx.fillRect(across(tick) - 0.5, line - 5, 1, 10);
    ctx.textAlign = tick === -SCALE_END ? "left" : tick === SCALE_END ? "right" : "center";
    ctx.fillText(String(tick), across(tick), line + 13);
  }
  if (strength === null) return;
  ctx.fillStyle = colours.ink;
  ctx.beginPath();
  ctx.moveTo(across(strength), line - 2);
  ctx.lineTo(across(strength) - 6, line - 12);
  ctx.lineTo(across(strength) + 6, line - 12);
  ctx.fill();
}

/** Text wrapped to the width; returns its height. */
export function drawText(ctx, { x, y, width }, text, colour) {
  ctx.font = FONT;
  ctx.fillStyle = colour;
  ctx.textAlign = "left";
  ctx.textBaseline = "top";
  let line = "";
  let top = y;
  // languages without spaces may break between any two characters
  for (const part of text.match(/[\u3000-\u9fff\uff00-\uffef]|[^\s\u3000-\u9fff\uff00-\uffef]+\s*|\s+/g) ?? []) {
    if (line && ctx.measureText(line + part).width > width) {
      ctx.fillText(line, x, top);
      top += 16;
      line = "";
    }
    line += part;
  }
  ctx.fillText(line, x, top);
  return top + 16 - y;
}

/** Where the steps of a trace lie in a box: {left, right, slot}, slot being the width of a step. */
function columns(trace, count, { x, width }) {
  const left = x + 44;
  const right = x + width - (count > 1 ? 44 : 8);
  return { left, right, slot: (right - left) / trace.total };
}

/** The step, from 0, of a trace that was drawn in a box, at a place; null beside the steps. */
export function stepAt(place, trace, words, box) {
  const { left, right, slot } = columns(trace, traceLines(trace, words).length, box);
  return place >= left && place < right ? Math.floor((place - left) / slot) : null;
}

/** What the lines have at a step, as text. */
function readings(lines, step) {
  return lines.flatMap(({ label, points }) => {
    const texts = written(points.map(({ value }) => value));
    const at = points.findIndex((point) => point.step === step);
    return at < 0 ? [] : [`${label.split(/[,\uff0c\u3001(\uff08]/)[0]} ${texts[at]}`];
  });
}

/** The lines of a trace over its steps; unguided steps are grey. The second line has its own scale on the right, and of a
 * third only the first and the last value are written. Dots fade as the push shrinks near a target.
 *
 * @param last the trace of the run before, whose lines stay behind as dashes and hold the scales still; null without one
 * @param hover the step, from 0, whose values are written; null for none
 */
export function drawTrace(ctx, { x, y, width, height }, { trace, last, hover }, words, colours) {
  const lines = traceLines(trace, words);
  const ghosts = last ? traceLines(last, words) : [];
  const [, second, third] = lines;
  const { left, right, slot } = columns(trace, lines.length, { x, width });
  const top = y + (third ? 36 : 20);
  const bottom = y + height - 32;
  const across = (step) => left + (step - 0.5) * slot;
  ctx.font = FONT;
  ctx.textBaseline = "middle";
  ctx.fillStyle = colours.grey;
  const unguided = new Set(trace.steps.filter((step) => !step.guided).map((step) => step.step));
  for (const step of unguided) ctx.fillRect(left + step * slot, top, slot, bottom - top);
  ctx.strokeStyle = colours.grid;
  ctx.strokeRect(left, top, right - left, bottom - top);
  ctx.fillStyle = colours.dim;
  ctx.textAlign = "center";
  const stride = Math.ceil((trace.total * 26) / (right - left));
  for (let step = 1; step <= trace.total; step += stride) ctx.fillText(String(step), across(step), bottom + 9);
  const box = { left, right, top, bottom };
  lines.slice(0, 2).forEach((line, number) => {
    const side = number ? "right" : "left";
    const ghost = ghosts.find(({ kind }) => kind === line.kind)?.points ?? [];
    const before = (step) => left + ((step - 0.5) * (right - left)) / last.total;
    const heading = [number ? x + width : x, y + 8];
    drawLine(ctx, box, line, { across, before, ghost, colour: colours[line.kind], side, heading });
  });
  if (third) {
    const course = written(third.points.map(({ value }) => value));
    ctx.textAlign = "left";
    ctx.fillStyle = colours[third.kind];
    ctx.fillText(`${third.label}: ${[...new Set([course[0], course.at(-1)])].join(" \u2192 ")}`, x, y + 24);
  }
  const shown = hover === null ? [] : readings(lines, hover + 1);
  ctx.fillStyle = shown.length ? colours.ink : colours.dim;
  ctx.textAlign = "center";
  const reading = words.stepAt.replace("{step}", hover + 1).replace("{values}", shown.join(words.comma));
  const caption = shown.length ? reading : words.step;
  ctx.fillText(caption, x + width / 2, bottom + 24, width);
  if (!shown.length) return;
  ctx.fillRect(across(hover + 1) - 0.5, top, 1, bottom - top);
}

/** A line with its heading and the ends of its scale, which the line of the run before shares. */
function drawLine(ctx, { left, right, top, bottom }, line, { across, before, ghost, colour, side, heading }) {
  const values = [...line.points, ...ghost].map(({ value }) => value);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const pad = (high - low) * 0.12 || 1;
  const down = (value) => bottom - ((value - low + pad) / (high - low + 2 * pad)) * (bottom - top);
  ctx.fillStyle = ctx.strokeStyle = colour;
  ctx.textAlign = side;
  ctx.fillText(line.label, ...heading);
  ctx.textAlign = side === "left" ? "right" : "left";
  const edge = side === "left" ? left - 5 : right + 5;
  const [highest, lowest] = written([high, low]);
  ctx.fillText(highest, edge, down(high));
  if (down(low) - down(high) > 12) ctx.fillText(lowest, edge, down(low));
  ctx.globalAlpha = 0.45;
  ctx.setLineDash([4, 4]);
  trail(ctx, ghost.map(({ step, value }) => [before(step), down(value)]), 1.5);
  ctx.setLineDash([]);
  ctx.globalAlpha = 1;
  trail(ctx, line.points.map(({ step, value }) => [across(step), down(value)]), 2);
  ctx.lineWidth = 1;
  for (const { step, value, push } of line.points) drawDot(ctx, across(step), down(value), line.kind, push);
}

/** A line through places, in the current colour. */
function trail(ctx, places, width) {
  ctx.lineWidth = width;
  ctx.beginPath();
  for (const place of places) ctx.lineTo(...place);
  ctx.stroke();
}

/** A dot of the current colour, whose shape tells kinds apart without colour; hollow where push is 0. */
function drawDot(ctx, x, y, kind, push) {
  ctx.beginPath();
  if (kind === "score") ctx.arc(x, y, 3.5, 0, 7);
  else if (kind === "judge") ctx.rect(x - 3, y - 3, 6, 6);
  else {
    ctx.moveTo(x, y - 4.5);
    ctx.lineTo(x + 4.5, y + 3.5);
    ctx.lineTo(x - 4.5, y + 3.5);
    ctx.closePath();
  }
  ctx.globalCompositeOperation = "destination-out"; // no line shows through
  ctx.fill();
  ctx.globalCompositeOperation = "source-over";
  ctx.globalAlpha = push;
  ctx.fill();
  ctx.globalAlpha = 1;
  ctx.stroke();
}
