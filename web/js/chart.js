// Draws the strength scale and the score chart on a canvas. Independent of the host's page.

const DARK = { ink: "#e8e8e8", dim: "#a8a8a8", grid: "#4a4a4a", grey: "#3a3a3a", score: "#56B4E9", judge: "#E69F00", warn: "#F0E442" };
const LIGHT = { ink: "#1a1a1a", dim: "#505050", grid: "#c8c8c8", grey: "#e0e0e0", score: "#0072B2", judge: "#B34700", warn: "#7A4B00" };
export const USEFUL = [0.5, 2]; // strengths at which images change and stay intact: research/figures/strengths.json
const SCALE_END = 4; // larger strengths are drawn at the end of the scale
const FONT = "12px sans-serif";

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

/** The mean of the numbers in a list, ignoring nulls; null if there are none. */
export function mean(values) {
  const known = (values ?? []).filter((value) => value !== null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

/** The points [step from 1, mean score] of the guided steps. */
export function scorePoints(trace, pick) {
  return trace.steps
    .filter((step) => step.guided)
    .map((step) => [step.step + 1, mean(pick(step))])
    .filter(([, score]) => score !== null);
}

/** The strength scale from more typical to rarer, with the useful range and the current strength marked. */
export function drawScale(ctx, { x, y, width }, strength, words, colours) {
  const middle = x + width / 2;
  const across = (value) => middle + (Math.sign(value) * Math.sqrt(Math.min(Math.abs(value), SCALE_END) / SCALE_END) * width) / 2;
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
  ctx.fillRect(across(USEFUL[0]), line - 3, across(USEFUL[1]) - across(USEFUL[0]), 6);
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

/** The score over the steps; unguided steps are grey. A judge has its own scale on the right. */
export function drawTrace(ctx, { x, y, width, height }, trace, words, colours) {
  const lines = [{ points: scorePoints(trace, (step) => step.score), colour: colours.score, side: "left" }];
  const [judge] = trace.judges;
  if (judge) lines.push({ points: scorePoints(trace, (step) => step.judged[judge]), colour: colours.judge, side: "right" });
  const left = x + 44;
  const right = x + width - (judge ? 44 : 8);
  const top = y + 20;
  const bottom = y + height - 32;
  const slot = (right - left) / trace.total;
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
  ctx.fillText(words.step, (left + right) / 2, bottom + 24);
  ctx.textAlign = "left";
  ctx.fillStyle = colours.score;
  ctx.fillText(words.score, x, y + 8);
  if (judge) {
    ctx.textAlign = "right";
    ctx.fillStyle = colours.judge;
    ctx.fillText(words.judge, x + width, y + 8);
  }
  for (const { points, colour, side } of lines) drawLine(ctx, { left, right, top, bottom }, points, across, colour, side);
}

function drawLine(ctx, { left, right, top, bottom }, points, across, colour, side) {
  if (!points.length) return;
  const scores = points.map(([, score]) => score);
  const low = Math.min(...scores);
  const high = Math.max(...scores);
  const pad = (high - low) * 0.12 || 1;
  const down = (score) => bottom - ((score - low + pad) / (high - low + 2 * pad)) * (bottom - top);
  ctx.fillStyle = ctx.strokeStyle = colour;
  ctx.textAlign = side === "left" ? "right" : "left";
  const edge = side === "left" ? left - 5 : right + 5;
  const digits = high - low < 10 ? 1 : 0;
  ctx.fillText(high.toFixed(digits), edge, down(high));
  if (down(low) - down(high) > 12) ctx.fillText(low.toFixed(digits), edge, down(low));
  ctx.lineWidth = 2;
  ctx.beginPath();
  for (const [step, score] of points) ctx.lineTo(across(step), down(score));
  ctx.stroke();
  ctx.lineWidth = 1;
  for (const [step, score] of points) {
    ctx.beginPath();
    if (side === "left") ctx.arc(across(step), down(score), 3.5, 0, 7);
    else ctx.rect(across(step) - 3, down(score) - 3, 6, 6); // distinguishable without colour
    ctx.fill();
  }
}
