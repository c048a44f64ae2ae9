// What is drawn over the picture but is no part of it: outline, handles, brush ring, cross-hair.

const HANDLE = 7; // half the side of a handle, in CSS pixels
const TURN_DISTANCE = 26; // of the turning handle from the piece, in CSS pixels

class Overlay {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
  }

  /** Fit the overlay to the picture as shown; `zoom` is CSS pixels per pixel of the picture. */
  fit(width, height, size) {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.width = width;
    this.height = height;
    this.zoom = width / size.width;
  }

  /** Where the handles of a piece are, in CSS pixels, kept inside the picture. */
  handles(piece) {
    const [topLeft, topRight, bottomRight] = piece.corners().map((corner) => this.#shown(corner));
    const up = { x: Math.sin(piece.angle), y: -Math.cos(piece.angle) };
    return {
      scale: this.#inside(bottomRight),
      turn: this.#inside({
        x: (topLeft.x + topRight.x) / 2 + TURN_DISTANCE * up.x,
        y: (topLeft.y + topRight.y) / 2 + TURN_DISTANCE * up.y,
      }),
    };
  }

  /** The handle at a point of the picture, or null; `reach` is in CSS pixels. */
  handleAt(piece, point, reach) {
    const at = this.#shown(point);
    const isNear = ([, handle]) => Math.hypot(handle.x - at.x, handle.y - at.y) <= reach;
    return Object.entries(this.handles(piece)).find(isNear)?.[0] ?? null;
  }

  draw({ piece, outline, ring, cross }) {
    this.context.clearRect(0, 0, this.width, this.height);
    if (piece) this.#drawPiece(piece);
    if (outline) this.#line(outline.map((point) => this.#shown(point)));
    if (ring) this.#drawRing(ring);
    if (cross) this.#drawCross(this.#shown(cross));
  }

  #shown({ x, y }) {
    return { x: x * this.zoom, y: y * this.zoom };
  }

  #inside({ x, y }) {
    const margin = HANDLE + 2;
    return {
      x: clamp(x, margin, this.width - margin),
      y: clamp(y, margin, this.height - margin),
    };
  }

  #drawPiece(piece) {
    const corners = piece.corners().map((corner) => this.#shown(corner));
    this.#line([...corners, corners[0]]);
    const { scale, turn } = this.handles(piece);
    this.#line([{ x: (corners[0].x + corners[1].x) / 2, y: (corners[0].y + corners[1].y) / 2 }, turn]);
    this.#knob(() => this.context.rect(scale.x - HANDLE, scale.y - HANDLE, 2 * HANDLE, 2 * HANDLE));
    this.#knob(() => this.context.arc(turn.x, turn.y, HANDLE, 0, 2 * Math.PI));
  }

  #knob(trace) {
    this.context.beginPath();
    trace();
    this.context.fillStyle = "#fff";
    this.context.fill();
    this.#stroke("#111", 2, []);
  }

  #drawRing({ point, radius }) {
    const { x, y } = this.#shown(point);
    this.context.beginPath();
    this.context.arc(x, y, Math.max(2, radius * this.zoom), 0, 2 * Math.PI);
    this.#twoTone([]);
  }

  #drawCross({ x, y }) {
    this.context.beginPath();
    this.context.moveTo(x - 10, y);
    this.context.lineTo(x + 10, y);
    this.context.moveTo(x, y - 10);
    this.context.lineTo(x, y + 10);
    this.#twoTone([]);
  }

  #line(points) {
    this.context.beginPath();
    points.forEach(({ x, y }) => this.context.lineTo(x, y));
    this.#twoTone([5, 4]);
  }

  /** Black on white: seen on any picture. */
  #twoTone(dashes) {
    this.#stroke("#fff", 3, []);
    this.#stroke("#111", 1.5, dashes);
  }

  #stroke(colour, width, dashes) {
    this.context.strokeStyle = colour;
    this.context.lineWidth = width;
    this.context.setLineDash(dashes);
    this.context.stroke();
  }
}
