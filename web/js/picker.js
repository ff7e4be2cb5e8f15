// Shows images sorted by rarity as a grid, to click those to keep. Independent of the host's page.

import { fittingSide, GAP, isMove, keyTarget, LINE, made } from "./grid.js";

const LARGEST = 256; // pixels of a picture in the grid
const SMALLEST = 72; // where more do not fit, the grid scrolls
const ICONS = {
  look: "M7 3H3v4M11 3h4v4M7 15H3v-4M11 15h4v-4",
  previous: "M11 3 5 9l6 6",
  next: "M7 3l6 6-6 6",
  all: "M3 3h5v5H3zM10 3h5v5h-5zM3 10h5v5H3zM10 10h5v5h-5z",
};
const ACCENT = "var(--p-primary-color, #60a5fa)";
export const STYLE = `
.jepa-pick { box-sizing: border-box; display: flex; flex-direction: column; gap: 8px; padding: 10px; border-radius: 8px;
  background: var(--comfy-input-bg); color: var(--input-text); font: 12px/1.35 sans-serif; }
.jepa-pick p { margin: 0; }
.jepa-pick .top { display: flex; gap: 10px; font-size: 13px; font-weight: bold; }
.jepa-pick .head { flex: 1; }
.jepa-pick.open .head { color: ${ACCENT}; }
.jepa-pick .time { font-variant-numeric: tabular-nums; }
.jepa-pick.idle { justify-content: center; text-align: center; }
.jepa-pick.idle .head { font-weight: normal; color: var(--descrip-text); }
.jepa-pick.idle .scroll, .jepa-pick.idle .bar { display: none; }
.jepa-pick .legend, .jepa-pick .note { color: var(--descrip-text); }
.jepa-pick .legend:empty, .jepa-pick .time:empty { display: none; }
.jepa-pick .scroll { flex: 1; min-height: 0; overflow: hidden auto; padding: 4px; margin: -4px; scrollbar-width: thin; }
.jepa-pick [role=listbox] { display: grid; grid-template-columns: repeat(auto-fill, var(--size)); gap: ${GAP}px;
  justify-content: center; }
.jepa-pick [role=option] { margin: 0; position: relative; width: var(--size); border-radius: 6px; outline: none;
  font-size: 11px; line-height: ${LINE}px; text-align: center; white-space: nowrap; }
.jepa-pick img { display: block; box-sizing: border-box; width: var(--size); height: var(--size); object-fit: contain;
  border-radius: 6px; border: 1px solid var(--border-color); background: var(--comfy-menu-bg); }
.jepa-pick.open [role=option] { cursor: pointer; }
.jepa-pick.open [role=option]:hover img { border-color: var(--input-text); }
.jepa-pick [role=option]:focus-visible { outline: 2px solid var(--input-text); outline-offset: 1px; }
.jepa-pick [aria-selected=true] img { border: 3px solid ${ACCENT}; }
.jepa-pick.over [aria-selected=false] img { filter: grayscale(0.7) opacity(0.4); }
.jepa-pick.over [aria-selected=false] figcaption { opacity: 0.6; }
.jepa-pick .rank { position: absolute; top: 5px; left: 5px; min-width: 20px; height: 20px; box-sizing: border-box; padding: 0 5px;
  border-radius: 10px; font: bold 12px/20px sans-serif; background: ${ACCENT}; color: var(--p-primary-contrast-color, #0b1220); }
.jepa-pick .rank:empty { display: none; }
.jepa-pick figcaption { overflow: hidden; text-overflow: ellipsis; color: var(--descrip-text); }
.jepa-pick figcaption b { color: var(--input-text); }
.jepa-pick.large [role=listbox] { justify-items: center; grid-template-columns: 1fr; }
.jepa-pick.large [role=option]:not(.seen) { display: none; }
.jepa-pick .look { position: absolute; top: 5px; right: 5px; opacity: 0; }
.jepa-pick [role=option]:hover .look, .jepa-pick [role=option]:focus-visible .look { opacity: 1; }
.jepa-pick.large .look { display: none; }
@media (hover: none) { .jepa-pick .look { opacity: 1; } }
.jepa-pick .moves { display: flex; gap: 4px; margin: -4px 0; }
.jepa-pick:not(.large) .moves { display: none; }
.jepa-pick button.icon { padding: 3px; background: var(--comfy-menu-bg); color: var(--input-text); line-height: 0; }
.jepa-pick button.icon:hover { color: ${ACCENT}; }
.jepa-pick button.icon:disabled { opacity: 0.4; cursor: default; }
.jepa-pick .icon svg { width: 18px; height: 18px; fill: none; stroke: currentColor; stroke-width: 2; }
.jepa-pick .bar { display: flex; align-items: center; gap: 10px; height: 32px; }
.jepa-pick .note { flex: 1; max-height: 32px; overflow: hidden; }
.jepa-pick button { flex: none; padding: 6px 14px; border: 0; border-radius: 6px; font: bold 13px/18px sans-serif; cursor: pointer;
  background: ${ACCENT}; color: var(--p-primary-contrast-color, #0b1220); }
.jepa-pick button.plain { background: none; color: var(--input-text); box-shadow: inset 0 0 0 1px var(--border-color); }
.jepa-pick button:focus-visible { outline: 2px solid var(--input-text); outline-offset: 2px; }
.jepa-pick button[hidden] { display: none; }
`;

/** What is below a picture: its rarity first, then what was measured. */
const written = (one) => [one.rarer === null ? "" : `${Math.round(one.rarer)} %`, one.value.toFixed(2)];

/** All that is known of an image, as text. */
export function spoken(one, record, words, filled) {
  const measure = record.by === "novelty" ? words.imageNovelty : words.imageScore;
  const texts = [filled(measure, { index: one.index, value: one.value.toFixed(2) })];
  if (one.rarer !== null) texts.push(filled(words.imageRarer, { percent: Math.round(one.rarer) }));
  // results that were kept from before have no place
  const seed = (one.place ?? null) === null ? words.imageSeed : words.imageSeedPlace;
  if (one.seed !== null) texts.push(filled(seed, one));
  const rank = record.kept.indexOf(one.index) + 1;
  if (rank) texts.push(filled(words.imagePicked, { rank }));
  return texts.join(words.comma);
}

/** The grid, a line above it that says what to do or what was done, and a button that goes on. */
export class Picker {
  /** onKeep: called with what to keep, the places of images; none means the first. onPick: with what is picked so far. */
  constructor({ onKeep, onPick }) {
    this.element = made("div", "jepa-pick");
    const top = this.element.appendChild(made("div", "top"));
    this.head = top.appendChild(made("p", "head"));
    this.head.setAttribute("role", "status");
    this.moves = top.appendChild(made("span", "moves"));
    this.buttons = {
      previous: this.moves.appendChild(icon("previous")),
      next: this.moves.appendChild(icon("next")),
      all: this.moves.appendChild(icon("all")),
    };
    this.time = top.appendChild(made("span", "time"));
    this.time.setAttribute("role", "timer");
    this.legend = this.element.appendChild(made("p", "legend"));
    this.scroll = this.element.appendChild(made("div", "scroll"));
    this.scroll.dataset.captureWheel = "true"; // with the focus in it, the host lets a wheel scroll it
    this.list = this.scroll.appendChild(made("div"));
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-multiselectable", "true");
    this.bar = this.element.appendChild(made("div", "bar"));
    this.note = this.bar.appendChild(made("span", "note"));
    this.button = this.bar.appendChild(made("button"));
    this.button.type = "button";
    this.record = null;
    this.seen = null; // the image that is shown large
    this.onKeep = onKeep;
    this.onPick = onPick;
    this.button.addEventListener("click", () => this.onKeep(this.record.kept));
    new ResizeObserver(() => this.fit()).observe(this.element);
    this.list.addEventListener("click", ({ target }) => this.onClick(target));
    this.buttons.previous.addEventListener("click", () => this.look(this.seen.previousSibling));
    this.buttons.next.addEventListener("click", () => this.look(this.seen.nextSibling));
    this.buttons.all.addEventListener("click", () => this.look(null));
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.list.addEventListener("focusin", ({ target }) => {
      for (const option of this.options) option.tabIndex = option === target ? 0 : -1;
    });
    for (const type of ["pointerover", "focusin"]) this.list.addEventListener(type, ({ target }) => this.point(target));
    for (const type of ["pointerleave", "focusout"]) this.list.addEventListener(type, () => this.point(null));
  }

  get options() {
    return [...this.list.children];
  }

  get isOpen() {
    return this.record?.state === "open";
  }

  /** Show a pick. describe: gives the texts {head, time, legend, note, button, list, moves, speak} of a record, which may be null. */
  show(record, describe) {
    this.record = record;
    this.describe = describe;
    if (this.shown !== record?.id) {
      this.shown = record?.id;
      this.look(null);
      this.list.replaceChildren(...(record?.images ?? []).map((one) => newOption(one)));
      if (this.list.firstChild) this.list.firstChild.tabIndex = 0;
    }
    this.element.classList.toggle("idle", !record);
    this.element.classList.toggle("open", this.isOpen);
    this.element.classList.toggle("over", Boolean(record) && !this.isOpen);
    this.update();
    this.fit();
  }

  /** Write again what depends on the time and on what is picked. */
  update() {
    const { record } = this;
    const texts = this.describe(record);
    if (this.head.textContent !== texts.head) this.head.textContent = texts.head;
    this.time.textContent = texts.time;
    this.legend.textContent = texts.legend;
    this.list.setAttribute("aria-label", texts.list);
    for (const [name, button] of Object.entries(this.buttons)) button.title = button.ariaLabel = texts.moves[name];
    for (const button of this.list.querySelectorAll(".look")) button.title = texts.moves.look;
    this.button.hidden = !this.isOpen;
    this.button.textContent = texts.button;
    this.button.classList.toggle("plain", !record?.kept.length);
    this.resting = texts.note;
    record?.images.forEach((one, place) => updateOption(this.options[place], record.kept.indexOf(one.index), texts.speak(one)));
    this.point(this.pointed);
  }

  /** Shrink the pictures until all fit, as far as that goes. */
  fit() {
    const width = this.scroll.clientWidth - 8, height = this.scroll.clientHeight - 8;
    const box = { width, height, lines: 1, smallest: SMALLEST, largest: LARGEST };
    const side = this.seen ? Math.min(width, height - LINE) : fittingSide([this.list.children.length], box);
    this.list.style.setProperty("--size", `${side}px`);
  }

  /** Show one image alone, as large as the panel allows; null shows all again. */
  look(option) {
    const before = this.seen;
    this.seen = option;
    this.element.classList.toggle("large", Boolean(option));
    for (const one of this.options) one.classList.toggle("seen", one === option);
    this.buttons.previous.disabled = !option?.previousSibling;
    this.buttons.next.disabled = !option?.nextSibling;
    this.fit();
    (option ?? before)?.focus({ preventScroll: Boolean(option) });
  }

  /** Write about the image that is pointed at or has the focus. */
  point(target) {
    this.pointed = target;
    const option = this.list.contains(target) ? target.closest("[role=option]") : null;
    this.note.textContent = option?.title ?? this.resting;
  }

  /** A click on an image picks it, or no longer; one on its corner shows it large. */
  onClick(target) {
    const option = target.closest("[role=option]");
    if (target.closest(".look")) this.look(option);
    else this.toggle(option);
  }

  /** Pick an image, or no longer. */
  toggle(option) {
    if (!this.isOpen || !option) return;
    const { index } = this.record.images[this.options.indexOf(option)];
    const { kept } = this.record;
    this.record.kept = kept.includes(index) ? kept.filter((one) => one !== index) : [...kept, index];
    this.onPick(this.record.kept);
    this.update();
  }

  /** Arrows, Home and End go from image to image, Space picks, Z shows one large, Enter goes on. */
  onKey(event) {
    const { key, target, ctrlKey, metaKey, altKey } = event;
    if (ctrlKey || metaKey || altKey || key === "Tab") return;
    event.stopPropagation(); // other keys would act on the graph
    if (!this.options.includes(target)) return;
    if (isMove(key)) this.move(target, key);
    else if (key.toLowerCase() === "z") this.look(this.seen ? null : target);
    else if (key === "Escape" && this.seen) this.look(null);
    else if (key === " ") this.toggle(target);
    else if (key === "Enter" && this.isOpen && this.record.kept.length) this.onKeep(this.record.kept);
    else return;
    event.preventDefault();
  }

  /** Go to the image that a key leads to; one image alone has a row of its own. */
  move(from, key) {
    if (!this.seen) return keyTarget(this.options, from, key)?.focus();
    const { previousSibling, nextSibling } = from;
    const ends = { Home: this.list.firstChild, End: this.list.lastChild };
    const to = ends[key] ?? (key === "ArrowLeft" || key === "ArrowUp" ? previousSibling : nextSibling);
    if (to) this.look(to);
  }
}

/** A button for the mouse, with a drawing on it. */
function icon(name) {
  const button = made("button", `icon ${name}`);
  button.type = "button";
  button.innerHTML = `<svg viewBox="0 0 18 18" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
  return button;
}

function newOption(one) {
  const option = made("figure");
  option.setAttribute("role", "option");
  option.tabIndex = -1; // one of all can be reached with Tab, the others from there with arrows
  const image = option.appendChild(made("img"));
  image.draggable = false;
  image.alt = "";
  image.src = one.source;
  option.appendChild(made("span", "rank")).setAttribute("aria-hidden", "true");
  const look = option.appendChild(icon("look"));
  look.tabIndex = -1; // the keyboard has Z
  look.setAttribute("aria-hidden", "true");
  const caption = option.appendChild(made("figcaption"));
  caption.setAttribute("aria-hidden", "true");
  const [first, second] = written(one);
  if (first) caption.appendChild(made("b")).textContent = first;
  caption.append(first ? ` ${second}` : second);
  return option;
}

function updateOption(option, place, text) {
  option.setAttribute("aria-selected", String(place >= 0));
  option.setAttribute("aria-label", text);
  option.title = text;
  option.querySelector(".rank").textContent = place >= 0 ? place + 1 : "";
}
