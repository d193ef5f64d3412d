// Draws the mask and output panels from cells that the server gives as exact pixels.
// The formulas are those of autogaze_client.visualization.

const ALPHA = Math.fround(0.38);
const KEEP = Math.fround(1 - ALPHA);
const PALETTE = [[2, [255, 180, 0]], [4, [60, 220, 120]], [7, [0, 185, 255]], [Infinity, [230, 110, 255]]];

export function scaleColour(grid) {
  return PALETTE.find(([largest]) => grid <= largest)[1];
}

const pack = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
const dim = (colour) => colour.map((value) => Math.floor((value * 42 + 50) / 100));

// A mask: cells [x0, x1, y0, y1, grid, …] in painting order, the union, and its size.
export function makeMask(cells, width, height) {
  const covered = new Uint8Array(width * height);
  let pixels = 0;
  for (let i = 0; i < cells.length; i += 5) {
    const [x0, x1, y0, y1] = cells.slice(i, i + 4);
    for (let y = y0; y < y1; y++) covered.fill(1, y * width + x0, y * width + x1);
  }
  for (let i = 0; i < covered.length; i++) pixels += covered[i];
  const grids = [...new Set(cells.filter((_, i) => i % 5 === 4))].sort((a, b) => a - b);
  return { cells, covered, pixels, grids, width, height, colours: null };
}

function fill(target, width, x0, x1, y0, y1, colour) {
  for (let y = y0; y < y1; y++) target.fill(colour, y * width + x0, y * width + x1);
}

function paint(target, width, x0, x1, y0, y1, grid) {
  const colour = scaleColour(grid);
  fill(target, width, x0, x1, y0, y1, pack(colour));
  if (x1 - x0 > 2 && y1 - y0 > 2) fill(target, width, x0 + 1, x1 - 1, y0 + 1, y1 - 1, pack(dim(colour)));
}

function colours(mask) {
  if (!mask.colours) {
    mask.colours = new Uint32Array(mask.width * mask.height);
    for (let i = 0; i < mask.cells.length; i += 5) paint(mask.colours, mask.width, ...mask.cells.slice(i, i + 5));
  }
  return mask.colours;
}

function scaleRows(target, mask) {
  const { width, height, grids, cells } = mask;
  target.fill(0xff000000);
  grids.forEach((grid, band) => {
    const top = Math.floor((band * height) / grids.length);
    const tall = Math.ceil(((band + 1) * height) / grids.length) - top;
    const wide = Math.min(Math.max(Math.floor((2 * tall * width + height) / (2 * height)), 1), width);
    const left = Math.floor((width - wide) / 2);
    for (let i = 0; i < cells.length; i += 5) {
      if (cells[i + 4] !== grid) continue;
      const x0 = left + Math.floor((cells[i] * wide) / width), y0 = top + Math.floor((cells[i + 2] * tall) / height);
      const x1 = left + Math.min(Math.ceil((cells[i + 1] * wide) / width), wide);
      const y1 = top + Math.min(Math.ceil((cells[i + 3] * tall) / height), tall);
      paint(target, width, x0, Math.max(x1, x0 + 1), y0, Math.max(y1, y0 + 1), grid);
    }
  });
}

// The table of round(source · (1 − a) + colour · a) for one byte of a colour.
const tables = new Map();
function mixed(colour) {
  if (!tables.has(colour)) {
    const added = Math.fround(colour * ALPHA);
    tables.set(colour, Uint8Array.from({ length: 256 }, (_, s) => Math.floor(Math.fround(Math.fround(s * KEEP) + added) + 0.5)));
  }
  return tables.get(colour);
}

function mix(source, colour) {
  return ((source & 0xff000000) | (mixed((colour >>> 16) & 255)[(source >>> 16) & 255] << 16) |
    (mixed((colour >>> 8) & 255)[(source >>> 8) & 255] << 8) | mixed(colour & 255)[source & 255]) >>> 0;
}

export function drawMask(target, source, mask, style, geometry) {
  if (style === "scale-rows" && geometry !== "effective") return scaleRows(target, mask);
  const painted = colours(mask), covered = mask.covered;
  if (style === "overlay" || style === "scale-rows") {
    for (let i = 0; i < target.length; i++) target[i] = covered[i] ? painted[i] : 0xff000000;
    return undefined;
  }
  const elsewhere = style === "image-overlay";
  for (let i = 0; i < target.length; i++) target[i] = covered[i] ? mix(source[i], painted[i]) : elsewhere ? source[i] : 0;
  return undefined;
}

// The output over time: what autogaze_client.AutoGazeVisualizationState does.
export class Output {
  constructor() { this.reset(); }
  reset() { this.index = 0; this.due = true; this.keyframe = false; }

  draw(target, source, mask, view, duration) {
    const covered = mask.covered;
    if (view === "full-blend") {
      for (let i = 0; i < target.length; i++) target[i] = covered[i] ? mix(source[i], 0xffffffff) : source[i];
      this.keyframe = false;
      this.due = true;
    } else {
      this.keyframe = this.due || (duration > 0 && this.index % duration === 0);
      if (this.keyframe) target.set(source);
      else for (let i = 0; i < target.length; i++) if (covered[i]) target[i] = source[i];
      this.due = false;
    }
    this.index += 1;
  }
}

// PSNR in dB over red, green and blue.
export function psnr(reference, output) {
  let sum = 0;
  for (let i = 0; i < reference.length; i += 4) {
    const red = reference[i] - output[i], green = reference[i + 1] - output[i + 1], blue = reference[i + 2] - output[i + 2];
    sum += red * red + green * green + blue * blue;
  }
  return sum === 0 ? Infinity : 10 * Math.log10((255 * 255 * reference.length * 0.75) / sum);
}
