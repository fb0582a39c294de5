import { UserError } from "./errors";
import type { Pixels } from "./metrics";

// How the package cuts, pads and joins (`media/frames.py`, `video/coder.py`, `video/stitcher.py`), in TypeScript.

/** The most pixels of a frame in a browser: the convolutions unfold a frame to 3456 bytes for each of them. */
export const MOST_OF_A_FRAME = 262_144;
/** The most frames x pixels of one clip: the graphs take 4000 bytes for each, and WebAssembly has 4 GiB. */
export const MOST_OF_A_CLIP = 655_360;
/** The most frames x pixels of all: source, result and latents stay in memory, 12 bytes for each. */
export const MOST_OF_ALL = 12_000_000;

/** About what a clip takes in bytes; `docs/page.md` has what was measured. */
export function bytesOfClip(frames: number, pixels: number): number {
  return 150e6 + pixels * (3456 + 4000 * frames);
}

/** The widest frames that fit, of an aspect and in clips of so many. */
export function widest(aspect: number, clip: number): number {
  const pixels = Math.min(MOST_OF_A_FRAME, MOST_OF_A_CLIP / clip);
  return Math.max(4, Math.floor(Math.sqrt(pixels * aspect) / 4) * 4);
}

/** Cut `count` frames into clips `[start, stop)`; null is one clip of all. */
export function clipStarts(count: number, clipFrames: number | null, overlap: number): [number, number][] {
  const length = clipFrames ?? Math.max(count, overlap + 1);
  const clips: [number, number][] = [];
  for (let start = 0; start < count && (start === 0 || start + overlap < count); start += length - overlap) {
    clips.push([start, Math.min(start + length, count)]);
  }
  return clips;
}

/** The share of the later clip in the `i`-th of `shared` frames. */
export function fadeShare(i: number, shared: number): number {
  return Math.fround((i + 1) / (shared + 1));
}

/** Half to even, as NumPy and torch round. */
export function roundHalfEven(value: number): number {
  const low = Math.floor(value);
  const rest = value - low;
  if (rest !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}

/** Cross-fade `later` into `earlier`, both RGBA of one frame; the result lies in `later`. */
export function fade(earlier: Pixels, later: Pixels, share: number): void {
  for (let i = 0; i < later.length; i++) {
    later[i] = roundHalfEven(Math.fround(Math.fround(earlier[i] * (1 - share)) + Math.fround(later[i] * share)));
  }
}

/** RGBA pixels as values `(3, h, w)` in [-1, 1], the last row and column repeated up to multiples of `factor`. */
export function toTensor(pixels: Pixels, width: number, height: number, factor: number): Float32Array {
  const [w, h] = [padded(width, factor), padded(height, factor)];
  const values = new Float32Array(3 * w * h);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < h; y++) {
      const row = Math.min(y, height - 1) * width;
      for (let x = 0; x < w; x++) {
        const level = pixels[4 * (row + Math.min(x, width - 1)) + c];
        values[(c * h + y) * w + x] = Math.fround(level / 127.5) - 1;
      }
    }
  }
  return values;
}

/** Values `(3, h, w)` of padded size as RGBA pixels, cropped. */
export function toPixels(values: Float32Array, width: number, height: number, factor: number) {
  const [w, h] = [padded(width, factor), padded(height, factor)];
  const pixels = new Uint8ClampedArray(4 * width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) {
        const value = Math.min(Math.max(values[(c * h + y) * w + x], -1), 1);
        pixels[at + c] = roundHalfEven(Math.fround(Math.fround(value + 1) * 127.5));
      }
      pixels[at + 3] = 255;
    }
  }
  return pixels;
}

export function padded(length: number, factor: number): number {
  return Math.ceil(length / factor) * factor;
}

/** Refuse, with a remedy, what does not fit into a browser. */
export function checkFits(frames: number, clipFrames: number | null, width: number, height: number): void {
  const clip = Math.min(clipFrames ?? frames, frames);
  const size = width * height;
  const narrower = `a width of ${widest(width / height, clip)}`;
  const elsewhere = "or let the server or `temporal-vae reconstruct` do it.";
  if (size > MOST_OF_A_FRAME) {
    throw new UserError(
      `Frames of ${width}×${height} are too large for a browser, which takes ${grouped(MOST_OF_A_FRAME)} pixels in a ` +
        `frame. Choose ${narrower}, ${elsewhere}`,
    );
  }
  if (clip * size > MOST_OF_A_CLIP) {
    throw new UserError(
      `A clip of ${plural(clip, "frame")} of ${width}×${height} is too much for a browser, which takes ` +
        `${grouped(MOST_OF_A_CLIP)} pixels in all frames of a clip together. Choose clips of ` +
        `${plural(Math.floor(MOST_OF_A_CLIP / size), "frame")} or ${narrower}, ${elsewhere}`,
    );
  }
  if (frames * size > MOST_OF_ALL) {
    throw new UserError(
      `${plural(frames, "frame")} of ${width}×${height} are too much for a browser, which takes ` +
        `${grouped(MOST_OF_ALL)} pixels in all frames together. Choose at most ${Math.floor(MOST_OF_ALL / size)} ` +
        `frames or a smaller width, ${elsewhere}`,
    );
  }
}

export function plural(count: number, word: string): string {
  return `${grouped(count)} ${word}${count === 1 ? "" : "s"}`;
}

export function grouped(value: number): string {
  return value.toLocaleString("en-US");
}
