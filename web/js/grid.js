// Grids of pictures in a panel. Independent of the host's page.

export const GAP = 6; // between pictures
export const LINE = 14; // height of a line below a picture

/** The side of the pictures, from `smallest` to `largest`, with which grids of so many fit into a box; else the smallest. */
export function fittingSide(counts, { width, height, lines, smallest, largest }) {
  for (let side = largest; side > smallest; side--) {
    const columns = Math.floor((width + GAP) / (side + GAP));
    if (!columns) continue;
    const rows = counts.reduce((sum, count) => sum + Math.ceil(count / columns), 0);
    const between = GAP * (rows - 1 + counts.length - 1);
    if (rows * (side + lines * LINE) + between <= height) return side;
  }
  return smallest;
}

/** The element that an arrow, Home or End goes to from one of a grid; undefined for other keys, or where there is none. */
export function keyTarget(elements, from, key) {
  const at = elements.indexOf(from);
  const top = elements[0]?.getBoundingClientRect().top;
  const columns = elements.filter((one) => Math.abs(one.getBoundingClientRect().top - top) < 1).length;
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: elements.length - 1 - at };
  return key in moves && at >= 0 ? elements[at + moves[key]] : undefined;
}

export const isMove = (key) => ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End"].includes(key);

/** A new element. */
export function made(tag, className = "") {
  const element = document.createElement(tag);
  element.className = className;
  return element;
}
