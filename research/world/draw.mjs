// Draws avatars: rows {"style", "margin", "options"} as JSON lines on standard input, RGB pixels (side x side x 3 bytes each) on
// standard output, in order. `node draw.mjs SIDE`; `node draw.mjs svg` writes JSON lines of the SVG and its parts instead.
import { readFileSync, writeSync } from 'node:fs';
import { createAvatar } from '@dicebear/core';
import { Resvg } from '@resvg/resvg-js';

const wanted = process.argv[2];
const styles = {};

function write(bytes) {
  for (let done = 0; done < bytes.length; ) {
    try {
      done += writeSync(1, bytes, done);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error; // a full pipe
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2);
    }
  }
}

function pixels(svg, side) {
  const picture = new Resvg(svg, {
    fitTo: { mode: 'width', value: side },
    background: '#fff',
    font: { loadSystemFonts: false },
  }).render();
  const { pixels: rgba } = picture;
  const rgb = Buffer.alloc(side * side * 3);
  for (let i = 0; i < side * side; i++) rgba.copy(rgb, 3 * i, 4 * i, 4 * i + 3);
  return rgb;
}

// Adds white around the drawing, a share of its side; nothing that reaches into it is cut off.
function widen(svg, share) {
  return svg.replace(/viewBox="0 0 (\d+) (\d+)"/, (_, side) => {
    const margin = share * Number(side);
    return `viewBox="${-margin} ${-margin} ${Number(side) + 2 * margin} ${Number(side) + 2 * margin}"`;
  });
}

// A mask isolates what is inside it: the "overlay" of white on a face would be plain white, and dark skin grey. That mask
// is as large as the face, so nothing shows without it.
const withoutMask = (svg) => svg.replace('<g mask="url(#personas-a)">', '<g>');

for (const line of readFileSync(0, 'utf8').split('\n')) {
  if (!line) continue;
  const { style, margin, options } = JSON.parse(line);
  styles[style] ??= await import(`@dicebear/${style}`);
  const { svg, extra } = createAvatar(styles[style], { seed: '0', ...options }).toJson();
  const drawing = widen(withoutMask(svg), margin);
  write(wanted === 'svg' ? Buffer.from(JSON.stringify({ svg: drawing, parts: extra }) + '\n') : pixels(drawing, Number(wanted)));
}
