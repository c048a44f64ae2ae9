// The storyboard: cards of shots that the browser keeps, films that the server makes of them.
// `window.studioStory.connect` is called once. What is typed is kept at once, in the browser.
(() => {
  "use strict";

  const STORAGE_KEY = "pixeldance-studio-story";
  const TICK_MS = 250;
  const BUSY_MS = 500;
  const IDLE_MS = 3000;
  const MAX_JOBS = 8;
  const NUMBERS = ["duration", "last_frame_strength", "width", "height", "fps"];
  NUMBERS.push("num_inference_steps", "guidance_scale", "guidance_scale_2");

  function connect(element, upload) {
    const part = (selector) => element.querySelector(selector);
    const strip = part(".sy-strip");
    const cards = new Map(); // by the id of the shot
    let story = restored();
    let dueAt = 0; // when to look again
    let looks = 0; // the latest wins
    let isMaking = false;

    // ---- the story

    function keep() {
      try {
        localStorage.setItem(STORAGE_KEY, JSON.stringify(story));
      } catch (error) {
        notice(`This browser cannot keep the story (${error.name}). Save it as a file.`);
      }
      dueAt = Date.now() + TICK_MS;
    }

    function change(edit) {
      edit();
      if (!story.shots.length) story.shots.push(newShot());
      draw();
      keep();
    }

    function replace(draft) {
      story = usable(draft);
      for (const card of cards.values()) card.remove();
      cards.clear();
      change(() => undefined);
    }

    /** What the server reads: numbers as numbers, what is none as it was typed. */
    function sent() {
      const shots = story.shots.map((shot) => withNumbers(shot));
      return { ...story, film: withNumbers(story.film), shots };
    }

    // ---- cards

    function draw() {
      const wanted = new Set(story.shots.map((shot) => shot.id));
      for (const [id, card] of cards) {
        if (wanted.has(id)) continue;
        card.remove();
        cards.delete(id);
      }
      story.shots.forEach((shot, place) => {
        const card = cards.get(shot.id) || newCard(shot);
        if (strip.children[place] !== card) strip.insertBefore(card, strip.children[place] || null);
        fill(card, shot, place);
      });
      for (const field of element.querySelectorAll("[data-film]")) put(field, story.film[field.dataset.film]);
    }

    function newCard(shot) {
      const card = part("template").content.firstElementChild.cloneNode(true);
      card.dataset.id = shot.id;
      cards.set(shot.id, card);
      return card;
    }

    function fill(card, shot, place) {
      const find = (selector) => card.querySelector(selector);
      const isFirst = place === 0;
      find("[data-title]").textContent = shot.name || `Shot ${place + 1}`;
      find("[data-place]").textContent = place + 1;
      find("[data-do=left]").disabled = isFirst;
      find("[data-do=right]").disabled = place === story.shots.length - 1;
      for (const field of card.querySelectorAll("[data-field]")) put(field, shot[field.dataset.field]);
      card.classList.toggle("sy-first", isFirst); // it is a cut whatever it was elsewhere
      const isCut = isFirst || shot.transition === "cut";
      for (const well of card.querySelectorAll("[data-well]")) {
        const role = well.dataset.well;
        showPicture(well, shot[role]);
        well.hidden = role === "first_frame" && !isCut && !shot[role];
      }
      const strength = find(".sy-strength");
      strength.hidden = !shot.last_frame;
      strength.querySelector("output").textContent = Number(shot.last_frame_strength ?? 1).toFixed(2);
      const count = Object.keys(shot.keyframes || {}).length;
      find("[data-keyframes]").hidden = !count;
      find("[data-keyframes] span").textContent = `${count} key frame${count > 1 ? "s" : ""}.`;
    }

    function showPicture(well, picture) {
      const image = well.querySelector("img");
      image.hidden = !picture;
      if (picture) setSource(image, `studio/media/pictures/${picture.sha256}.jpg`);
      image.alt = picture ? picture.name : "";
      well.querySelector("[data-do]").hidden = !picture;
    }

    // ---- what the server says

    async function look() {
      const number = ++looks;
      const ids = story.shots.map((shot) => shot.id);
      dueAt = Date.now() + IDLE_MS;
      let view;
      try {
        view = await ask("look", sent());
      } catch (error) {
        return say(error.message);
      }
      if (number === looks) show(view, ids);
    }

    function show(view, ids) {
      view.shots.forEach((state, place) => {
        const card = cards.get(ids[place]);
        if (card) showShot(card, state, story.shots.find((shot) => shot.id === ids[place]));
      });
      say(view.problem);
      part("[data-summary]").textContent = view.summary;
      part("[data-do=make]").disabled = !view.can_make;
      part("[data-do=stop]").disabled = !view.progress;
      part(".sy-progress").hidden = !view.progress;
      if (view.progress) {
        part("progress").max = view.progress.num_steps;
        part("progress").value = view.progress.step;
        part("[data-progress]").textContent = view.progress.label;
        dueAt = Date.now() + BUSY_MS;
      }
      showFilm(view.film);
    }

    function showShot(card, state, shot) {
      const find = (selector) => card.querySelector(selector);
      tell(find("[data-problem]"), state.problem);
      card.dataset.state = state.state || "";
      setText(find("[data-state]"), state.label || "");
      find("[data-do=redo]").disabled = !state.state;
      if (!state.state) return; // unknown as long as something is wrong; what is shown stays
      const given = shot.first_frame && `studio/media/pictures/${shot.first_frame.sha256}.jpg`;
      const poster = find(".sy-poster img");
      poster.hidden = !(state.poster || given);
      if (!poster.hidden) setSource(poster, state.poster || given);
      const seed = (shot.seed ?? "") === "" ? "" : ` · seed ${shot.seed}`;
      setText(find("[data-facts]"), `${state.seconds} s${seed}`);
    }

    function showFilm(film) {
      part(".sy-film").hidden = !film;
      if (!film) return;
      part("[data-stale]").hidden = film.is_current;
      const video = part(".sy-film video");
      if (setSource(video, film.url)) {
        video.poster = film.poster;
        video.style.aspectRatio = film.ratio;
        const links = film.downloads.map(([label, url]) => {
          const link = document.createElement("a");
          Object.assign(link, { className: "st-button", download: "", href: url, textContent: label });
          return link;
        });
        part(".st-downloads").replaceChildren(...links);
      }
    }

    /** What is wrong with the story; goes away with it. */
    function say(problem) {
      tell(part(".sy-bar [data-problem]"), problem);
    }

    /** What came of an action; stays until the next one. */
    function notice(message) {
      tell(part("[data-notice]"), message);
    }

    /** Do something that takes the server a moment; what goes wrong is said. */
    async function attempt(work) {
      notice("");
      try {
        await work();
      } catch (error) {
        notice(error.message);
      } finally {
        dueAt = Date.now();
      }
    }

    const make = () =>
      attempt(async () => {
        if (isMaking) return; // a second click
        isMaking = true;
        try {
          const { job } = await ask("films", sent());
          story.jobs = [...story.jobs, job].slice(-MAX_JOBS);
          keep();
          await look();
        } finally {
          isMaking = false;
        }
      });

    // ---- what a person does

    const place = (id) => story.shots.findIndex((shot) => shot.id === id);

    function move(id, by) {
      const from = place(id);
      const [shot] = story.shots.splice(from, 1);
      story.shots.splice(from + by, 0, shot);
    }

    function copyOf(shot) {
      const copy = { ...structuredClone(shot), id: newId() };
      delete copy.name; // names are unique
      return copy;
    }

    const onShot = {
      left: (id) => move(id, -1),
      right: (id) => move(id, 1),
      duplicate: (id) => story.shots.splice(place(id) + 1, 0, copyOf(story.shots[place(id)])),
      remove: (id) => story.shots.splice(place(id), 1),
      drop_keyframes: (id) => delete story.shots[place(id)].keyframes,
      clear_picture: (id, button) => delete story.shots[place(id)][button.dataset.role],
      redo: (id) => (story.shots[place(id)].seed = newSeed()),
    };
    const onStory = {
      add: () => change(() => story.shots.push(newShot())),
      clear: () => window.confirm("Leave this story and begin anew?") && replace(null),
      export: () => attempt(save),
      make,
      stop: () => attempt(() => ask("stop", sent()).then(look)),
    };

    async function save() {
      const answer = await post("export", sent());
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await answer.blob());
      link.download = "story.yaml";
      link.click();
      URL.revokeObjectURL(link.href);
    }

    async function open(file) {
      const hasWork = story.shots.some((shot) => shot.prompt || shot.first_frame || shot.last_frame);
      if (hasWork && !window.confirm("Open it in place of this story?")) return;
      const { path } = await upload(file);
      const { draft, message } = await ask("import", { path, name: file.name });
      replace(draft);
      await look();
      notice(message);
    }

    async function givePicture(file, id, role) {
      const well = cards.get(id)?.querySelector(`[data-well=${role}]`);
      well?.classList.add("st-busy");
      try {
        const { path } = await upload(file);
        const picture = await ask("pictures", { path, name: file.name });
        const shot = story.shots[place(id)]; // it may be gone meanwhile
        if (!shot) return;
        // Whoever gives a first picture wants the shot to start with it.
        const cut = role === "first_frame" ? { transition: "cut" } : {};
        change(() => Object.assign(shot, cut, { [role]: picture }));
      } finally {
        well?.classList.remove("st-busy");
      }
    }

    element.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-do]");
      if (!button || button.disabled) return;
      const doing = button.dataset.do;
      const id = button.closest("[data-id]")?.dataset.id;
      if (!id) return onStory[doing]();
      if (doing === "remove" && !window.confirm("Remove this shot?")) return;
      change(() => onShot[doing](id, button));
      if (doing === "redo") make();
      button.focus({ preventScroll: true }); // moving a card takes the focus away
    });
    element.addEventListener("input", (event) => {
      const { field, film } = event.target.dataset;
      const target = field ? story.shots[place(event.target.closest("[data-id]").dataset.id)] : story.film;
      if (!field && !film) return;
      change(() => (target[field || film] = valueOf(event.target)));
    });
    element.addEventListener("change", (event) => {
      const { target } = event;
      const file = target.files?.[0];
      if (!file) return;
      const id = target.closest("[data-id]")?.dataset.id;
      attempt(() => (id ? givePicture(file, id, target.dataset.file) : open(file)));
      target.value = ""; // so that the same file can be chosen again
    });
    for (const name of ["dragover", "dragleave", "drop"]) {
      element.addEventListener(name, (event) => {
        const well = event.target.closest("[data-well]");
        well?.classList.toggle("st-over", name === "dragover");
        const file = event.dataTransfer?.files[0];
        if (name !== "drop" || !file) return;
        event.preventDefault();
        event.stopPropagation();
        const id = event.target.closest("[data-id]")?.dataset.id;
        if (well) attempt(() => givePicture(file, id, well.dataset.well));
        else if (/\.(ya?ml|json)$/i.test(file.name)) attempt(() => open(file));
        else notice("Drop pictures on the first or last picture of a shot.");
      });
    }
    window.setInterval(() => {
      const isShown = element.offsetParent !== null && !document.hidden;
      if (isShown && Date.now() >= dueAt) look();
    }, TICK_MS);
    draw();
  }

  // ---- parts of a story

  const newId = () => Math.random().toString(36).slice(2, 12);
  const newSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);
  const newShot = () => ({ id: newId(), prompt: "", transition: "continue" });

  function restored() {
    try {
      return usable(JSON.parse(localStorage.getItem(STORAGE_KEY)));
    } catch {
      return usable(null);
    }
  }

  function usable(draft) {
    const given = draft && typeof draft === "object" ? draft : {};
    const shots = Array.isArray(given.shots) && given.shots.length ? given.shots : [newShot()];
    return {
      film: { ...given.film },
      shots: shots.map((shot) => ({ ...newShot(), ...shot })),
      jobs: Array.isArray(given.jobs) ? given.jobs : [],
    };
  }

  function withNumbers(fields) {
    const numbers = NUMBERS.filter((name) => typeof fields[name] === "string" && fields[name].trim());
    const known = numbers.filter((name) => Number.isFinite(Number(fields[name])));
    return { ...fields, ...Object.fromEntries(known.map((name) => [name, Number(fields[name])])) };
  }

  // ---- fields and pictures

  const valueOf = (field) => (field.type === "checkbox" ? field.checked : field.value);

  function put(field, value) {
    if (document.activeElement === field) return; // somebody is typing
    if (field.type === "checkbox") field.checked = Boolean(value);
    else if (field.type === "range") field.value = value ?? 1;
    else if (value !== undefined && value !== null) field.value = value;
    else if (field.tagName === "SELECT") field.selectedIndex = 0;
    else field.value = "";
  }

  function setText(node, text) {
    if (node.textContent !== text) node.textContent = text; // or readers say it again
  }

  function tell(line, message) {
    setText(line, message);
    line.hidden = !message;
  }

  function setSource(node, url) {
    if (node.getAttribute("src") === url) return false;
    node.setAttribute("src", url);
    return true;
  }

  // ---- the server

  async function post(path, body) {
    const headers = { "Content-Type": "application/json" };
    let answer;
    try {
      answer = await fetch(`studio/story/${path}`, { method: "POST", headers, body: JSON.stringify(body) });
    } catch {
      throw new Error("The server does not answer. What you typed is kept.");
    }
    if (answer.ok) return answer;
    const { error } = await answer.json().catch(() => ({}));
    throw new Error(error?.message || `The server answered ${answer.status}.`);
  }

  const ask = async (path, body) => (await post(path, body)).json();

  window.studioStory = { connect };
})();
