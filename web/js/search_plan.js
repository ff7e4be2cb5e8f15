// What a search will do with its settings. Independent of the host's page.

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const OTHERS = /[\s;\uff0c\uff1b\u3001]+/; // separators besides the comma
const BOOSTED_START = "boosted start (Boost-and-Skip)"; // host/options.py

/** The looks written as "0.4, 0.7": {looks} or {wrong}, the name of a text. host/search/selection.py refuses the same. */
export function looksOf(text) {
  // host/scoring/number_lists.py: "0,4" may be one number or two
  const unclear = text.split(OTHERS).some((part) => /\d,\d/.test(part) && !part.includes("."));
  const parts = text.split(OTHERS).flatMap((part) => part.split(",")).filter(Boolean);
  if (unclear || !parts.every((part) => NUMBER.test(part))) return { wrong: "looksNoNumbers" };
  const looks = parts.map(Number);
  if (!looks.every((look) => look > 0 && look < 1)) return { wrong: "looksOutside" };
  if (looks.some((look, i) => i > 0 && look <= looks[i - 1])) return { wrong: "looksNotGrowing" };
  return { looks };
}

/** The number of steps that are taken: a part of the schedule, and without those that a boosted start leaves out. */
export function stepsTaken({ steps, start, end, variety }) {
  const part = Math.min(end, steps) - start;
  // skipped in host/variety/boost.py
  return variety === BOOSTED_START ? part - Math.min(Math.max(1, roundEven(0.012 * part)), part - 1) : part;
}

/** The looks as [step from 0, candidates left after it]; plan_looks in host/search/selection.py gives the same. */
export function planLooks({ looks, steps, candidates, count }) {
  const lefts = new Map();
  let before = candidates;
  looks.forEach((look, i) => {
    const left = Math.max(roundEven(candidates * (count / candidates) ** ((i + 1) / looks.length)), count);
    const step = Math.max(roundEven(look * steps) - 1, 0);
    if (step < steps - 1 && left < before) {
      lefts.set(step, left);
      before = left;
    }
  });
  return [...lefts];
}

/** The denoiser's work with these looks, in percent of that for all candidates. */
export function workShare(plan, { steps, candidates }) {
  const lefts = new Map(plan);
  let left = candidates;
  let rows = 0;
  for (let step = 0; step < steps; step++) {
    rows += left;
    left = lefts.get(step) ?? left;
  }
  return roundEven((100 * rows) / (steps * candidates));
}

/** Round to the nearest integer, and halves to the even one, as Python does. */
export function roundEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}
