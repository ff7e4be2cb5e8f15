"use strict";
// Fills the page from its data. Texts of files only ever become text nodes and attributes, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const total = data.names.length;
const UNKNOWN = "\u2013";
const WORDS = {
  score: { label: "Score", rarer: -1, low: "rarer", high: "more typical", hint: "lower is rarer" },
  novelty: { label: "Novelty", rarer: 1, low: "more typical", high: "rarer", hint: "higher is rarer" },
};
const BINS = 60;
const GROUPS = 20; // shown at once
const MEMBERS = 12; // of a group
const TALLEST = 12e6; // pixels; browsers show no taller element
const whole = new Intl.NumberFormat("en");

const byId = (id) => document.getElementById(id);
const pathOf = (place) => {
  const folder = data.folders[data.folder[place]];
  const between = /[\\/]$/.test(folder) ? "" : folder.includes("\\") ? "\\" : "/";
  return folder + between + data.names[place];
};
const written = (value) => (value === null ? UNKNOWN : Number(value.toPrecision(5)).toString());
const bytesOf = (size) => {
  const power = Math.min(3, Math.floor(Math.log(Math.max(size, 1)) / Math.log(1000)));
  return `${Number((size / 1000 ** power).toPrecision(3))} ${["B", "kB", "MB", "GB"][power]}`;
};
const sizeOf = (place) => (data.width[place] ? `${data.width[place]} \u00d7 ${data.height[place]}` : UNKNOWN);
const groupOf = new Map(data.groups.flatMap((group, number) => group.map((place) => [place, number])));

/** An element with properties, attributes (those with a dash, and role) and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** The thumbnail of a picture, or why there is none. The text beside it names it. */
function frame(place) {
  const known = data.thumbnails[place];
  if (known) return make("span", { className: "frame" }, make("img", { src: `data:image/jpeg;base64,${known}`, alt: "" }));
  const why = place in data.errors ? "not readable" : data.missing.includes(place) ? "missing" : "";
  return make("span", { className: "frame" }, why);
}

function picture(place, criterion, mark) {
  const value = criterion ? written(data[criterion][place]) : sizeOf(place);
  const text = make("span", { className: "text" },
    make("span", { className: "name", title: pathOf(place) }, data.names[place]),
    make("span", { className: "value" }, make("span", {}, value), mark));
  const button = make("button", { type: "button", className: "picture" }, frame(place), text);
  button.addEventListener("click", () => show(place));
  return make("li", {}, button);
}

// --- header, charts, galleries --------------------------------------------------------------------------------------

function head() {
  byId("title").textContent = data.title;
  byId("about").textContent = data.about;
  const unread = Object.keys(data.errors).length;
  const extra = data.groups.reduce((sum, group) => sum + group.length - 1, 0);
  const facts = [["pictures", total], ["not readable", unread], ["groups of duplicates", data.groups.length],
    ["duplicates that could go", extra]];
  byId("facts").replaceChildren(...facts.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, whole.format(value)))));
  if (data.criteria.length < 2) return;
  byId("criterion").hidden = false;
  for (const criterion of data.criteria) {
    const radio = make("input", { type: "radio", name: "criterion", value: criterion });
    radio.checked = criterion === data.criteria[0];
    radio.addEventListener("change", () => galleries(criterion));
    const { label, hint } = WORDS[criterion];
    byId("criterion").append(make("label", {}, radio, `${label} (${hint})`));
  }
}

/** A histogram of one criterion. */
function chart(criterion) {
  const values = data[criterion].filter((value) => value !== null).sort((a, b) => a - b);
  const [low, high, median] = [values[0], values.at(-1), values[Math.floor(values.length / 2)]];
  const span = high - low || 1;
  const counts = new Array(BINS).fill(0);
  for (const value of values) counts[Math.min(BINS - 1, Math.floor((BINS * (value - low)) / span))] += 1;
  const most = Math.max(...counts);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const add = (tag, attributes) => {
    const part = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
    svg.append(part);
  };
  const { label, hint, low: left, high: right } = WORDS[criterion];
  const said = `${label} of ${whole.format(values.length)} pictures, from ${written(low)} (${left}) to ${written(high)} ` +
    `(${right}); median ${written(median)}`;
  for (const [name, value] of [["role", "img"], ["aria-label", said], ["viewBox", `0 0 ${BINS} 100`],
    ["preserveAspectRatio", "none"], ["class", criterion]]) svg.setAttribute(name, value);
  counts.forEach((count, bin) => {
    const height = count && Math.max(1, (100 * count) / most);
    add("rect", { x: bin + 0.06, y: 100 - height, width: 0.88, height });
  });
  const at = (BINS * (median - low)) / span;
  add("line", { x1: at, x2: at, y1: 0, y2: 100, class: "median" });
  return make("figure", {},
    make("figcaption", {}, make("strong", {}, label), make("span", {}, `${hint}; median ${written(median)}`)),
    svg,
    make("div", { className: "axis", "aria-hidden": "true" },
      make("span", {}, `${written(low)} ${left}`), make("span", {}, `${right} ${written(high)}`)));
}

function galleries(criterion) {
  for (const [id, places] of [["rarest", data.rarest[criterion]], ["typical", data.typical[criterion]]]) {
    const list = places.map((place, rank) =>
      picture(place, criterion, make("span", { "aria-hidden": "true" }, `${rank + 1}`)));
    byId(id).querySelector("ol").replaceChildren(...list);
  }
}

function overview() {
  byId("distribution").hidden = byId("rarest").hidden = byId("typical").hidden = !data.criteria.length;
  if (!data.criteria.length) return;
  byId("distribution").querySelector(".charts").append(...data.criteria.map(chart));
  galleries(data.criteria[0]);
}

function duplicates() {
  const section = byId("duplicates");
  const more = section.querySelector(".more");
  section.querySelector(".note").textContent = data.groups.length
    ? `Pictures with the same bytes, or whose embeddings are at most ${data.distance} apart (1 \u2212 cosine). The first of each ` +
      "group has the most pixels; select --no-duplicates keeps it."
    : `No two pictures have the same bytes, or embeddings at most ${data.distance} apart (1 \u2212 cosine).`;
  let shown = 0;
  const next = () => {
    const begin = shown;
    const added = data.groups.slice(shown, shown + GROUPS).map((group, number) => {
      const title = `Group ${shown + number + 1}: ${whole.format(group.length)} pictures`;
      const rest = group.length - MEMBERS;
      const strip = group.slice(0, MEMBERS).map((place, rank) =>
        picture(place, null, rank ? "" : make("span", { className: "badge" }, "keep")));
      return make("li", {}, make("h3", {}, title), make("ol", { className: "strip" }, ...strip),
        ...(rest > 0 ? [make("p", { className: "note" }, `and ${whole.format(rest)} more, in the list below`)] : []));
    });
    shown += added.length;
    section.querySelector(".groups").append(...added);
    more.hidden = shown >= data.groups.length;
    if (begin) added[0].querySelector("button").focus();
  };
  more.addEventListener("click", next);
  next();
}

// --- details --------------------------------------------------------------------------------------------------------

/** The address of a file on this machine, or null: what looks like a share of a network is not opened. */
function addressOf(path) {
  if (!/^(\/(?![\\/])|[A-Za-z]:[\\/](?![\\/]))/.test(path) || /\\ud[c-f]|[\ud800-\udfff]/u.test(path)) return null;
  const parts = path.startsWith("/") ? path.slice(1).split("/") : path.split(/[\\/]/);
  return "file:///" + parts.map((part, place) => (place || path.startsWith("/") ? encodeURIComponent(part) : part)).join("/");
}

function show(place) {
  const dialog = byId("details");
  const path = pathOf(place);
  const address = place in data.errors ? null : addressOf(path);
  byId("details-title").textContent = data.names[place];
  const known = data.thumbnails[place];
  const image = make("img", { alt: data.names[place] });
  const large = dialog.querySelector(".large");
  large.replaceChildren(image);
  // the file itself, if it is still there
  image.addEventListener("error", () => {
    if (known && !image.src.startsWith("data:")) image.src = `data:image/jpeg;base64,${known}`;
    else large.textContent = place in data.errors ? "This file could not be read." : "The picture is not there any more.";
  });
  if (address) image.src = address;
  else image.dispatchEvent(new Event("error"));
  const lines = [["Path", address ? make("a", { href: address, target: "_blank", rel: "noopener" }, path) : path]];
  for (const criterion of data.criteria) lines.push([WORDS[criterion].label, written(data[criterion][place])]);
  if (data.more_novel_than?.[place] != null) lines.push(["More novel than", `${written(data.more_novel_than[place])} % of the reference`]);
  lines.push(["Size", sizeOf(place)], ["File", bytesOf(data.bytes[place])]);
  if (groupOf.has(place)) lines.push(["Duplicates", `group ${groupOf.get(place) + 1}`]);
  if (place in data.errors) lines.push(["Error", data.errors[place]]);
  dialog.querySelector("dl").replaceChildren(...lines.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  dialog.showModal();
}

// --- filters --------------------------------------------------------------------------------------------------------

const fields = {};

function field(name, label, input) {
  input.id = `filter-${name}`;
  fields[name] = input;
  return make("div", { className: "field" }, make("label", { htmlFor: input.id }, label), input);
}

function range(criterion) {
  const { label } = WORDS[criterion];
  const input = (end) => {
    const one = make("input", { type: "number", step: "any", "aria-label": `${label} ${end}`, placeholder: end });
    fields[`${criterion}-${end}`] = one;
    return one;
  };
  const title = make("span", { "aria-hidden": "true" }, label);
  return make("div", { className: "field" }, title, make("div", { className: "range" }, input("from"), "\u2013", input("to")));
}

function tick(name, label) {
  fields[name] = make("input", { type: "checkbox" });
  return make("label", { className: "tick" }, fields[name], label);
}

function filters() {
  const folders = data.folders.map((folder, number) => make("option", { value: number }, folder));
  const form = byId("filters");
  form.append(
    field("text", "Path contains", make("input", { type: "search", spellcheck: false, autocomplete: "off" })),
    field("folder", "Folder", make("select", {}, make("option", { value: "" }, "all"), ...folders)),
    ...data.criteria.map(range),
    tick("duplicates", "Only duplicates"),
    tick("errors", "Only not readable"),
    make("button", { type: "reset" }, "Clear filters"),
  );
  form.addEventListener("input", () => rows.filter());
  form.addEventListener("reset", () => setTimeout(() => rows.filter()));
  form.addEventListener("submit", (event) => event.preventDefault());
}

/** Which pictures the filters let through. */
function filtered() {
  const text = fields.text.value.trim().toLowerCase();
  const folder = fields.folder.value;
  const ranges = data.criteria.map((criterion) => {
    const [from, to] = ["from", "to"].map((end) => fields[`${criterion}-${end}`].value);
    return { values: data[criterion], set: from !== "" || to !== "", from: from === "" ? -Infinity : +from, to: to === "" ? Infinity : +to };
  }).filter(({ set }) => set);
  const fits = (place) =>
    (folder === "" || data.folder[place] === +folder) &&
    ranges.every(({ values, from, to }) => values[place] !== null && values[place] >= from && values[place] <= to) &&
    (!fields.duplicates.checked || groupOf.has(place)) &&
    (!fields.errors.checked || place in data.errors) &&
    (!text || pathOf(place).toLowerCase().includes(text));
  return (place) => fits(place);
}

// --- the list -------------------------------------------------------------------------------------------------------

const COLUMNS = [
  { name: "path", label: "Picture" },
  ...data.criteria.map((name) => ({ name, label: WORDS[name].label, value: (place) => data[name][place],
    text: (place) => written(data[name][place]) })),
  { name: "pixels", label: "Size", value: (place) => data.width[place] * data.height[place], text: sizeOf, extra: true },
  { name: "bytes", label: "File", value: (place) => data.bytes[place], text: (place) => bytesOf(data.bytes[place]), extra: true },
  { name: "group", label: "Group", value: (place) => groupOf.get(place) ?? null, extra: true,
    text: (place) => (groupOf.has(place) ? whole.format(groupOf.get(place) + 1) : "") },
];

/** The list: only the rows in sight are in the document. */
const rows = {
  all: [...Array(total).keys()],
  order: [],
  sorted: null,
  active: 0,
  shown: new Map(),

  begin() {
    this.grid = byId("grid");
    this.body = this.grid.querySelector(".body");
    this.space = this.grid.querySelector(".space");
    const cells = COLUMNS.map((column) => {
      const button = make("button", { type: "button" }, column.label);
      button.addEventListener("click", () => this.sort(column));
      column.head = make("div", { role: "columnheader", "aria-sort": "none", className: column.name === "path" ? "" : "number" }, button);
      return column.head;
    });
    this.grid.querySelector(".head").append(make("div", { role: "row", "aria-rowindex": 1 }, ...cells));
    this.grid.style.setProperty("--columns", `minmax(14rem, 1fr) ${COLUMNS.slice(1).map(() => "6.5rem").join(" ")}`);
    this.grid.setAttribute("aria-colcount", COLUMNS.length);
    this.body.addEventListener("scroll", () => this.draw());
    this.body.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.resize()).observe(this.body);
    const first = COLUMNS.find((column) => column.name === data.criteria[0]) ?? COLUMNS[0];
    this.sort(first, first.name === "novelty");
  },

  sort(column, descending = this.sorted === column && !this.descending) {
    this.sorted = column;
    this.descending = descending;
    const sign = descending ? -1 : 1;
    const paths = column.value ? null : this.all.reduce((known, place) => ((known[place] = pathOf(place)), known), []);
    const values = Array.from({ length: total }, (_, place) => column.value?.(place) ?? null);
    // what is not known comes last
    const compare = paths
      ? (a, b) => (paths[a] < paths[b] ? -sign : paths[a] > paths[b] ? sign : 0)
      : (a, b) => (values[a] === null || values[b] === null ? (values[a] === null) - (values[b] === null) : sign * (values[a] - values[b])) || a - b;
    this.all.sort(compare);
    for (const one of COLUMNS) {
      one.head.setAttribute("aria-sort", one !== column ? "none" : descending ? "descending" : "ascending");
    }
    this.filter();
  },

  filter() {
    this.order = this.all.filter(filtered());
    this.active = 0;
    byId("count").textContent = this.order.length === total
      ? `${whole.format(total)} pictures`
      : `${whole.format(this.order.length)} of ${whole.format(total)} pictures`;
    this.grid.setAttribute("aria-rowcount", this.order.length + 1);
    for (const row of this.shown.values()) row.remove();
    this.shown.clear();
    this.body.querySelector(".none")?.remove();
    if (!this.order.length) this.body.append(make("p", { className: "none", role: "presentation" }, "No picture fits the filters."));
    this.body.scrollTop = 0;
    this.resize();
  },

  resize() {
    this.rowHeight = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row"));
    this.full = this.order.length * this.rowHeight;
    this.height = Math.min(this.full, TALLEST);
    this.space.style.height = `${this.height}px`;
    this.draw();
  },

  /** How far down the list the top of the view is, in pixels of a list of full height. */
  offset() {
    const view = this.body.clientHeight;
    return this.height > view ? (this.body.scrollTop * (this.full - view)) / (this.height - view) : 0;
  },

  draw() {
    const offset = this.offset();
    const first = Math.max(0, Math.floor(offset / this.rowHeight) - 4);
    const last = Math.min(this.order.length, Math.ceil((offset + this.body.clientHeight) / this.rowHeight) + 4);
    for (const [number, row] of this.shown) {
      // a row that has the focus stays, wherever it is
      if ((number < first || number >= last) && row !== document.activeElement) {
        row.remove();
        this.shown.delete(number);
      }
    }
    for (let number = first; number < last; number++) if (!this.shown.has(number)) this.add(number);
    for (const [number, row] of this.shown) {
      row.style.transform = `translateY(${this.body.scrollTop + number * this.rowHeight - offset}px)`;
      row.tabIndex = number === this.active ? 0 : -1;
    }
    // the list can be entered with Tab wherever it has been scrolled to
    if (!this.shown.has(this.active) && this.shown.size) this.shown.get(Math.min(first + 4, last - 1)).tabIndex = 0;
  },

  add(number) {
    const place = this.order[number];
    const cells = COLUMNS.map((column, at) => {
      if (!column.value) return this.pictureCell(place);
      const cell = make("div", { role: "gridcell", className: column.extra ? "number extra" : "number", "aria-colindex": at + 1 }, column.text(place));
      cell.dataset.label = column.label;
      return cell;
    });
    const row = make("div", { role: "row", "aria-rowindex": number + 2 }, ...cells);
    row.addEventListener("click", () => {
      this.move(number);
      show(place);
    });
    row.addEventListener("focus", () => this.activate(number));
    this.shown.set(number, row);
    // in the order of the list, for screen readers
    const after = [...this.shown.keys()].filter((other) => other > number).sort((a, b) => a - b)[0];
    this.body.insertBefore(row, after === undefined ? null : this.shown.get(after));
  },

  pictureCell(place) {
    const error = data.errors[place];
    const below = error === undefined
      ? make("span", { className: "name dim" }, data.folders[data.folder[place]])
      : make("span", { className: "name error" }, `not readable: ${error}`);
    return make("div", { role: "gridcell", className: "cell", title: pathOf(place), "aria-colindex": 1 }, frame(place),
      make("div", {}, make("span", { className: "name" }, data.names[place]), below));
  },

  activate(number) {
    this.active = number;
    for (const [other, row] of this.shown) row.tabIndex = other === number ? 0 : -1;
  },

  move(number) {
    const to = Math.max(0, Math.min(this.order.length - 1, number));
    const view = this.body.clientHeight;
    const top = to * this.rowHeight;
    const offset = this.offset();
    const wanted = top < offset ? top : top + this.rowHeight > offset + view ? top + this.rowHeight - view : offset;
    if (wanted !== offset) this.body.scrollTop = (wanted * (this.height - view)) / (this.full - view);
    this.active = to;
    this.draw();
    this.shown.get(to).focus({ preventScroll: true });
  },

  key(event) {
    const number = [...this.shown].find(([, row]) => row === event.target)?.[0];
    if (number === undefined) return;
    const page = Math.max(1, Math.floor(this.body.clientHeight / this.rowHeight) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -number, End: this.order.length };
    if (event.key in steps) this.move(number + steps[event.key]);
    else if (event.key === "Enter" || event.key === " ") show(this.order[number]);
    else return;
    event.preventDefault();
  },
};

head();
overview();
duplicates();
filters();
rows.begin();
