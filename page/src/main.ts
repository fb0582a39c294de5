import "uplot/dist/uPlot.min.css";
import "./style/index.css";
import { BrowserBackend, planLines } from "./browser";
import { Charts } from "./charts";
import { checkFits, grouped, MOST_OF_A_CLIP, MOST_OF_A_FRAME, plural, widest } from "./clips";
import { byId, duration, figure, make } from "./dom";
import { Cancelled, sentence, UserError } from "./errors";
import { LatentView } from "./latents";
import { loadModel, type Model } from "./model";
import { Player } from "./player";
import { inspect, read, scaled, type Facts } from "./reading";
import { Server } from "./server";
import { clearInvalid, readSettings } from "./settings";
import type { Backend, Download, Metrics, Outcome, Progress } from "./types";

const BASE = new URL("./", document.baseURI).href;
const SAMPLE = "sample.mp4";
/** What the fields begin with: a browser computes several times slower than the package, and has less memory. */
const DEFAULTS = { server: { clip: "25", frames: "" }, browser: { clip: "12", frames: "24" } };
const BROWSER_WIDTH = { video: 192, still: 512 };

const server = new Server(BASE);
const player = new Player();
const charts = new Charts();
const latentView = new LatentView();
const input = byId("file", HTMLInputElement);
let model: Model | null = null;
let chosen: File | null = null;
let facts: Facts | null = null;
let running: AbortController | null = null;
let proposed = ""; // width that the page wrote into the field itself

type Kind = keyof typeof DEFAULTS;

function kind(): Kind {
  return document.querySelector<HTMLInputElement>("input[name=backend]:checked")?.value === "server" ? "server" : "browser";
}

// Choosing

async function choose(file: File): Promise<void> {
  chosen = file;
  facts = null;
  hideError();
  const preview = byId("preview", HTMLCanvasElement);
  const note = byId("chosen", HTMLParagraphElement);
  note.textContent = `${file.name}, looking at it …`;
  note.ariaBusy = "true";
  preview.hidden = true;
  try {
    const found = await inspect(file);
    const narrow = Math.min(found.width, 320);
    const { frames, width, height } = await read(file, narrow, 1, () => undefined, () => undefined);
    if (file !== chosen) return;
    facts = found;
    Object.assign(preview, { width, height });
    preview.getContext("2d")!.putImageData(new ImageData(frames[0], width, height), 0, 0);
    preview.hidden = false;
    const length = found.still ? "a picture" : plural(found.frames, "frame");
    note.textContent = `${file.name}: ${length} of ${found.width}×${found.height}`;
  } catch {
    if (file !== chosen) return;
    note.textContent = `${file.name}: this browser cannot show it${server.info ? "; the server may read it" : ""}.`;
  }
  note.ariaBusy = null;
  proposeWidth();
  showPlan();
}

async function takeSample(): Promise<void> {
  const answer = await fetch(new URL(SAMPLE, BASE)).catch(() => null);
  if (!answer?.ok) return showError(new UserError("The sample did not come. Check the connection and try again."));
  await choose(new File([await answer.blob()], SAMPLE, { type: "video/mp4" }));
  byId("start", HTMLButtonElement).focus();
}

/** Write a width into the field, unless somebody else has. */
function proposeWidth(): void {
  const field = byId("width", HTMLInputElement);
  if (field.value !== proposed) return;
  let most = facts?.still ? BROWSER_WIDTH.still : BROWSER_WIDTH.video;
  if (facts) most = Math.min(most, facts.width, widest(facts.width / facts.height, facts.still ? 1 : Number(DEFAULTS.browser.clip)));
  proposed = kind() === "server" ? "" : `${most}`;
  field.value = proposed;
}

/** What a run in the browser will take, or why it cannot be. */
function showPlan(): void {
  const note = byId("plan-note", HTMLParagraphElement);
  note.textContent = "";
  if (kind() !== "browser" || !facts) return;
  try {
    const settings = readSettings();
    clearInvalid();
    const frames = Math.min(facts.frames, settings.frames ?? Infinity);
    const [width, height] = scaled(facts, settings.width);
    checkFits(frames, settings.clipFrames, width, height);
    note.textContent = planLines(frames, width, height, settings, "").split("\n").slice(0, 2).join("; ") + ".";
  } catch (error) {
    note.textContent = sentence(error);
  }
}

function showBackend(): void {
  const which = kind();
  const on = which === "server";
  for (const [id, value] of Object.entries(DEFAULTS[which])) byId(id, HTMLInputElement).value = value;
  proposeWidth();
  const clips = !on || (server.info?.model.clips ?? true);
  byId("clip-field", HTMLLabelElement).hidden = !clips;
  byId("overlap-field", HTMLLabelElement).hidden = !clips;
  byId("clip-note", HTMLParagraphElement).hidden = !clips;
  byId("memory-field", HTMLLabelElement).hidden = !on;
  byId("token-field", HTMLDivElement).hidden = !(on && server.needsToken);
  byId("backend-note", HTMLParagraphElement).textContent = on ? serverNote() : browserNote();
  showPlan();
}

function serverNote(): string {
  if (!server.info) return "This server asks for the token that it was started with.";
  const { model: its, limits, machine } = server.info;
  const limit = limits.memory === null ? "what is free" : `${grouped(Math.round(limits.memory / 2 ** 20))} MiB`;
  return (
    `${its.name} (${its.class}, ${grouped(its.parameters)} parameters) in ${its.dtype} on ${its.device}; ` +
    `${machine.processor}, ${plural(machine.threads, "thread")}; memory limit ${limit}.`
  );
}

function browserNote(): string {
  const where = "gpu" in navigator ? "on the graphics card if the browser has WebGPU, else" : "";
  const threads = self.crossOriginIsolated
    ? `on up to ${Math.min(navigator.hardwareConcurrency || 1, 8)} threads`
    : "on one thread, since this site sends no headers that allow more";
  return `The embedded model (${grouped(model?.parameters ?? 0)} parameters) ${where} ${threads}. Nothing is uploaded.`;
}

// Running

async function start(): Promise<void> {
  hideError();
  clearInvalid();
  try {
    if (!chosen) throw new UserError("Choose a video or a picture first, or take the sample.");
    if (kind() === "server" && !server.info) throw new UserError("Give the server's token first, or compute in your browser.");
    const settings = readSettings();
    const backend: Backend = kind() === "server" ? server : new BrowserBackend(model!, BASE);
    await run(backend, chosen, settings);
  } catch (error) {
    if (error instanceof Cancelled) say("Cancelled.");
    else showError(error);
    byId("start", HTMLButtonElement).focus({ preventScroll: true });
  }
}

async function run(backend: Backend, file: File, settings: ReturnType<typeof readSettings>): Promise<void> {
  running = new AbortController();
  const meter = new ProgressLine();
  setRunning(true);
  try {
    await player.open(null);
    byId("outcome", HTMLElement).hidden = true;
    byId("cancel", HTMLButtonElement).focus();
    const outcome = await backend.run(file, settings, (progress) => meter.show(progress), running.signal);
    setRunning(false);
    await show(outcome);
  } finally {
    meter.end();
    running = null;
    setRunning(false);
  }
}

function setRunning(on: boolean): void {
  byId("running", HTMLElement).hidden = !on;
  byId("start", HTMLButtonElement).disabled = on;
}

/** The line of progress: what is done, how much of it, how long it will take. */
class ProgressLine {
  private timer: ReturnType<typeof setInterval> | undefined;
  private spoken = 0;

  show({ doing, share, secondsLeft, inOnePiece }: Progress): void {
    clearInterval(this.timer);
    const bar = byId("progress", HTMLProgressElement);
    byId("doing", HTMLParagraphElement).textContent = doing;
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
    const percent = share === null ? "" : `${Math.round(100 * share)} %`;
    const began = performance.now();
    const tell = () => {
      const since = (performance.now() - began) / 1000;
      const left = secondsLeft === null ? "" : leftText(secondsLeft - (inOnePiece ? since : 0));
      byId("left", HTMLParagraphElement).textContent = [percent, left].filter(Boolean).join(" · ");
    };
    tell();
    if (inOnePiece) this.timer = setInterval(tell, 1000);
    // Screen readers are told now and then, not at every frame.
    if (began - this.spoken > 5000) {
      this.spoken = began;
      say([doing, percent].filter(Boolean).join(", "));
    }
  }

  end(): void {
    clearInterval(this.timer);
  }
}

function leftText(seconds: number): string {
  return seconds < 1 ? "almost there" : `about ${duration(seconds)} left`;
}

// What came out

async function show(outcome: Outcome): Promise<void> {
  byId("outcome", HTMLElement).hidden = false;
  charts.show(outcome.metrics.per_frame);
  latentView.show(outcome.latents);
  showFigures(outcome.metrics);
  showDownloads(outcome.downloads);
  byId("plan", HTMLPreElement).textContent = [outcome.plan, timeLine(outcome.metrics)].filter(Boolean).join("\n\n");
  await player.open([outcome.source, outcome.result]);
  const title = byId("outcome-title", HTMLHeadingElement);
  title.textContent = outcome.name;
  const { width, height, summary } = outcome.metrics;
  byId("outcome-size", HTMLParagraphElement).textContent = `${plural(summary.frames, "frame")} of ${width}×${height}`;
  title.focus({ preventScroll: true });
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  title.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  say(`Done. PSNR ${figure(outcome.metrics.summary.psnr, 2)} dB.`);
}

function showFigures({ summary, per_frame, seconds_per_frame, peak_memory }: Metrics): void {
  const several = summary.frames > 1;
  const worst = per_frame.findIndex(({ psnr }) => psnr === summary.psnr_worst);
  const figures: [string, string, string][] = [
    ["PSNR", `${figure(summary.psnr, 2)} dB`, several ? "mean of the frames" : "of the picture"],
    ["SSIM", figure(summary.ssim, 4), several ? "mean of the frames" : "of the picture"],
  ];
  if (several) {
    figures.splice(1, 0, ["Worst frame", `${figure(summary.psnr_worst, 2)} dB`, `frame ${worst + 1}`]);
    figures.push(["Flicker", figure(summary.flicker, 2), "levels of 255"]);
  }
  figures.push(["Time", `${seconds_per_frame.toFixed(2)} s`, "per frame in the model"]);
  if (peak_memory !== null) figures.push(["Memory", `${grouped(Math.round(peak_memory / 2 ** 20))} MiB`, "at the peak"]);
  byId("figures", HTMLDListElement).replaceChildren(
    ...figures.map(([name, value, note]) => {
      const box = make("div");
      box.append(make("dt", "", name), make("dd", "value", value), make("dd", "muted", note));
      return box;
    }),
  );
}

function timeLine({ model_seconds, total_seconds }: Metrics): string {
  return `${model_seconds.toFixed(1)} s in the model, ${total_seconds.toFixed(1)} s in all`;
}

function showDownloads(downloads: Download[]): void {
  byId("downloads", HTMLUListElement).replaceChildren(
    ...downloads.map((download) => {
      const button = make("button", "quiet", download.label);
      button.type = "button";
      button.append(" ", make("span", "muted", download.file));
      button.addEventListener("click", () => void save(button, download));
      const item = make("li");
      item.append(button);
      return item;
    }),
  );
}

async function save(button: HTMLButtonElement, { file, make: produce, label }: Download): Promise<void> {
  button.disabled = true;
  say(`Preparing ${label} …`);
  try {
    const address = URL.createObjectURL(await produce());
    const link = make("a");
    Object.assign(link, { href: address, download: file });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    say(`${file} is saved.`);
  } catch (error) {
    showError(error);
  }
  button.disabled = false;
}

// Said to people

function say(text: string): void {
  byId("status", HTMLParagraphElement).textContent = text;
}

function showError(error: unknown): void {
  const box = byId("error", HTMLDivElement);
  box.textContent = sentence(error);
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" });
}

function hideError(): void {
  byId("error", HTMLDivElement).hidden = true;
}

// Wiring

function wire(): void {
  player.onFrame = (number) => {
    charts.mark(number);
    latentView.frame(number);
  };
  player.onError = showError;
  charts.onSeek = (number) => player.go(number);
  charts.wanted = () => player.wanted;
  byId("form", HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) void start();
  });
  byId("form", HTMLFormElement).addEventListener("input", (event) => {
    const target = event.target as HTMLInputElement;
    if (target.name === "backend") showBackend();
    else if (target !== input) showPlan();
  });
  input.addEventListener("change", () => input.files?.[0] && void choose(input.files[0]));
  byId("sample", HTMLButtonElement).addEventListener("click", () => void takeSample());
  byId("cancel", HTMLButtonElement).addEventListener("click", () => running?.abort());
  byId("use-token", HTMLButtonElement).addEventListener("click", () => void useToken());
  byId("token", HTMLInputElement).addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    void useToken();
  });
  wireDrop();
}

function wireDrop(): void {
  const drop = byId("drop", HTMLDivElement);
  let inside = 0;
  const mark = (step: number) => drop.classList.toggle("over", (inside = Math.max(0, inside + step)) > 0);
  document.addEventListener("dragenter", () => mark(1));
  document.addEventListener("dragleave", () => mark(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-inside);
    const file = event.dataTransfer?.files[0];
    if (file && !running) void choose(file);
  });
}

async function useToken(): Promise<void> {
  hideError();
  if (await server.use(byId("token", HTMLInputElement).value.trim())) showBackend();
  else showError(new UserError("The server does not take this token. Copy it anew from where the server was started."));
}

async function begin(): Promise<void> {
  wire();
  const [found] = await Promise.all([server.find(), loadModel(BASE).then((loaded) => (model = loaded)).catch(showError)]);
  const radio = (value: Kind) => document.querySelector<HTMLInputElement>(`input[name=backend][value=${value}]`)!;
  byId("backends", HTMLFieldSetElement).hidden = !found;
  radio("browser").disabled = model === null;
  radio(found ? "server" : "browser").checked = true;
  showBackend();
  if (model) {
    byId("about", HTMLParagraphElement).textContent =
      `temporal-vae ${model.version}. In your browser, a frame may have ${grouped(MOST_OF_A_FRAME)} pixels, ` +
      `and all frames of a clip together ${grouped(MOST_OF_A_CLIP)}.`;
  }
  document.documentElement.dataset.ready = found ? "server" : "static";
}

void begin();
