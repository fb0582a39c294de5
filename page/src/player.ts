import { byId } from "./dom";
import { difference } from "./downloads";
import { frameAt } from "./frames";
import type { Frames } from "./types";

const PLAY = "M6 4l12 8-12 8z";
const PAUSE = "M6 4h4v16H6zM14 4h4v16h-4z";

/** Source and result on two canvases under one clock: both always show the frame of the same number. */
export class Player {
  /** Told which frame is shown. */
  onFrame: (number: number) => void = () => undefined;
  onError: (error: unknown) => void = () => undefined;

  private readonly stage = byId("stage", HTMLDivElement);
  private readonly canvases = ["source-canvas", "result-canvas", "difference-canvas"].map((id) => byId(id, HTMLCanvasElement));
  private readonly split = byId("split", HTMLInputElement);
  private readonly seek = byId("seek", HTMLInputElement);
  private readonly playButton = byId("play", HTMLButtonElement);
  private readonly gain = byId("gain", HTMLSelectElement);
  private frames: [Frames, Frames] | null = null;
  private count = 0;
  /** Number of the frame that was asked for last. */
  wanted = 0;
  private shown = -1;
  private drawing: Promise<void> | null = null;
  private playing = false;
  private began = { at: 0, seconds: 0 };

  constructor() {
    this.split.addEventListener("input", () => this.showSplit());
    this.seek.addEventListener("input", () => this.go(Number(this.seek.value)));
    this.playButton.addEventListener("click", () => (this.playing ? this.pause() : this.play()));
    byId("back", HTMLButtonElement).addEventListener("click", () => this.go(this.wanted - 1));
    byId("forward", HTMLButtonElement).addEventListener("click", () => this.go(this.wanted + 1));
    this.gain.addEventListener("change", () => this.redraw());
    for (const input of document.querySelectorAll<HTMLInputElement>("input[name=view]")) {
      input.addEventListener("change", () => this.showView());
    }
    this.showSplit();
  }

  /** Show other videos from their first frame; null closes those that are open. */
  async open(frames: [Frames, Frames] | null): Promise<void> {
    this.pause();
    await this.drawing;
    for (const each of this.frames ?? []) each.close();
    this.frames = frames;
    this.shown = -1;
    this.wanted = 0;
    if (!frames) return;
    const [{ width, height }] = frames;
    this.count = Math.min(...frames.map(({ times }) => times.length));
    for (const canvas of this.canvases) Object.assign(canvas, { width, height });
    this.stage.style.aspectRatio = `${width} / ${height}`;
    this.stage.style.setProperty("--ratio", `${width / height}`);
    this.seek.max = `${this.count - 1}`;
    byId("transport", HTMLDivElement).hidden = this.count === 1;
    this.showView();
    await this.want(0);
  }

  /** Pause at a frame. */
  go(number: number): void {
    this.pause();
    void this.want(number);
  }

  private play(): void {
    if (!this.frames) return;
    const from = this.wanted >= this.count - 1 ? 0 : this.wanted;
    this.began = { at: performance.now(), seconds: this.frames[0].times[from] };
    this.setPlaying(true);
    requestAnimationFrame(() => this.tick());
  }

  pause(): void {
    this.setPlaying(false);
  }

  private setPlaying(playing: boolean): void {
    this.playing = playing;
    this.playButton.setAttribute("aria-label", playing ? "Pause" : "Play");
    this.playButton.querySelector("path")!.setAttribute("d", playing ? PAUSE : PLAY);
  }

  /** The clock: what is shown follows from the time alone, so slow decoding drops frames and never delays one side. */
  private tick(): void {
    if (!this.playing || !this.frames) return;
    const [{ times, lastDuration }] = this.frames;
    const length = times[this.count - 1] + Math.max(lastDuration, 0.01);
    const seconds = (this.began.seconds + (performance.now() - this.began.at) / 1000) % length;
    if (!this.drawing) void this.want(Math.min(frameAt(times, seconds), this.count - 1));
    requestAnimationFrame(() => this.tick());
  }

  private want(number: number): Promise<void> {
    this.wanted = Math.max(0, Math.min(number, this.count - 1));
    this.drawing ??= this.drawUntilShown().finally(() => (this.drawing = null));
    return this.drawing;
  }

  private async drawUntilShown(): Promise<void> {
    try {
      while (this.frames && this.shown !== this.wanted) await this.draw(this.frames, this.wanted);
    } catch (error) {
      this.pause();
      this.wanted = this.shown;
      this.onError(error);
    }
  }

  /** Load a frame of both, then draw both at once. */
  private async draw(frames: [Frames, Frames], number: number): Promise<void> {
    const pictures = await Promise.all(frames.map((each) => each.load(number)));
    for (const [i, picture] of pictures.entries()) {
      picture.draw(this.context(i));
      picture.close();
      this.canvases[i].dataset.frame = `${number}`;
    }
    this.shown = number;
    this.drawDifference();
    this.seek.value = `${number}`;
    const [{ times }] = frames;
    const text = `Frame ${number + 1} of ${this.count}`;
    this.seek.setAttribute("aria-valuetext", `${text}, ${times[number].toFixed(2)} seconds`);
    byId("frame-number", HTMLOutputElement).textContent = `${text} · ${times[number].toFixed(2)} s`;
    this.onFrame(number);
  }

  private redraw(): void {
    if (this.shown >= 0) this.drawDifference();
  }

  private drawDifference(): void {
    if (this.stage.dataset.view !== "difference") return;
    const { width, height } = this.canvases[0];
    const [a, b] = [0, 1].map((i) => this.context(i).getImageData(0, 0, width, height));
    this.context(2).putImageData(difference(a, b, Number(this.gain.value)), 0, 0);
    this.canvases[2].dataset.frame = `${this.shown}`;
  }

  private context(i: number): CanvasRenderingContext2D {
    return this.canvases[i].getContext("2d", { willReadFrequently: true, alpha: false })!;
  }

  private showSplit(): void {
    this.stage.style.setProperty("--split", `${this.split.value}%`);
    this.split.setAttribute("aria-valuetext", `source ${this.split.value} %, result ${100 - Number(this.split.value)} %`);
  }

  private showView(): void {
    const view = document.querySelector<HTMLInputElement>("input[name=view]:checked")!.value;
    this.stage.dataset.view = view;
    this.split.hidden = view === "difference";
    byId("gain-field", HTMLLabelElement).hidden = view !== "difference";
    this.redraw();
  }
}
