// The drawing pad: pointer, keyboard, clipboard and files in, a PNG out.
// `window.PixelDancePad` has mount(holder), open(dataUri) and result(); there is one pad a page.

const REACH = { mouse: 11, pen: 14, touch: 24 }; // of a handle, in CSS pixels
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

class Pad {
  constructor() {
    const { root, parts } = buildControls();
    this.root = root;
    this.parts = parts;
    this.view = parts.view.getContext("2d", { alpha: false });
    this.overlay = new Overlay(parts.overlay);
    this.drawing = null;
    this.tool = "brush";
    this.outline = null; // points of the selection being drawn
    this.start = null; // where it was begun
    this.drag = null; // the piece being dragged: {how, from, piece}
    this.hover = null; // where the mouse or the pen is
    this.cross = null; // the keyboard's pointer; null while another one is used
    this.isPressed = false;
    this.openings = 0;
    this.frame = null; // the animation frame asked for
    this.onEscape = (event) => this.escape(event);
    this.listen();
    this.setTool("brush");
    new ResizeObserver(() => this.update()).observe(parts.stage);
  }

  // --- in and out ---

  /** Open a picture file as the picture to start from. */
  async open(blob) {
    const opening = ++this.openings;
    const picture = await decodePicture(blob);
    if (opening !== this.openings) return; // another one has been opened since
    this.release(true);
    this.drawing = new Drawing(picture);
    this.parts.view.width = picture.width;
    this.parts.view.height = picture.height;
    this.cross = null;
    this.say(`Picture of ${picture.width} by ${picture.height} pixels.`);
    this.update();
  }

  async addPiece(blob) {
    if (!this.drawing) return this.open(blob);
    const picture = await decodePicture(blob);
    this.release(true);
    this.drawing.addPiece(picture);
    this.say("Picture added: move, scale or turn it, then place it.");
    this.update();
    this.parts.view.focus({ preventScroll: true });
    return undefined;
  }

  /** The drawing with the piece in hand placed, as a PNG; an empty text if there is none. */
  result() {
    if (!this.drawing) return "";
    this.release();
    this.drawing.placePiece();
    this.update();
    return this.drawing.toDataURL();
  }

  // --- listening ---

  listen() {
    const { parts, root } = this;
    for (const button of parts.tools) {
      button.addEventListener("click", () => this.setTool(button.dataset.tool));
    }
    const actions = {
      undo: () => this.undo(),
      redo: () => this.redo(),
      clear: () => this.act("Cleared.", (drawing) => drawing.clear()),
      "flip-x": () => this.flip("flipX"),
      "flip-y": () => this.flip("flipY"),
      duplicate: () => this.act("Duplicated.", (drawing) => drawing.duplicatePiece()),
      delete: () => this.act("Piece deleted.", (drawing) => drawing.deletePiece()),
      place: () => this.act("Piece placed.", (drawing) => drawing.placePiece()),
      cancel: () => this.cancel(),
      open: () => this.choose((blob) => this.open(blob)),
      "open-empty": () => this.choose((blob) => this.open(blob)),
      add: () => this.choose((blob) => this.addPiece(blob)),
    };
    for (const [name, action] of Object.entries(actions)) {
      parts[name].addEventListener("click", action);
    }
    parts.diameter.addEventListener("input", () => this.update());
    parts.scale.addEventListener("input", () =>
      this.changePiece({ scale: parts.scale.valueAsNumber / 100 }),
    );
    parts.turn.addEventListener("input", () =>
      this.changePiece({ angle: (parts.turn.valueAsNumber * Math.PI) / 180 }),
    );
    root.addEventListener("keydown", (event) => this.onKey(event));
    this.listenToPointers();
    this.listenToFiles();
  }

  listenToPointers() {
    const { view } = this.parts;
    view.addEventListener("pointerdown", (event) => {
      if (!this.drawing || !event.isPrimary || event.button !== 0) return;
      view.setPointerCapture(event.pointerId);
      view.focus({ preventScroll: true });
      this.cross = null;
      this.press(this.pointOf(event), event);
    });
    view.addEventListener("pointermove", (event) => {
      if (!this.drawing || !event.isPrimary) return;
      this.hover = event.pointerType === "touch" ? null : this.pointOf(event);
      const moves = this.isPressed ? (event.getCoalescedEvents?.() ?? []) : [];
      for (const move of moves.length ? moves : [event]) this.moveTo(this.pointOf(move), move);
      this.update();
    });
    view.addEventListener("pointerup", () => this.release());
    view.addEventListener("pointercancel", () => this.release(true));
    view.addEventListener("pointerleave", () => {
      this.hover = null;
      this.update();
    });
  }

  listenToFiles() {
    const { root, parts } = this;
    parts.file.addEventListener("change", () => {
      const [file] = parts.file.files;
      if (file) this.attempt(this.onChosen(file));
      parts.file.value = "";
    });
    for (const type of ["dragenter", "dragover"]) {
      root.addEventListener(type, (event) => {
        if (event.dataTransfer.types.includes("Files")) event.preventDefault();
      });
    }
    root.addEventListener("drop", (event) => {
      const [file] = event.dataTransfer.files;
      if (file) event.preventDefault(); // else the browser would leave the page and show the file
      if (!file?.type.startsWith("image/")) return; // a clip is for the page
      event.stopPropagation();
      this.attempt(this.addPiece(file));
    });
    document.addEventListener("paste", (event) => {
      if (!root.contains(document.activeElement)) return;
      const files = [...event.clipboardData.files];
      const file = files.find((candidate) => candidate.type.startsWith("image/"));
      if (!file) return;
      event.preventDefault();
      this.attempt(this.addPiece(file));
    });
  }

  choose(onChosen) {
    this.onChosen = onChosen;
    this.parts.file.click();
  }

  /** Tell the user why something with a file has failed. */
  async attempt(promise) {
    await promise.catch((error) => this.say(error.message));
  }

  // --- pointer: mouse, touch, pen, or the keyboard's cross-hair; points are in the picture ---

  pointOf(event) {
    const shown = this.parts.view.getBoundingClientRect();
    return {
      x: ((event.clientX - shown.left) / shown.width) * this.drawing.size.width,
      y: ((event.clientY - shown.top) / shown.height) * this.drawing.size.height,
    };
  }

  press(point, { altKey = false, pressure = 0, pointerType = "mouse" } = {}) {
    this.isPressed = true;
    if (this.drawing.piece) {
      if (this.grab(point, pointerType)) return;
      this.drawing.placePiece();
    }
    if (this.tool === "pick" || altKey) this.takeColour(point);
    else if (this.tool === "brush" || this.tool === "eraser") {
      const colour = this.tool === "brush" ? toRgb(this.parts.colour.value) : null;
      this.drawing.beginStroke(point, this.radius(pressure, pointerType), colour);
    } else {
      this.start = point;
      this.outline = [point];
    }
    this.update();
  }

  moveTo(point, { pressure = 0, pointerType = "mouse", shiftKey = false } = {}) {
    if (!this.isPressed) return;
    if (this.drag) this.dragTo(point, shiftKey);
    else if (this.drawing.stroke) this.drawing.strokeTo(point, this.radius(pressure, pointerType));
    else if (this.outline) {
      if (this.tool === "box") this.outline = boxOutline(this.start, point);
      else this.outline.push(point);
    }
  }

  /** Let the pointer go: the stroke or the outline is complete, or given up. */
  release(isGivenUp = false) {
    const { drawing, outline } = this;
    this.isPressed = false;
    this.drag = this.outline = null;
    if (drawing?.stroke) {
      if (isGivenUp) drawing.cancelStroke();
      else drawing.endStroke();
    }
    if (outline && !isGivenUp) {
      const isSelected = outline.length > 2 && drawing.select(outline);
      this.say(isSelected ? "Piece selected: drag it to move it." : "Nothing selected.");
    }
    this.update();
  }

  radius(pressure, pointerType) {
    const radius = this.parts.diameter.valueAsNumber / 2;
    return pointerType === "pen" && pressure > 0 ? Math.max(0.5, 2 * pressure * radius) : radius;
  }

  takeColour(point) {
    this.parts.colour.value = toHex(this.drawing.colourAt(point));
    this.say(`Colour ${this.parts.colour.value} taken.`);
    if (this.tool === "pick") this.setTool("brush");
    this.isPressed = false;
  }

  /** Take hold of the piece at a point; false if it is not there. */
  grab(point, pointerType) {
    const { piece } = this.drawing;
    const handle = this.overlay.handleAt(piece, point, REACH[pointerType] ?? REACH.mouse);
    if (!handle && !piece.contains(point)) return false;
    this.drag = { how: handle ?? "move", from: point, piece };
    return true;
  }

  dragTo(point, isSnapping) {
    const { how, from, piece } = this.drag;
    const { centre } = piece;
    if (how === "move") {
      // Whole pixels only: what is merely moved keeps its exact values.
      const x = centre.x + Math.round(point.x - from.x);
      const y = centre.y + Math.round(point.y - from.y);
      this.drawing.changePiece({ centre: { x, y } });
    } else if (how === "scale") {
      const reach = (at) => Math.max(1, Math.hypot(at.x - centre.x, at.y - centre.y));
      const scale = clamp((piece.scale * reach(point)) / reach(from), 0.05, 20);
      this.drawing.changePiece({ scale });
    } else {
      const bearing = (at) => Math.atan2(at.y - centre.y, at.x - centre.x);
      const angle = piece.angle + bearing(point) - bearing(from);
      const step = Math.PI / 12;
      const snapped = isSnapping ? Math.round(angle / step) * step : angle;
      this.drawing.changePiece({ angle: Math.atan2(Math.sin(snapped), Math.cos(snapped)) });
    }
  }

  // --- keyboard ---

  onKey(event) {
    if (!this.drawing) return;
    const key = event.key.toLowerCase();
    const isCommand = event.ctrlKey || event.metaKey;
    let isUsed = true;
    if (isCommand && (key === "y" || (key === "z" && event.shiftKey))) this.redo();
    else if (isCommand && key === "z") this.undo();
    else if (!isCommand && event.target === this.parts.view) isUsed = this.onViewKey(event);
    else isUsed = false;
    if (!isUsed) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** A key pressed on the drawing itself; false if it means nothing here. */
  onViewKey(event) {
    const tool = TOOLS.find(({ key }) => key === event.key.toLowerCase());
    if (event.key in ARROWS) this.onArrow(event);
    else if (event.key === " ") this.onSpace();
    else if (tool) this.setTool(tool.name);
    else if (!this.drawing.piece) return false;
    else if (event.key === "Enter") this.parts.place.click();
    else if (event.key === "Delete" || event.key === "Backspace") this.parts.delete.click();
    else return false;
    return true;
  }

  onArrow(event) {
    const [dx, dy] = ARROWS[event.key].map((step) => step * (event.shiftKey ? 10 : 1));
    const { piece, size } = this.drawing;
    if (piece) {
      this.changePiece({ centre: { x: piece.centre.x + dx, y: piece.centre.y + dy } });
      return;
    }
    const from = this.cross ?? this.middle();
    this.cross = {
      x: clamp(from.x + dx, 0.5, size.width - 0.5),
      y: clamp(from.y + dy, 0.5, size.height - 0.5),
    };
    this.moveTo(this.cross);
    this.update();
  }

  onSpace() {
    this.cross ??= this.middle();
    if (this.isPressed) this.release();
    else if (!this.drawing.piece) this.press(this.cross);
  }

  middle() {
    const { width, height } = this.drawing.size;
    return { x: Math.floor(width / 2) + 0.5, y: Math.floor(height / 2) + 0.5 };
  }

  /** Esc while there is something to let go of: ours alone, the page must not see it. */
  escape(event) {
    if (event.key !== "Escape") return;
    event.preventDefault();
    event.stopImmediatePropagation();
    this.cancel();
  }

  // --- actions ---

  setTool(name) {
    if (this.drawing) this.release();
    this.tool = name;
    for (const button of this.parts.tools) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === name));
    }
    this.update();
  }

  act(message, change) {
    this.release();
    change(this.drawing);
    this.say(message);
    this.update();
  }

  changePiece(changes) {
    this.drawing.changePiece(changes);
    this.update();
  }

  flip(axis) {
    this.changePiece({ [axis]: -this.drawing.piece[axis] });
  }

  cancel() {
    this.release(true);
    this.drawing.cancelPiece();
    this.say("Cancelled.");
    this.update();
  }

  undo() {
    this.release(true);
    const name = this.drawing.undo();
    this.say(name ? `Undone: ${name}.` : "Nothing to undo.");
    this.update();
  }

  redo() {
    this.release();
    const name = this.drawing.redo();
    this.say(name ? `Made again: ${name}.` : "Nothing to redo.");
    this.update();
  }

  say(message) {
    this.parts.status.textContent = message;
  }

  // --- showing ---

  /** Bring everything that is seen in line with the state; the picture with the next frame. */
  update() {
    showState(this.root, this.parts, this.drawing);
    this.guardEscape();
    if (!this.drawing || this.frame !== null) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.drawing.drawOn(this.view);
      this.updateOverlay();
    });
  }

  /** Catch Esc before the page, wherever the focus is, while there is something to let go of. */
  guardEscape() {
    const change = this.outline || this.drawing?.isBusy ? "add" : "remove";
    window[`${change}EventListener`]("keydown", this.onEscape, { capture: true });
  }

  updateOverlay() {
    const { width, height } = this.parts.view.getBoundingClientRect();
    if (width === 0) return; // not shown now
    const isBrush = this.tool === "brush" || this.tool === "eraser";
    const { piece, size } = this.drawing;
    const at = this.cross ?? this.hover;
    const ring = isBrush && !piece && at;
    this.overlay.fit(width, height, size);
    this.overlay.draw({
      piece,
      outline: this.outline,
      ring: ring && { point: at, radius: this.parts.diameter.valueAsNumber / 2 },
      cross: piece ? null : this.cross,
    });
  }
}

function blobOf(dataUri) {
  const [head, text] = dataUri.split(",", 2);
  if (head !== "data:image/png;base64") throw new Error("The pad opens PNG data URIs only.");
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

if (!window.PixelDancePad) {
  const pad = new Pad();
  window.PixelDancePad = {
    /** Show the pad in an element; a pad shown elsewhere moves there with its drawing. */
    mount: (holder) => holder.replaceChildren(pad.root),
    /** Start from a picture given as data:image/png;base64. */
    open: (dataUri) => pad.attempt((async () => pad.open(blobOf(dataUri)))()),
    result: () => pad.result(),
  };
}
