import { BufferTarget, CanvasSource, getFirstEncodableVideoCodec, Mp4OutputFormat, Output, Quality } from "mediabunny";
import { UserError } from "./errors";
import type { Download, Frames } from "./types";

/** Hardly a loss that can be seen; a rate stands in where a coder takes no quantizer. */
const QUANTIZER = 14;
const BITS_PER_PIXEL = 1;

export const AMPLIFICATION = 4; // of the difference beside source and result, as in the package

export function jsonDownload(label: string, file: string, value: unknown): Download {
  const text = `${JSON.stringify(value, null, 2)}\n`;
  return { label, file, make: async () => new Blob([text], { type: "application/json" }) };
}

export function videoDownload(label: string, stem: string, frames: Frames, still: boolean): Download {
  const draw = async (context: CanvasRenderingContext2D, number: number) => {
    const picture = await frames.load(number);
    picture.draw(context);
    picture.close();
  };
  return drawnDownload(label, stem, frames, frames.width, still, draw);
}

/** Source, result and their amplified difference side by side. */
export function comparisonDownload(label: string, stem: string, source: Frames, result: Frames, still: boolean): Download {
  const { width, height } = source;
  const draw = async (context: CanvasRenderingContext2D, number: number) => {
    const [a, b] = [await pixelsOf(source, number), await pixelsOf(result, number)];
    context.putImageData(a, 0, 0);
    context.putImageData(b, width, 0);
    context.putImageData(difference(a, b, AMPLIFICATION), 2 * width, 0);
  };
  return drawnDownload(label, stem, { ...clockOf(source), height }, 3 * width, still, draw);
}

/** The amplified absolute difference of two pictures. */
export function difference(a: ImageData, b: ImageData, gain: number): ImageData {
  const out = new ImageData(a.width, a.height);
  for (let i = 0; i < out.data.length; i += 4) {
    for (let c = i; c < i + 3; c++) out.data[c] = Math.abs(a.data[c] - b.data[c]) * gain;
    out.data[i + 3] = 255;
  }
  return out;
}

async function pixelsOf(frames: Frames, number: number): Promise<ImageData> {
  const context = canvasOf(frames.width, frames.height);
  const picture = await frames.load(number);
  picture.draw(context);
  picture.close();
  return context.getImageData(0, 0, frames.width, frames.height);
}

interface Timed {
  times: readonly number[];
  lastDuration: number;
  height: number;
}

function clockOf({ times, lastDuration }: Frames) {
  return { times, lastDuration };
}

type Draw = (context: CanvasRenderingContext2D, number: number) => Promise<void>;

function drawnDownload(label: string, stem: string, timed: Timed, width: number, still: boolean, draw: Draw): Download {
  const make = async () => {
    // Coders of videos take even sizes; the last row and column are drawn twice where there is one too few.
    const even = (length: number) => (still ? length : length + (length % 2));
    const context = canvasOf(even(width), even(timed.height));
    const paint = async (number: number) => {
      await draw(context, number);
      const { canvas } = context;
      if (canvas.width > width) context.drawImage(canvas, width - 1, 0, 1, canvas.height, width, 0, 1, canvas.height);
      if (canvas.height > timed.height) {
        context.drawImage(canvas, 0, timed.height - 1, canvas.width, 1, 0, timed.height, canvas.width, 1);
      }
    };
    if (!still) return encodeVideo(context, timed, paint);
    await paint(0);
    return new Promise<Blob>((resolve) => context.canvas.toBlob((blob) => resolve(blob!), "image/png"));
  };
  return { label, file: `${stem}.${still ? "png" : "mp4"}`, make };
}

async function encodeVideo(
  context: CanvasRenderingContext2D,
  { times, lastDuration }: Timed,
  paint: (number: number) => Promise<void>,
): Promise<Blob> {
  const { width, height } = context.canvas;
  const codec = await getFirstEncodableVideoCodec(["avc", "vp9", "av1"], { width, height });
  if (!codec) {
    throw new UserError(
      "This browser encodes no video. Take the latents and run `temporal-vae decode FILE.safetensors out.mp4`, or use " +
        "a current Chrome, Edge, Firefox or Safari.",
    );
  }
  const output = new Output({ format: new Mp4OutputFormat(), target: new BufferTarget() });
  const perSecond = times.length / (times[times.length - 1] + lastDuration);
  const quality = new Quality({ quantizer: QUANTIZER, bitrate: Math.ceil(width * height * perSecond * BITS_PER_PIXEL) });
  const source = new CanvasSource(context.canvas, { codec, quality });
  output.addVideoTrack(source);
  await output.start();
  for (const [number, time] of times.entries()) {
    await paint(number);
    const end = number + 1 < times.length ? times[number + 1] : time + lastDuration;
    await source.add(time, end - time);
  }
  await output.finalize();
  return new Blob([output.target.buffer!], { type: "video/mp4" });
}

function canvasOf(width: number, height: number): CanvasRenderingContext2D {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  return canvas.getContext("2d", { willReadFrequently: true, alpha: false })!;
}
