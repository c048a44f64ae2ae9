// The drawing behind the pad: the picture, the stroke or the piece in hand, undo and redo.
// Nothing here listens to events or touches the page.

const MAX_PIXELS = 16_000_000;
const MAX_HISTORY_BYTES = 256 * 2 ** 20;

function newCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

/** Decode a picture file upright, its values as stored: no colour profile is applied. */
async function decodePicture(blob) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const picture = await createImageBitmap(blob, options).catch(() => {
    throw new Error("This is not a picture that the browser can read. Use a PNG or a JPEG.");
  });
  if (picture.width * picture.height <= MAX_PIXELS) return picture;
  throw new Error(
    `This picture is ${picture.width}x${picture.height} pixels; at most ` +
      `${MAX_PIXELS / 1e6} million are allowed. Scale it down first.`,
  );
}

/** A part of a picture that can be moved, scaled, turned and flipped before it is placed. */
class Piece {
  constructor(bitmap, centre) {
    this.bitmap = bitmap;
    this.centre = centre;
    this.scale = 1;
    this.angle = 0; // radians, clockwise
    this.flipX = 1; // 1 or -1
    this.flipY = 1;
  }

  copy(changes = {}) {
    return Object.assign(new Piece(this.bitmap, this.centre), this, changes);
  }

  /** Where a point of the bitmap, measured from its centre, lies in the picture. */
  toPicture(u, v) {
    const x = u * this.scale * this.flipX;
    const y = v * this.scale * this.flipY;
    return {
      x: this.centre.x + x * Math.cos(this.angle) - y * Math.sin(this.angle),
      y: this.centre.y + x * Math.sin(this.angle) + y * Math.cos(this.angle),
    };
  }

  corners() {
    const u = (this.bitmap.width / 2) * this.flipX; // as seen, whichever way it is flipped
    const v = (this.bitmap.height / 2) * this.flipY;
    return [
      this.toPicture(-u, -v),
      this.toPicture(u, -v),
      this.toPicture(u, v),
      this.toPicture(-u, v),
    ];
  }

  contains(point) {
    const dx = point.x - this.centre.x;
    const dy = point.y - this.centre.y;
    const u = dx * Math.cos(this.angle) + dy * Math.sin(this.angle);
    const v = dy * Math.cos(this.angle) - dx * Math.sin(this.angle);
    const { width, height } = this.bitmap;
    return Math.abs(u) <= (width * this.scale) / 2 && Math.abs(v) <= (height * this.scale) / 2;
  }

  draw(context) {
    const { width, height } = this.bitmap;
    context.save();
    context.translate(this.centre.x, this.centre.y);
    context.rotate(this.angle);
    context.scale(this.scale * this.flipX, this.scale * this.flipY);
    // Only moved or flipped: pixels fall on pixels, and must stay what they are.
    context.imageSmoothingEnabled = this.angle !== 0 || this.scale !== 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.bitmap, -width / 2, -height / 2);
    context.restore();
  }
}

class Drawing {
  /** Start from a decoded picture; transparency is laid on white. */
  constructor(picture) {
    this.size = { width: picture.width, height: picture.height };
    this.canvas = newCanvas(picture.width, picture.height);
    this.context = this.canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    this.context.fillStyle = "#fff";
    this.context.fillRect(0, 0, picture.width, picture.height);
    this.context.drawImage(picture, 0, 0);
    this.pixels = this.#read(); // the truth; the canvas is its mirror
    this.original = this.#read();
    this.stroke = null;
    this.piece = null;
    this.mask = null; // where the piece was cut from, as long as the hole is not made
    this.beforePiece = null; // the pixels before the hole was made
    this.undoable = [];
    this.redoable = [];
  }

  #read() {
    return this.context.getImageData(0, 0, this.size.width, this.size.height);
  }

  #show(rect = { left: 0, top: 0, right: this.size.width, bottom: this.size.height }) {
    const { left, top, right, bottom } = rect;
    this.context.putImageData(this.pixels, 0, 0, left, top, right - left, bottom - top);
  }

  #set(pixels) {
    this.pixels.data.set(pixels);
    this.#show();
  }

  get isBusy() {
    return this.stroke !== null || this.piece !== null;
  }

  /** Draw the picture and the piece in hand. */
  drawOn(context) {
    context.drawImage(this.canvas, 0, 0);
    this.piece?.draw(context);
  }

  colourAt({ x, y }) {
    const column = clamp(Math.floor(x), 0, this.size.width - 1);
    const row = clamp(Math.floor(y), 0, this.size.height - 1);
    const at = 4 * (row * this.size.width + column);
    return [...this.pixels.data.subarray(at, at + 3)];
  }

  toDataURL() {
    return this.canvas.toDataURL("image/png");
  }

  // --- strokes ---

  /** Begin a stroke in a colour [r, g, b]; with null, one that brings the original back. */
  beginStroke(point, radius, colour) {
    const coverage = new Uint8Array(this.size.width * this.size.height);
    this.stroke = { coverage, colour, point, before: this.pixels.data.slice() };
    this.strokeTo(point, radius);
  }

  strokeTo(point, radius) {
    const { coverage, colour, before } = this.stroke;
    const rect = addSegment(coverage, this.size, this.stroke.point, point, radius);
    this.stroke.point = point;
    if (colour) paintColour(this.pixels.data, before, coverage, this.size, rect, colour);
    else restorePixels(this.pixels.data, this.original.data, coverage, this.size, rect);
    this.#show(rect);
  }

  endStroke() {
    const { before, colour } = this.stroke;
    this.stroke = null;
    this.#remember(colour ? "brush stroke" : "eraser stroke", before);
  }

  cancelStroke() {
    const { before } = this.stroke;
    this.stroke = null;
    this.#set(before);
  }

  // --- pieces ---

  /** Select what lies inside a closed polygon; false if that is no pixel at all. */
  select(points) {
    const mask = polygonMask(points, this.size);
    const rect = rectWhere(this.size, (index) => mask[index]);
    if (isEmptyRect(rect)) return false;
    const width = rect.right - rect.left;
    const height = rect.bottom - rect.top;
    const cut = this.context.getImageData(rect.left, rect.top, width, height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const isInside = mask[(rect.top + y) * this.size.width + rect.left + x];
        if (!isInside) cut.data.fill(0, 4 * (y * width + x), 4 * (y * width + x) + 4);
      }
    }
    const bitmap = newCanvas(width, height);
    bitmap.getContext("2d", { willReadFrequently: true }).putImageData(cut, 0, 0);
    this.piece = new Piece(bitmap, { x: rect.left + width / 2, y: rect.top + height / 2 });
    this.mask = mask;
    return true;
  }

  /** Take a foreign picture in hand, in the middle, scaled down if it does not fit. */
  addPiece(picture) {
    this.placePiece();
    const fit = Math.min(1, this.size.width / picture.width, this.size.height / picture.height);
    const width = Math.max(1, Math.round(picture.width * fit));
    const height = Math.max(1, Math.round(picture.height * fit));
    const bitmap = newCanvas(width, height);
    const context = bitmap.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, width, height);
    const left = Math.floor((this.size.width - width) / 2);
    const top = Math.floor((this.size.height - height) / 2);
    this.piece = new Piece(bitmap, { x: left + width / 2, y: top + height / 2 });
    this.beforePiece = this.pixels.data.slice();
  }

  changePiece(changes) {
    this.#lift();
    this.piece = this.piece.copy(changes);
  }

  /** Cut the piece out of the picture and fill the hole, the first time it is changed. */
  #lift() {
    if (!this.mask) return;
    this.beforePiece = this.pixels.data.slice();
    fillHole(this.pixels.data, this.mask, this.size);
    this.mask = null;
    this.#show();
  }

  /** Make the piece in hand part of the picture where it is. */
  placePiece() {
    if (this.piece && this.beforePiece) {
      this.piece.draw(this.context);
      this.pixels = this.#read();
      this.#remember("piece", this.beforePiece);
    }
    this.#dropPiece();
  }

  deletePiece() {
    this.#lift();
    const before = this.beforePiece;
    this.#dropPiece();
    this.#remember("deletion", before);
  }

  /** Leave the piece where it is and take a second one in hand, a little to the lower right. */
  duplicatePiece() {
    const { centre } = this.piece;
    const offset = Math.max(1, Math.round(Math.min(this.size.width, this.size.height) / 16));
    const copy = this.piece.copy({ centre: { x: centre.x + offset, y: centre.y + offset } });
    this.placePiece();
    this.piece = copy;
    this.beforePiece = this.pixels.data.slice();
  }

  /** Let go of the piece; the picture is as it was before it was taken. */
  cancelPiece() {
    if (this.beforePiece) this.#set(this.beforePiece);
    this.#dropPiece();
  }

  #dropPiece() {
    this.piece = this.mask = this.beforePiece = null;
  }

  // --- history ---

  /** Bring the original picture back; this too can be undone. */
  clear() {
    this.cancelPiece();
    const before = this.pixels.data.slice();
    this.#set(this.original.data);
    this.#remember("clearing", before);
  }

  /** Keep what changed since `before`: the changed rect, before and after. */
  #remember(name, before) {
    const now = new Uint32Array(this.pixels.data.buffer);
    const old = new Uint32Array(before.buffer);
    const rect = rectWhere(this.size, (index) => now[index] !== old[index]);
    if (isEmptyRect(rect)) return;
    const was = new ImageData(before, this.size.width);
    this.undoable.push({ name, rect, was: cropped(was, rect), is: cropped(this.pixels, rect) });
    this.redoable = [];
    const bytes = ({ was: { data } }) => 2 * data.length;
    let total = this.undoable.reduce((sum, change) => sum + bytes(change), 0);
    while (total > MAX_HISTORY_BYTES && this.undoable.length > 1) {
      total -= bytes(this.undoable.shift());
    }
  }

  /** Take the last change back; returns its name, or null if there is none. */
  undo() {
    if (this.piece) {
      const name = this.beforePiece ? "piece" : "selection";
      this.cancelPiece();
      return name;
    }
    return this.#step(this.undoable, this.redoable, "was");
  }

  redo() {
    this.placePiece();
    return this.#step(this.redoable, this.undoable, "is");
  }

  #step(from, to, side) {
    const change = from.pop();
    if (!change) return null;
    this.context.putImageData(change[side], change.rect.left, change.rect.top);
    this.pixels = this.#read();
    to.push(change);
    return change.name;
  }
}

function cropped(image, rect) {
  const width = rect.right - rect.left;
  const part = new ImageData(width, rect.bottom - rect.top);
  for (let row = rect.top; row < rect.bottom; row++) {
    const start = 4 * (row * image.width + rect.left);
    part.data.set(image.data.subarray(start, start + 4 * width), 4 * width * (row - rect.top));
  }
  return part;
}
