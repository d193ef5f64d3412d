// The page: every animation frame draws the source with the latest mask; the link fetches masks meanwhile.

import { Link } from "./link.js";
import { Output, drawMask, makeMask, psnr, scaleColour } from "./panels.js";
import { CameraSource, FileSource, SyntheticPan } from "./sources.js";

const $ = (id) => document.getElementById(id);
const EMA = 0.15;
const PSNR_EVERY = 4;

const fixed = (value) => (Number.isNaN(value) ? "---.-" : Math.min(Math.max(value, 0), 999.9).toFixed(1).padStart(5, "0"));

class Mean {
  constructor() { this.reset(); }
  reset() { this.current = NaN; this.ema = NaN; }
  record(value) {
    this.ema = Number.isFinite(this.ema) && Number.isFinite(value) ? this.ema * (1 - EMA) + value * EMA : value;
    this.current = value;
  }
}

const state = {
  playing: true, mask: null, source: new SyntheticPan(), output: new Output(), size: "", frames: 0,
  gaze: new Mean(), psnr: new Mean(), render: new Mean(), infer: new Mean(), lastRender: 0, lastAnswer: 0,
  tokens: null, latency: null, connection: "connecting", text: "connecting…", results: 0, serverUrl: "",
};
window.autogaze = state;

const panels = Object.fromEntries(["input", "mask", "output"].map((id) => {
  const context = $(id).getContext("2d", { willReadFrequently: true });
  return [id, { canvas: $(id), context, image: null, pixels: null }];
}));

const settings = () => ({
  source: $("mask-source").value, mode: $("mode").value, geometry: $("geometry").value,
  requirement: Math.round((1 - Number($("quality").value)) * 100) / 100,
});

function resize(width, height) {
  if (state.size === `${width}x${height}`) return;
  state.size = `${width}x${height}`;
  for (const panel of Object.values(panels)) {
    panel.canvas.width = width;
    panel.canvas.height = height;
    panel.canvas.style.aspectRatio = `${width} / ${height}`;
    panel.image = panel.context.createImageData(width, height);
    panel.pixels = new Uint32Array(panel.image.data.buffer);
  }
  forget(true);
}

// Clears what belongs to another picture or another mask source.
function forget(restart) {
  link.invalidate(restart);
  const [width, height] = state.size ? state.size.split("x").map(Number) : [1, 1];
  state.mask = makeMask([], width, height);
  state.output.reset();
  for (const mean of [state.gaze, state.psnr, state.infer]) mean.reset();
  state.tokens = state.latency = null;
  state.lastAnswer = 0;
}

const link = new Link((answer) => {
  const [width, height] = state.size.split("x").map(Number);
  const now = performance.now();
  if (state.lastAnswer) state.infer.record(1000 / (now - state.lastAnswer));
  state.lastAnswer = now;
  state.mask = makeMask(answer.cells, width, height);
  state.tokens = answer.tokens;
  state.latency = answer.milliseconds;
  state.results += 1;
}, (connection, text) => {
  if (connection === "lost") { state.infer.reset(); state.lastAnswer = 0; }
  state.connection = connection;
  state.text = connection === "live" ? `live, server ${state.serverUrl}` : text;
  showStatus();
});

function showStatus() {
  const shown = state.playing || state.connection === "lost" ? [state.connection, state.text] : ["paused", "paused"];
  // Only changes are written, so that screen readers do not repeat themselves.
  if ($("status").dataset.state !== shown[0]) $("status").dataset.state = shown[0];
  if ($("status").textContent !== shown[1]) $("status").textContent = shown[1];
}

function render(now) {
  requestAnimationFrame(render);
  const source = state.source;
  if (state.playing && source.ready()) {
    resize(source.width, source.height);
    source.draw(panels.input.context);
    panels.input.image = panels.input.context.getImageData(0, 0, source.width, source.height);
    panels.input.pixels = new Uint32Array(panels.input.image.data.buffer);
    if (link.idle) link.send(settings(), panels.input.image);
    draw(true);
    if (state.lastRender) state.render.record(1000 / Math.max(now - state.lastRender, 0.1));
    state.lastRender = now;
    state.frames += 1;
  }
}

function draw(advance) {
  if (!panels.input.pixels) return;
  drawMask(panels.mask.pixels, panels.input.pixels, state.mask, $("style").value, $("geometry").value);
  panels.mask.context.putImageData(panels.mask.image, 0, 0);
  if (!advance) return;
  state.output.draw(panels.output.pixels, panels.input.pixels, state.mask, $("view").value, Number($("keyframe").value) || 0);
  panels.output.context.putImageData(panels.output.image, 0, 0);
  if (state.output.keyframe) return;
  state.gaze.record(state.mask.pixels / state.mask.covered.length);
  if (state.frames % PSNR_EVERY === 0) state.psnr.record(psnr(panels.input.image.data, panels.output.image.data));
}

function showNumbers() {
  $("fps-render").textContent = fixed(state.render.ema);
  $("fps-infer").textContent = fixed(state.infer.ema);
  $("gaze").textContent = `${fixed(state.gaze.current * 100)}%`;
  $("gaze-ema").textContent = `${fixed(state.gaze.ema * 100)}%`;
  $("psnr").textContent = fixed(state.psnr.current);
  $("psnr-ema").textContent = fixed(state.psnr.ema);
  $("tokens").textContent = state.tokens ?? "–";
  $("latency").textContent = state.latency === null ? "–" : state.latency.toFixed(0);
  $("stale").textContent = link.stale;
  $("caption-input").textContent = `${state.source.label}, ${state.size.replace("x", "×")}`;
  $("caption-mask").textContent = `${$("style").value}, ${$("geometry").value}`;
  $("caption-output").textContent = $("view").value;
  const grids = state.mask.grids.join(" ");
  if ($("legend").dataset.grids !== grids) {
    $("legend").dataset.grids = grids;
    $("legend").replaceChildren(...state.mask.grids.map((grid) => {
      const item = document.createElement("li"), swatch = document.createElement("i");
      swatch.style.background = `rgb(${scaleColour(grid)})`;
      item.append(swatch, `${grid}×${grid}`);
      return item;
    }));
  }
}

function showQuality() {
  const quality = Number($("quality").value);
  const text = `${(quality * 100).toFixed(0)} % (loss ≤ ${(1 - quality).toFixed(2)})`;
  $("quality-text").textContent = text;
  $("quality").setAttribute("aria-valuetext", text);
}

async function use(source) {
  state.source.stop();
  state.source = new SyntheticPan();
  try {
    await source.start();
    state.source = source;
  } catch (error) {
    $("source").value = "synthetic";
    state.text = `${source.label}: ${error.message}`;
    $("status").textContent = state.text;
  }
  state.size = "";
  state.playing = true;
  showPlaying();
}

function showPlaying() {
  $("play").firstChild.textContent = state.playing ? "Pause " : "Play ";
  $("play").setAttribute("aria-pressed", String(state.playing));
  state.lastRender = 0;
  if (!state.playing) state.render.reset();
  showStatus();
}

function chooseSource() {
  if ($("source").value === "file") { $("file").value = ""; $("file").click(); }
  else use($("source").value === "camera" ? new CameraSource($("video")) : new SyntheticPan());
}

const next = (id) => {
  const select = $(id);
  select.selectedIndex = (select.selectedIndex + 1) % select.length;
  select.dispatchEvent(new Event("change"));
};

const toggle = () => {
  state.playing = !state.playing;
  // A paused picture keeps the mask that it shows.
  if (!state.playing) link.invalidate(false);
  const video = $("video");
  if (video.src || video.srcObject) state.playing ? video.play() : video.pause();
  showPlaying();
};

const keys = {
  " ": toggle, p: () => next("source"), r: () => { forget(true); }, m: () => next("mask-source"),
  s: () => next("style"), g: () => next("geometry"), v: () => next("view"), k: () => { state.output.due = true; },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  // Keys that a control uses itself stay its own.
  const tag = event.target.tagName;
  if (tag === "SELECT" || (tag === "INPUT" && event.target.type !== "range") || (tag === "BUTTON" && event.key === " ")) return;
  const action = keys[event.key.toLowerCase()];
  if (action) { event.preventDefault(); action(); }
});

$("play").addEventListener("click", toggle);
$("restart").addEventListener("click", keys.r);
$("keyframe-now").addEventListener("click", keys.k);
$("source").addEventListener("change", chooseSource);
$("file").addEventListener("change", () => { if ($("file").files.length) use(new FileSource($("video"), $("file").files[0])); });
$("file").addEventListener("cancel", () => { $("source").value = "synthetic"; });
$("quality").addEventListener("input", () => { showQuality(); link.invalidate(false); });
$("mask-source").addEventListener("change", () => forget(true));
$("mode").addEventListener("change", () => forget(true));
$("geometry").addEventListener("change", () => link.invalidate(false));
$("style").addEventListener("change", () => draw(false));
$("view").addEventListener("change", () => state.output.reset());
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());

state.serverUrl = (await (await fetch("/settings")).json()).server_url;
state.mask = makeMask([], 1, 1);
showQuality();
showStatus();
setInterval(showNumbers, 200);
requestAnimationFrame(render);
