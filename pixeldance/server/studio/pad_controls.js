// What the pad looks like: its elements, made once, found again by their data-pad names.

const TOOLS = [
  { name: "brush", label: "Brush", key: "b", help: "Paint. Alt+click takes a colour." },
  { name: "eraser", label: "Eraser", key: "e", help: "Bring the original picture back." },
  { name: "pick", label: "Pick", title: "Pick colour", key: "i", help: "Take the colour of a pixel." },
  { name: "box", label: "Box", title: "Box select", key: "r", help: "Drag a box around a piece, then move it." },
  { name: "lasso", label: "Lasso", key: "l", help: "Draw around a piece, then move it." },
];

const HINT =
  "A rough drawing is enough: show roughly where things should end, set the last-frame strength " +
  "towards loose, and the model takes it as an instruction and departs from it.";

const KEYS =
  "Drawing area. Arrow keys move the pointer, with Shift by 10 pixels; Space presses and releases " +
  "it. With a piece in hand: arrow keys move it, Enter places it, Delete removes it, Escape puts " +
  "it back.";

function toolButton({ name, label, title = label, key, help }) {
  return `<button type="button" data-tool="${name}" aria-label="${title}" aria-pressed="false"
    aria-keyshortcuts="${key}" title="${help} Key: ${key.toUpperCase()}">${label}</button>`;
}

function button(name, label, title) {
  return `<button type="button" data-pad="${name}" title="${title}">${label}</button>`;
}

const MARKUP = `
  <p class="pd-hint">${HINT}</p>
  <div class="pd-bar" role="group" aria-label="Tools">${TOOLS.map(toolButton).join("")}</div>
  <div class="pd-bar" role="group" aria-label="Brush and history">
    <label>Colour <input type="color" data-pad="colour" value="#e03131"></label>
    <label>Size <input type="range" data-pad="diameter" min="1" max="100" value="12">
      <span data-pad="diameter-value" aria-hidden="true"></span></label>
    <span class="pd-gap"></span>
    ${button("undo", "Undo", "Take the last change back (Ctrl+Z)")}
    ${button("redo", "Redo", "Make it again (Ctrl+Shift+Z)")}
    ${button("clear", "Clear", "Bring the whole original picture back; can be undone")}
  </div>
  <div class="pd-stage" data-pad="stage">
    <canvas data-pad="view" tabindex="0" role="application" aria-label="${KEYS}"></canvas>
    <canvas data-pad="overlay" aria-hidden="true"></canvas>
    <p data-pad="empty">Start from the first frame, from a clip you made, or
      <button type="button" data-pad="open-empty">choose a picture</button>.
      You can also drop or paste one here.</p>
  </div>
  <div class="pd-bar pd-piece" role="group" aria-label="Piece in hand" data-pad="piece" hidden>
    <label>Scale <input type="range" data-pad="scale" min="10" max="400" value="100">
      <span data-pad="scale-value" aria-hidden="true"></span></label>
    <label>Turn <input type="range" data-pad="turn" min="-180" max="180" value="0">
      <span data-pad="turn-value" aria-hidden="true"></span></label>
    ${button("flip-x", "Mirror", "Flip the piece left to right")}
    ${button("flip-y", "Upside down", "Flip the piece top to bottom")}
    ${button("duplicate", "Duplicate", "Leave a copy here and take another one in hand")}
    ${button("delete", "Delete", "Remove the piece; the background closes (Delete)")}
    ${button("place", "Place", "Make the piece part of the picture (Enter)")}
    ${button("cancel", "Cancel", "Put the piece back where it was (Esc)")}
  </div>
  <div class="pd-bar" role="group" aria-label="Pictures">
    ${button("add", "Add a picture as a piece…", "Or press Ctrl+V, or drop it on the drawing")}
    ${button("open", "Start from a file…", "Replace the whole drawing by a picture")}
    <span class="pd-status" role="status" data-pad="status"></span>
  </div>
  <input type="file" accept="image/*" data-pad="file" hidden>`;

/** Build the pad; returns its root and its parts by their data-pad names. */
function buildControls() {
  const root = document.createElement("section");
  root.className = "pd-pad";
  root.setAttribute("aria-label", "Drawing pad");
  root.innerHTML = MARKUP;
  const parts = {};
  for (const part of root.querySelectorAll("[data-pad]")) parts[part.dataset.pad] = part;
  parts.tools = [...root.querySelectorAll("[data-tool]")];
  return { root, parts };
}

/** Enable, fill in and show the controls that fit the drawing (null: there is none yet). */
function showState(root, parts, drawing) {
  const piece = drawing?.piece ?? null;
  root.classList.toggle("pd-is-empty", !drawing);
  parts.empty.hidden = Boolean(drawing);
  parts["diameter-value"].textContent = `${parts.diameter.value} px`;
  for (const control of [...parts.tools, parts.colour, parts.diameter, parts.clear, parts.add]) {
    control.disabled = !drawing;
  }
  const focused = document.activeElement;
  parts.undo.disabled = !piece && !drawing?.undoable.length;
  parts.redo.disabled = !drawing?.redoable.length;
  parts.piece.hidden = !piece;
  // The focus must not be lost with what it was on.
  const isLost = focused?.disabled || (!piece && parts.piece.contains(focused));
  if (isLost && root.contains(focused)) {
    parts.view.focus({ preventScroll: true });
  }
  if (!piece) return;
  const percent = Math.round(100 * piece.scale);
  const degrees = Math.round((180 * piece.angle) / Math.PI);
  parts.scale.value = percent;
  parts.turn.value = degrees;
  parts["scale-value"].textContent = `${percent} %`;
  parts["turn-value"].textContent = `${degrees}°`;
}

function toRgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function toHex(rgb) {
  return `#${rgb.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}
