"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const look = JSON.parse(document.getElementById("look").textContent);
  const views = {}, widths = {}, states = {};
  const narrow = matchMedia("(max-width: 700px)"), medium = matchMedia("(max-width: 980px)");
  window.stiffnessReport = { views };

  /* A chart in a closed section has no width of its own: it gets the share of the page that it will have. */
  function roomFor(slot) {
    if (slot.clientWidth) return slot.clientWidth;
    const whole = document.getElementById("content").clientWidth;
    if (slot.closest(".matrix") && !medium.matches) return Math.floor((2 * whole) / 3 - 14);
    const columns = narrow.matches ? 1 : slot.closest(".third") ? 3 : slot.closest(".half") ? 2 : 1;
    return Math.floor((whole - 40 * (columns - 1)) / columns);
  }

  function sized(spec, slot, room) {
    const isSmall = room < 480;
    const config = structuredClone(look);
    config.legend.columns = Math.max(1, Math.floor(room / 150));
    if ("square" in slot.dataset) {
      const { classes, longest, ratio } = spec.usermeta;
      config.axis.labelLimit = isSmall ? 64 : 130;
      const words = Math.min(config.axis.labelLimit, longest * 7) + 14;
      const width = Math.max(120, Math.min(room - words, 600 * ratio));
      const cell = width / ratio / classes;
      Object.assign((states[slot.id] ??= {}), { step: Math.ceil(12 / cell), digits: Math.min(10.5, 0.34 * cell) });
      return { spec: { ...spec, width, height: width / ratio }, config };
    }
    config.axis.labelLimit = isSmall ? 90 : 180;
    const autosize = { type: "fit", contains: "padding" };
    return { spec: { ...spec, width: room, height: Number(slot.dataset.height), autosize }, config };
  }

  async function draw(slot) {
    const name = slot.id, room = roomFor(slot);
    if (!specs[name] || Math.abs((widths[name] ?? -99) - room) < 6) return;
    widths[name] = room;
    const { spec, config } = sized(specs[name], slot, room);
    spec.params = (spec.params ?? []).map((p) => (p.name in (states[name] ?? {}) ? { ...p, value: states[name][p.name] } : p));
    views[name]?.finalize();
    const result = await vegaEmbed(slot, spec, { config, renderer: "svg", actions: false, tooltip: { theme: "custom" } });
    views[name] = result.view;
    slot.dataset.drawn = "";
  }

  async function drawAll() {
    const slots = [...document.querySelectorAll(".chart")];
    for (const slot of [...slots.filter((s) => s.clientWidth), ...slots.filter((s) => !s.clientWidth)]) {
      await draw(slot);
      await new Promise((resume) => setTimeout(resume));
    }
    document.documentElement.dataset.ready = "";
  }

  function setSignal(chart, signal, value) {
    (states[chart] ??= {})[signal] = value;
    views[chart]?.signal(signal, value).runAsync();
  }

  function valueOf(control) {
    if (control.type === "checkbox") return control.checked;
    return control.type === "range" ? Number(control.value) : control.value;
  }

  function follow(control) {
    setSignal(control.dataset.chart, control.dataset.signal, valueOf(control));
    if (!control.dataset.words) return;
    const words = JSON.parse(control.dataset.words)[Number(control.value)];
    document.getElementById(`${control.id}-words`).textContent = words;
    control.setAttribute("aria-valuetext", words);
  }

  function play(button) {
    const slider = document.getElementById(button.dataset.play);
    const isPlaying = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!isPlaying));
    button.firstElementChild.textContent = isPlaying ? "▶" : "❚❚";
    clearInterval(button.timer);
    if (isPlaying) return;
    if (slider.value === slider.max) slider.value = 0;
    follow(slider);
    button.timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      follow(slider);
      if (slider.value === slider.max) play(button);
    }, Math.max(120, Math.min(450, 12000 / Number(slider.max))));
  }

  const root = document.documentElement, themeButton = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const tellTheme = () => themeButton.setAttribute("aria-pressed", String(isDark()));
  try {
    const kept = localStorage.getItem("stiffness-theme");
    if (kept) root.dataset.theme = kept;
  } catch { /* a browser may forbid it for files */ }
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    tellTheme();
    try { localStorage.setItem("stiffness-theme", root.dataset.theme); } catch { /* the same */ }
  });
  prefersDark.addEventListener("change", tellTheme);
  tellTheme();

  for (const control of document.querySelectorAll("[data-signal]")) {
    control.addEventListener("input", () => follow(control));
  }
  for (const button of document.querySelectorAll("[data-play]")) button.addEventListener("click", () => play(button));

  const folds = [...document.querySelectorAll("details")];
  for (const fold of folds) {
    fold.addEventListener("toggle", () => fold.open && fold.querySelectorAll(".chart").forEach(draw));
  }
  function unfold(target) {
    for (let fold = target?.closest("details"); fold; fold = fold.parentElement?.closest("details")) fold.open = true;
  }
  function followHash() {
    const target = document.getElementById(location.hash.slice(1));
    unfold(target);
    target?.scrollIntoView();
  }
  window.addEventListener("hashchange", followHash);

  let wereClosed = [];
  function beforePrint() {
    if (wereClosed.length) return;
    wereClosed = folds.filter((fold) => !fold.open);
    wereClosed.forEach((fold) => { fold.open = true; });
  }
  function afterPrint() {
    wereClosed.forEach((fold) => { fold.open = false; });
    wereClosed = [];
  }
  window.addEventListener("beforeprint", beforePrint);
  window.addEventListener("afterprint", afterPrint);
  matchMedia("print").addEventListener("change", (event) => (event.matches ? beforePrint() : afterPrint()));

  let resizing;
  window.addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(drawAll, 150);
  });
  window.addEventListener("librariesready", () => { drawAll(); if (location.hash) followHash(); });
})();
