// The studio: buttons of its panels become events, files are dropped and uploaded, two clips play
// in step. `window.studio.connect` is called once for every panel.
(() => {
  "use strict";

  const EVENTS = ["act", "form", "show"];
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const FOCUS_STEP = 0.05;
  const isCalm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
  const isShown = (element) => element.offsetParent !== null; // or its tab is closed
  let dropped = null; // takes a file that is dropped or pasted beside the wells

  function connect(element, upload, watch, send) {
    let key = null; // of what the keyboard is on

    function fire(target, extra = {}) {
      const data = { ...target.dataset };
      if (data.confirm && !window.confirm(data.confirm)) return;
      const event = EVENTS.find((name) => name in data);
      const doing = data[event];
      for (const name of [...EVENTS, "key", "confirm"]) delete data[name];
      send[event]({ do: doing, ...data, ...extra });
    }

    async function give(file, role) {
      const well = element.querySelector(`[data-well="${role}"]`);
      well?.classList.add("st-busy");
      try {
        const { path } = await upload(file);
        const what = role ? { do: "file", role } : { do: "drop" };
        send.form({ ...what, path, name: file.name });
      } catch (error) {
        window.alert(`${file.name} could not be uploaded: ${error.message || error}`);
        well?.classList.remove("st-busy");
      }
    }

    const marked = EVENTS.map((name) => `button[data-${name}]`).join();
    element.addEventListener("click", (event) => {
      const target = event.target.closest(marked);
      if (target && !target.disabled) fire(target, playhead(element, target));
      const view = event.target.closest("[data-focus]");
      if (view) send.form({ do: "focus", ...within(view, event) });
      sync(element, event);
    });
    element.addEventListener("change", (event) => {
      const target = event.target;
      if (target.dataset.file && target.files[0]) give(target.files[0], target.dataset.file);
      else if (target.dataset.form) fire(target, { value: target.value });
    });
    element.addEventListener("input", (event) => {
      const output = event.target.closest("label")?.querySelector("output");
      if (output) output.textContent = event.target.value;
      sync(element, event);
    });
    element.addEventListener("keydown", (event) => {
      const view = event.target.closest("[data-focus]");
      const way = ARROWS[event.key];
      if (!view || !way) return;
      event.preventDefault();
      const [x, y] = view.dataset.focus.split(",").map(Number);
      send.form({ do: "focus", x: x + FOCUS_STEP * way[0], y: y + FOCUS_STEP * way[1] });
    });
    element.addEventListener("focusin", (event) => (key = event.target.dataset.key || null));
    for (const name of ["dragover", "dragleave", "drop"]) {
      element.addEventListener(name, (event) => {
        const well = event.target.closest("[data-well]");
        well?.classList.toggle("st-over", name === "dragover");
        const file = event.dataTransfer?.files[0];
        if (name !== "drop" || !file || !well?.dataset.well) return;
        event.preventDefault();
        event.stopPropagation();
        give(file, well.dataset.well);
      });
    }
    element.addEventListener("timeupdate", () => keepInStep(element), true);
    if (element.querySelector("[data-well]") || element.closest("#wells")) {
      dropped = (file) => give(file, "");
    }
    watch("value", () => {
      // The panel was drawn anew: the keyboard stays where it was.
      const kept = key && element.querySelector(`[data-key="${CSS.escape(key)}"]`);
      if (kept && document.activeElement === document.body) kept.focus({ preventScroll: true });
      for (const video of element.querySelectorAll("video[autoplay]")) {
        if (isCalm()) video.pause();
        else video.play().catch(() => undefined); // the browser may not want to
      }
    });
  }

  /** Where in an element a pointer is, from 0 to 1. */
  function within(element, event) {
    const box = element.getBoundingClientRect();
    const part = (at, start, length) => Math.min(Math.max((at - start) / length, 0), 1);
    return {
      x: part(event.clientX, box.left, box.width),
      y: part(event.clientY, box.top, box.height),
    };
  }

  /** The frame that a clip stands at, for buttons that are about it. */
  function playhead(element, target) {
    const { fps, frames } = target.dataset;
    const video = element.querySelector("video");
    if (!fps || !video) return {};
    return { frame: Math.min(Math.floor(video.currentTime * fps + 0.01), frames - 1) };
  }

  // ---- two clips in step

  function sync(element, event) {
    const target = event.target.closest("[data-sync]");
    const videos = [...element.querySelectorAll("[data-compare] video")];
    if (!target || videos.length !== 2) return;
    const slider = element.querySelector('[data-sync="seek"]');
    const fps = Number(slider.dataset.fps);
    const seek = (frame) => {
      const wrapped = Math.min(Math.max(frame, 0), Number(slider.max));
      videos.forEach((video) => {
        video.pause();
        video.currentTime = (wrapped + 0.5) / fps;
      });
      slider.value = wrapped;
    };
    const now = Math.floor(videos[0].currentTime * fps + 0.01);
    const doing = target.dataset.sync;
    if (doing === "play" && event.type === "click") {
      const isPaused = videos[0].paused;
      videos[1].currentTime = videos[0].currentTime;
      videos.forEach((video) => (isPaused ? video.play() : video.pause()));
    } else if (doing === "seek" && event.type === "input") seek(Number(target.value));
    else if (doing === "back" && event.type === "click") seek(now - 1);
    else if (doing === "on" && event.type === "click") seek(now + 1);
    else if (doing === "difference" && event.type === "input") {
      element.querySelector(".st-sides").classList.toggle("st-difference", target.checked);
    }
  }

  function keepInStep(element) {
    const videos = [...element.querySelectorAll("[data-compare] video")];
    if (videos.length !== 2 || videos[0].paused) return;
    const slider = element.querySelector('[data-sync="seek"]');
    const fps = Number(slider.dataset.fps);
    if (Math.abs(videos[0].currentTime - videos[1].currentTime) > 1 / fps) {
      videos[1].currentTime = Math.min(videos[0].currentTime, videos[1].duration || 0);
    }
    slider.value = Math.floor(videos[0].currentTime * fps);
  }

  // ---- the page

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      [...document.querySelectorAll("#generate, #make-film")].find(isShown)?.click();
    }
    const isElsewhere = "[role=listbox], dialog, .pd-pad, [contenteditable=true]";
    if (event.key !== "Escape" || event.defaultPrevented || event.target.closest(isElsewhere)) return;
    if (document.querySelector("ul[role=listbox]")) return; // Escape closes it
    const stop = document.querySelector("#stop");
    if (stop && !stop.disabled) stop.click();
  });
  document.addEventListener("dragover", (event) => {
    if (event.dataTransfer?.types.includes("Files")) event.preventDefault();
  });
  document.addEventListener("drop", (event) => {
    const file = event.dataTransfer?.files[0];
    if (!file || event.defaultPrevented || event.target.closest(".pd-pad")) return;
    event.preventDefault();
    if (isShown(document.querySelector("#form"))) dropped?.(file);
  });
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (!file || event.target.closest(".pd-pad")) return;
    event.preventDefault();
    if (isShown(document.querySelector("#form"))) dropped?.(file);
  });

  window.studio = { connect };
})();
