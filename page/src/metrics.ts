import type { FrameFigures, Metrics } from "./types";

// The same figures as `temporal_vae.metrics`, by the same definitions, of RGBA pixels whose alpha is left out.

const PEAK = 255;
const WINDOW = 11;
const SIGMA = 1.5;
const C1 = (0.01 * PEAK) ** 2;
const C2 = (0.03 * PEAK) ** 2;
const WEIGHTS = gaussian();

export type Pixels = Uint8Array | Uint8ClampedArray;

function gaussian(): number[] {
  const weights = Array.from({ length: WINDOW }, (_, i) => Math.exp(-((i - (WINDOW >> 1)) ** 2) / (2 * SIGMA ** 2)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/** Mean squared error in squared 8-bit levels. */
export function mse(source: Pixels, result: Pixels): number {
  let total = 0;
  for (let i = 0; i < source.length; i += 4) {
    for (let c = 0; c < 3; c++) total += (result[i + c] - source[i + c]) ** 2;
  }
  return total / ((source.length / 4) * 3);
}

/** Peak signal-to-noise ratio in dB. */
export function psnr(error: number): number {
  return error === 0 ? Infinity : 10 * Math.log10(PEAK ** 2 / error);
}

/** Structural similarity (Wang et al., 2004), mean over pixels and colours; not a number below 11 pixels. */
export function ssim(source: Pixels, result: Pixels, width: number, height: number): number {
  if (Math.min(width, height) < WINDOW) return NaN;
  let total = 0;
  for (let c = 0; c < 3; c++) total += ssimOfColour(plane(source, c), plane(result, c), width, height);
  return total / 3;
}

function plane(pixels: Pixels, colour: number): Float32Array {
  const values = new Float32Array(pixels.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = pixels[4 * i + colour];
  return values;
}

function ssimOfColour(x: Float32Array, y: Float32Array, width: number, height: number): number {
  const product = (a: Float32Array, b: Float32Array) => a.map((value, i) => value * b[i]);
  const planes = [x, y, product(x, x), product(y, y), product(x, y)];
  const [meanX, meanY, xx, yy, xy] = planes.map((values) => blur(values, width, height));
  let total = 0;
  for (let i = 0; i < meanX.length; i++) {
    const [mx, my] = [meanX[i], meanY[i]];
    const luminance = (2 * mx * my + C1) / (mx * mx + my * my + C1);
    const structure = (2 * (xy[i] - mx * my) + C2) / (xx[i] - mx * mx + yy[i] - my * my + C2);
    total += luminance * structure;
  }
  return total / meanX.length;
}

/** Gaussian window over rows, then columns, without a border. */
function blur(values: Float32Array, width: number, height: number): Float32Array {
  const [w, h] = [width - WINDOW + 1, height - WINDOW + 1];
  const down = new Float32Array(width * h);
  for (let i = 0; i < down.length; i++) {
    let sum = 0;
    for (let k = 0; k < WINDOW; k++) sum += WEIGHTS[k] * values[i + k * width];
    down[i] = sum;
  }
  const across = new Float32Array(w * h);
  for (let row = 0; row < h; row++) {
    for (let column = 0; column < w; column++) {
      let sum = 0;
      for (let k = 0; k < WINDOW; k++) sum += WEIGHTS[k] * down[row * width + column + k];
      across[row * w + column] = sum;
    }
  }
  return across;
}

/** Figures of a video, frame by frame. */
export class QualityMeter {
  private errors: number[] = [];
  private similarities: number[] = [];
  private flicker: number[] = [];
  private last: Int16Array | null = null;

  /** Add the next frame of both videos. */
  update(source: Pixels, result: Pixels, width: number, height: number): void {
    this.errors.push(mse(source, result));
    this.similarities.push(ssim(source, result, width, height));
    const error = new Int16Array((source.length / 4) * 3);
    for (let i = 0, j = 0; i < source.length; i += 4) {
      for (let c = 0; c < 3; c++) error[j++] = result[i + c] - source[i + c];
    }
    if (this.last) {
      let total = 0;
      for (let i = 0; i < error.length; i++) total += Math.abs(error[i] - this.last[i]);
      this.flicker.push(total / error.length);
    }
    this.last = error;
  }

  perFrame(): FrameFigures[] {
    return this.errors.map((error, i) => ({
      psnr: finite(psnr(error)),
      ssim: finite(this.similarities[i]),
      flicker: i === 0 ? null : this.flicker[i - 1],
    }));
  }

  summary(): Metrics["summary"] {
    const all = this.errors.map(psnr);
    return {
      frames: all.length,
      psnr: finite(mean(all)),
      psnr_of_mean_error: finite(psnr(mean(this.errors))),
      psnr_worst: finite(Math.min(...all)),
      ssim: finite(mean(this.similarities)),
      flicker: this.flicker.length ? mean(this.flicker) : 0,
    };
  }
}

function mean(values: number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function finite(value: number): number | null {
  return Number.isFinite(value) ? value : null;
}
