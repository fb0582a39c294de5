import { byId, make } from "./dom";
import { grouped } from "./clips";
import type { Latents } from "./types";

const DEVIATIONS = 3; // of a channel, that black and white are away from its mean

interface Range {
  mean: number;
  deviation: number;
}

/** The channels of a frame's latents as grey pictures. */
export class LatentView {
  private readonly grid = byId("latents", HTMLDivElement);
  private readonly note = byId("latents-note", HTMLParagraphElement);
  private latents: Latents | null = null;
  private ranges: Range[] = [];
  private contexts: CanvasRenderingContext2D[] = [];

  show(latents: Latents | string): void {
    this.grid.replaceChildren();
    this.contexts = [];
    this.latents = typeof latents === "string" ? null : latents;
    if (typeof latents === "string") {
      this.note.textContent = latents;
      return;
    }
    const { channels, width, height } = latents;
    this.note.textContent =
      `${channels} channels of ${width}×${height}, ${grouped(channels * width * height)} numbers for each frame. Grey ` +
      `is the mean of a channel over the video, black and white are ${DEVIATIONS} deviations away.`;
    this.ranges = Array.from({ length: channels }, (_, channel) => rangeOf(latents, channel));
    for (let channel = 0; channel < channels; channel++) this.add(latents, channel);
  }

  /** Show the latents of a frame. */
  frame(number: number): void {
    if (!this.latents || number >= this.latents.frames) return;
    const { channels, width, height, mean } = this.latents;
    const size = width * height;
    for (const [channel, context] of this.contexts.entries()) {
      const start = (number * channels + channel) * size;
      const { mean: middle, deviation } = this.ranges[channel];
      const picture = new ImageData(width, height);
      for (let i = 0; i < size; i++) {
        const level = 127.5 * (1 + (mean[start + i] - middle) / (DEVIATIONS * deviation));
        picture.data.fill(level, 4 * i, 4 * i + 3);
        picture.data[4 * i + 3] = 255;
      }
      context.putImageData(picture, 0, 0);
      context.canvas.dataset.frame = `${number}`;
    }
  }

  private add({ width, height }: Latents, channel: number): void {
    const figure = make("figure");
    const canvas = make("canvas");
    Object.assign(canvas, { width, height });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Channel ${channel + 1} of the latents`);
    figure.append(canvas, make("figcaption", "", `${channel + 1}`));
    this.grid.append(figure);
    this.contexts.push(canvas.getContext("2d", { alpha: false })!);
  }
}

function rangeOf({ frames, channels, width, height, mean }: Latents, channel: number): Range {
  const size = width * height;
  let [sum, squares] = [0, 0];
  for (let frame = 0; frame < frames; frame++) {
    const start = (frame * channels + channel) * size;
    for (let i = start; i < start + size; i++) {
      sum += mean[i];
      squares += mean[i] ** 2;
    }
  }
  const count = frames * size;
  const deviation = Math.sqrt(Math.max(squares / count - (sum / count) ** 2, 0));
  return { mean: sum / count, deviation: deviation || 1 };
}
