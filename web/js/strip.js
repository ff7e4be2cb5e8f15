// Shows the candidates of a search as a grid of pictures. Independent of the host's page.

import { fittingSide, GAP, isMove, keyTarget, LINE, made } from "./grid.js";

const LARGEST = 96; // pixels of a picture: host/search/report.py sends no larger ones
const SMALLEST = 44; // where more do not fit, the grid scrolls
const NOTHING = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/%3E";
export const STYLE = `
.jepa-search { box-sizing: border-box; display: flex; flex-direction: column; gap: 6px; padding: 8px; border-radius: 6px;
  background: var(--comfy-input-bg); color: var(--input-text); font: 12px/1.3 sans-serif; }
.jepa-search p { margin: 0; }
.jepa-search .lists { flex: 1; min-height: 0; overflow: hidden auto; padding: 3px; margin: -3px; scrollbar-width: thin; }
.jepa-search .lists:empty { display: none; }
.jepa-search [role=list] { display: grid; grid-template-columns: repeat(auto-fill, var(--size)); gap: ${GAP}px;
  justify-content: center; }
.jepa-search [role=list] + [role=list] { margin-top: ${2 * GAP}px; }
.jepa-search figure { margin: 0; position: relative; width: var(--size); font-size: 11px; line-height: ${LINE}px;
  text-align: center; white-space: nowrap; }
.jepa-search img { display: block; box-sizing: border-box; width: var(--size); height: var(--size); object-fit: contain;
  border-radius: 4px; border: 1px solid var(--border-color); background: var(--comfy-menu-bg); }
.jepa-search img:focus-visible { outline: 2px solid var(--input-text); outline-offset: 1px; }
.jepa-search .kept img { border: 2px solid var(--input-text); }
.jepa-search .kept figcaption { font-weight: bold; }
.jepa-search .dropped img { filter: grayscale(1) opacity(0.4); border-style: dashed; }
.jepa-search .dropped figcaption { color: var(--descrip-text); }
.jepa-search .rank { position: absolute; top: 0; left: 0; padding: 0 4px; border-radius: 4px 0; font-weight: bold;
  background: var(--input-text); color: var(--comfy-input-bg); }
.jepa-search .rank:empty { display: none; }
.jepa-search .note { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
`;
// reasons as host/search/selection.py writes them; the third names a quality and a floor
const REASONS = { "not finite": "droppedNotFinite", "less wanted than the others": "droppedLess" };

/** A record of a search, as it was sent, with the pictures that are known from an earlier one of the same run. */
export function withPictures(record, earlier) {
  const known = new Map(earlier?.candidates.map((one) => [one.index, one]));
  const candidates = record.candidates.map((one) => {
    const before = known.get(one.index);
    // a candidate that was not seen since is as it was
    return one.picture || before?.step !== one.step ? one : { ...one, picture: before.picture };
  });
  return { ...record, candidates };
}

/** The candidates in the order in which they are shown: in the end the kept ones first, then those dropped last. */
export function shownOrder({ candidates, kept }) {
  if (!kept.length) return candidates;
  const rest = candidates.filter(({ index }) => !kept.includes(index));
  return [...kept.map((index) => candidates[index]), ...rest.sort((one, other) => (other.step ?? 0) - (one.step ?? 0))];
}

/** All that is known of a candidate, as text. */
export function spoken(one, record, words, filled) {
  const { index, value, quality, dropped } = one;
  const measure = record.by === "novelty" ? words.imageNovelty : words.imageScore;
  const texts = [value === null ? filled(words.imageUnseen, { index }) : filled(measure, { index, value: value.toFixed(2) })];
  const written = { quality: quality?.toPrecision(3) ?? "-", floor: record.floor?.toPrecision(3) };
  if (quality !== null) texts.push(filled(words.imageQuality, written));
  const rank = record.kept.indexOf(index) + 1;
  if (rank) texts.push(filled(words.imageKept, { rank }));
  if (dropped) {
    const reason = filled(words[REASONS[dropped] ?? "droppedFloor"], written);
    texts.push(filled(words.imageDropped, { reason }));
  }
  return texts.join(words.comma);
}

/** The grid with a line above it, which says what will happen, and a line below it, about what is pointed at. */
export class Strip {
  constructor() {
    this.element = made("div", "jepa-search");
    this.above = this.element.appendChild(made("p", "outlook"));
    this.above.setAttribute("role", "status");
    this.lists = this.element.appendChild(made("div", "lists"));
    this.lists.dataset.captureWheel = "true"; // with the focus in it, the host lets a wheel scroll it
    this.note = this.element.appendChild(made("p", "note"));
    this.note.setAttribute("aria-hidden", "true"); // the pictures say it
    this.records = [];
    this.resting = ""; // the note while nothing is pointed at
    this.pointed = null;
    new ResizeObserver(() => this.fit()).observe(this.element);
    this.lists.addEventListener("keydown", (event) => this.onKey(event));
    this.lists.addEventListener("focusin", ({ target }) => {
      for (const image of this.images) image.tabIndex = image === target ? 0 : -1;
    });
    for (const type of ["pointerover", "focusin"]) this.lists.addEventListener(type, (event) => this.point(event.target));
    for (const type of ["pointerleave", "focusout"]) this.lists.addEventListener(type, () => this.point(null));
  }

  get images() {
    return [...this.lists.querySelectorAll("img")];
  }

  /** Say what will happen. */
  say({ text, warn }) {
    this.above.textContent = warn ? `\u26a0 ${text}` : text;
  }

  /** Show records with pictures, one grid each. */
  show(records, { resting, label, speak, qualityText }) {
    this.records = records;
    this.resting = resting;
    while (this.lists.children.length > records.length) this.lists.lastChild.remove();
    const focused = this.lists.contains(document.activeElement) ? document.activeElement : null;
    records.forEach((record, number) => {
      const list = this.lists.children[number] ?? this.lists.appendChild(made("div"));
      list.setAttribute("role", "list");
      list.setAttribute("aria-label", label(number));
      const figures = new Map([...list.children].map((figure) => [figure.dataset.index, figure]));
      const shown = shownOrder(record).map((one) => {
        const figure = figures.get(String(one.index)) ?? newFigure(one.index);
        update(figure, one, record, speak(one, record), qualityText);
        return figure;
      });
      if (shown.length !== list.children.length || shown.some((figure, i) => figure !== list.children[i])) {
        list.replaceChildren(...shown);
      }
    });
    focused?.focus({ preventScroll: true });
    const { images } = this;
    if (!images.some((image) => image.tabIndex === 0) && images.length) images[0].tabIndex = 0;
    this.fit();
    this.point(this.pointed);
  }

  /** Shrink the pictures until all fit, as far as that goes. */
  fit() {
    const counts = this.records.map(({ candidates }) => candidates.length);
    const { clientWidth, clientHeight } = this.lists;
    const lines = this.records.some(({ candidates }) => candidates.some(({ quality }) => quality !== null)) ? 2 : 1;
    const side = fittingSide(counts, {
      width: clientWidth - 6, height: clientHeight - 6, lines, smallest: SMALLEST, largest: LARGEST,
    });
    this.lists.style.setProperty("--size", `${side}px`);
  }

  /** Write about the picture that is pointed at or has the focus. */
  point(target) {
    this.pointed = target;
    const figure = this.lists.contains(target) ? target.closest("figure") : null;
    this.note.textContent = figure?.title ?? this.resting;
  }

  /** Arrows, Home and End go from picture to picture; Tab leaves them. */
  onKey(event) {
    const { images } = this;
    if (!isMove(event.key) || !images.includes(event.target)) return;
    event.preventDefault();
    event.stopPropagation();
    keyTarget(images, event.target, event.key)?.focus();
  }
}

function newFigure(index) {
  const figure = made("figure");
  figure.setAttribute("role", "listitem");
  figure.dataset.index = index;
  const image = figure.appendChild(made("img"));
  image.draggable = false;
  image.tabIndex = -1; // one of all can be reached with Tab, the others from there with arrows
  figure.appendChild(made("span", "rank")).setAttribute("aria-hidden", "true");
  figure.appendChild(made("figcaption")).setAttribute("aria-hidden", "true");
  return figure;
}

function update(figure, one, record, text, qualityText) {
  const [image, rank, caption] = figure.children;
  const place = record.kept.indexOf(one.index) + 1;
  const source = one.picture ?? NOTHING;
  if (image.getAttribute("src") !== source) image.src = source;
  image.alt = figure.title = text;
  figure.className = place ? "kept" : one.dropped ? "dropped" : "";
  rank.textContent = place ? `\u2605${place}` : "";
  const lines = [one.value === null ? "-" : one.value.toFixed(2)];
  if (one.quality !== null) lines.push(qualityText(one.quality.toPrecision(3)));
  caption.innerText = lines.join("\n");
}
