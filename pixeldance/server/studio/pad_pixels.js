// Arithmetic of the drawing pad on plain arrays: brush coverage, masks, filling of holes.
// Pixel (i, j) covers [i, i + 1) x [j, j + 1); a rect is {left, top, right, bottom}, right and
// bottom exclusive; `size` is {width, height}; pictures are RGBA bytes, row by row.

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function clipRect(rect, size) {
  return {
    left: clamp(Math.floor(rect.left), 0, size.width),
    top: clamp(Math.floor(rect.top), 0, size.height),
    right: clamp(Math.ceil(rect.right), 0, size.width),
    bottom: clamp(Math.ceil(rect.bottom), 0, size.height),
  };
}

function boundingRect(points, margin = 0) {
  const xs = points.map((point) => point.x);
  const ys = points.map((point) => point.y);
  return {
    left: Math.min(...xs) - margin,
    top: Math.min(...ys) - margin,
    right: Math.max(...xs) + margin,
    bottom: Math.max(...ys) + margin,
  };
}

/** The corners of a box dragged from one point to another: every pixel that it touches. */
function boxOutline(start, end) {
  const [left, right] = [Math.min(start.x, end.x), Math.max(start.x, end.x)];
  const [top, bottom] = [Math.min(start.y, end.y), Math.max(start.y, end.y)];
  return [
    { x: Math.floor(left), y: Math.floor(top) },
    { x: Math.ceil(right), y: Math.floor(top) },
    { x: Math.ceil(right), y: Math.ceil(bottom) },
    { x: Math.floor(left), y: Math.ceil(bottom) },
  ];
}

function isEmptyRect(rect) {
  return rect.right <= rect.left || rect.bottom <= rect.top;
}

/** Add a round brush drawn from `from` to `to` to a stroke's coverage (0 to 255 a pixel).
 *
 * The edge is one pixel wide: full within radius - 0.5, nothing beyond radius + 0.5. The maximum
 * is kept, so that a stroke that crosses itself is no darker there. Returns the rect touched.
 */
function addSegment(coverage, size, from, to, radius) {
  const rect = clipRect(boundingRect([from, to], radius + 1), size);
  const dx = to.x - from.x;
  const dy = to.y - from.y;
  const squaredLength = dx * dx + dy * dy;
  for (let y = rect.top; y < rect.bottom; y++) {
    for (let x = rect.left; x < rect.right; x++) {
      const px = x + 0.5 - from.x;
      const py = y + 0.5 - from.y;
      const along = squaredLength ? clamp((px * dx + py * dy) / squaredLength, 0, 1) : 0;
      const distance = Math.hypot(px - along * dx, py - along * dy);
      const covered = Math.round(255 * clamp(radius + 0.5 - distance, 0, 1));
      const index = y * size.width + x;
      if (covered > coverage[index]) coverage[index] = covered;
    }
  }
  return rect;
}

/** Lay a colour [r, g, b] over `before` as strongly as the stroke covers each pixel. */
function paintColour(target, before, coverage, size, rect, colour) {
  for (let y = rect.top; y < rect.bottom; y++) {
    for (let x = rect.left; x < rect.right; x++) {
      const index = y * size.width + x;
      const opacity = coverage[index] / 255;
      for (let channel = 0; channel < 3; channel++) {
        const at = 4 * index + channel;
        target[at] = before[at] + (colour[channel] - before[at]) * opacity;
      }
    }
  }
}

/** Copy the pixels of `original` that the stroke covers by half or more; exact, so no soft edge. */
function restorePixels(target, original, coverage, size, rect) {
  for (let y = rect.top; y < rect.bottom; y++) {
    for (let x = rect.left; x < rect.right; x++) {
      const index = y * size.width + x;
      if (coverage[index] < 128) continue;
      for (let at = 4 * index; at < 4 * index + 3; at++) target[at] = original[at];
    }
  }
}

/** The pixels whose centres lie inside a closed polygon (non-zero winding), as 0 or 1. */
function polygonMask(points, size) {
  const mask = new Uint8Array(size.width * size.height);
  for (let y = 0; y < size.height; y++) {
    let winding = 0;
    const crossings = rowCrossings(points, y + 0.5);
    crossings.forEach(({ x, direction }, number) => {
      winding += direction;
      if (winding === 0 || number + 1 === crossings.length) return;
      const first = clamp(Math.ceil(x - 0.5), 0, size.width);
      const end = clamp(Math.ceil(crossings[number + 1].x - 0.5), 0, size.width);
      if (end > first) mask.fill(1, y * size.width + first, y * size.width + end);
    });
  }
  return mask;
}

function rowCrossings(points, y) {
  const crossings = [];
  points.forEach((from, number) => {
    const to = points[(number + 1) % points.length];
    if (from.y <= y === to.y <= y) return;
    const x = from.x + ((y - from.y) / (to.y - from.y)) * (to.x - from.x);
    crossings.push({ x, direction: to.y > from.y ? 1 : -1 });
  });
  return crossings.sort((one, other) => one.x - other.x);
}

/** The smallest rect around the pixels for which `isIn(index)` holds; empty if there are none. */
function rectWhere(size, isIn) {
  const rect = { left: size.width, top: size.height, right: 0, bottom: 0 };
  for (let y = 0; y < size.height; y++) {
    for (let x = 0; x < size.width; x++) {
      if (!isIn(y * size.width + x)) continue;
      rect.left = Math.min(rect.left, x);
      rect.right = Math.max(rect.right, x + 1);
      rect.top = Math.min(rect.top, y);
      rect.bottom = y + 1;
    }
  }
  return rect;
}

/** Fill the masked pixels of a picture smoothly from the pixels around them, in place.
 *
 * Each channel solves Laplace's equation in the hole, with the surrounding pixels as boundary
 * values and no flow across the border of the picture. Where nothing is left around: white.
 */
function fillHole(pixels, mask, size) {
  const hole = rectWhere(size, (index) => mask[index]);
  if (isEmptyRect(hole)) return;
  const area = clipRect(
    { left: hole.left - 1, top: hole.top - 1, right: hole.right + 1, bottom: hole.bottom + 1 },
    size,
  );
  const width = area.right - area.left;
  const height = area.bottom - area.top;
  const pixelOf = (index) =>
    (area.top + Math.floor(index / width)) * size.width + area.left + (index % width);
  const known = new Uint8Array(width * height);
  const values = new Float32Array(3 * width * height).fill(255);
  for (let index = 0; index < known.length; index++) {
    if (mask[pixelOf(index)]) continue;
    known[index] = 1;
    for (let c = 0; c < 3; c++) values[3 * index + c] = pixels[4 * pixelOf(index) + c];
  }
  solveLaplace(values, known, width, height);
  for (let index = 0; index < known.length; index++) {
    if (known[index]) continue;
    for (let c = 0; c < 3; c++) pixels[4 * pixelOf(index) + c] = values[3 * index + c];
  }
}

const RELAXATIONS = 40;

/** Solve for the unknown values: at half the size first, then relax what that gives. */
function solveLaplace(values, known, width, height) {
  if (!known.includes(0) || !known.includes(1)) return;
  startFromHalfSize(values, known, width, height);
  // Young's over-relaxation factor for a square of this side.
  const factor = 2 / (1 + Math.sin(Math.PI / Math.max(width, height)));
  for (let step = 0; step < RELAXATIONS; step++) relax(values, known, width, height, factor);
}

function startFromHalfSize(values, known, width, height) {
  const halfWidth = Math.ceil(width / 2);
  const halfHeight = Math.ceil(height / 2);
  const parentOf = (index) =>
    (Math.floor(index / width) >> 1) * halfWidth + ((index % width) >> 1);
  const sums = new Float32Array(3 * halfWidth * halfHeight);
  const counts = new Uint8Array(halfWidth * halfHeight);
  for (let index = 0; index < known.length; index++) {
    if (!known[index]) continue;
    counts[parentOf(index)]++;
    for (let c = 0; c < 3; c++) sums[3 * parentOf(index) + c] += values[3 * index + c];
  }
  const halfValues = sums.map((sum, at) => sum / (counts[Math.floor(at / 3)] || 1));
  solveLaplace(halfValues, counts.map((count) => (count ? 1 : 0)), halfWidth, halfHeight);
  for (let index = 0; index < known.length; index++) {
    if (known[index]) continue;
    for (let c = 0; c < 3; c++) values[3 * index + c] = halfValues[3 * parentOf(index) + c];
  }
}

/** One sweep of Gauss-Seidel; across the border of the picture a pixel is its own neighbour. */
function relax(values, known, width, height, factor) {
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const index = y * width + x;
      if (known[index]) continue;
      const left = 3 * (x > 0 ? index - 1 : index);
      const right = 3 * (x + 1 < width ? index + 1 : index);
      const above = 3 * (y > 0 ? index - width : index);
      const below = 3 * (y + 1 < height ? index + width : index);
      for (let c = 0; c < 3; c++) {
        const mean = (values[left + c] + values[right + c] + values[above + c] + values[below + c]) / 4;
        values[3 * index + c] += factor * (mean - values[3 * index + c]);
      }
    }
  }
}
