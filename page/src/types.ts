/** One picture that can be drawn again and again until it is closed. */
export interface Drawable {
  draw(context: CanvasRenderingContext2D): void;
  close(): void;
}

/** The frames of a video, by number. */
export interface Frames {
  readonly width: number;
  readonly height: number;
  /** Seconds at which each frame begins to be shown, from 0. */
  readonly times: readonly number[];
  /** Seconds for which the last frame is shown. */
  readonly lastDuration: number;
  load(number: number): Promise<Drawable>;
  close(): void;
}

export interface FrameFigures {
  psnr: number | null;
  ssim: number | null;
  flicker: number | null;
}

/** What `Report.to_dict()` of the package gives; null for what is infinite or undefined. */
export interface Metrics {
  source: string;
  target: string;
  model: string;
  dtype: string;
  device: string;
  width: number;
  height: number;
  clip_frames: number | null;
  overlap: number;
  model_seconds: number;
  total_seconds: number;
  peak_memory: number | null;
  seconds_per_frame: number;
  summary: {
    frames: number;
    psnr: number | null;
    psnr_of_mean_error: number | null;
    psnr_worst: number | null;
    ssim: number | null;
    flicker: number | null;
  };
  per_frame: FrameFigures[];
}

/** Mean of the posterior of every frame, `(t, z, h, w)`. */
export interface Latents {
  frames: number;
  channels: number;
  height: number;
  width: number;
  mean: Float32Array;
}

/** Something to take away. */
export interface Download {
  label: string;
  file: string;
  make(): Promise<Blob>;
}

/** A reconstruction that is complete. */
export interface Outcome {
  name: string;
  source: Frames;
  result: Frames;
  metrics: Metrics;
  latents: Latents | string; // or why there are none to show
  plan: string;
  downloads: Download[];
}

export interface Settings {
  clipFrames: number | null; // null: all frames are one clip
  overlap: number;
  frames: number | null; // the most to read
  width: number | null;
  memoryLimit: string; // of the server; empty: its own
}

/** How far the work is. */
export interface Progress {
  doing: string;
  share: number | null; // null: unknown
  secondsLeft: number | null;
  /** Work that finishes in one piece: the page counts seconds beside it. */
  inOnePiece?: boolean;
}

/** What computes: the server, or this browser. */
export interface Backend {
  run(file: File, settings: Settings, report: (progress: Progress) => void, stop: AbortSignal): Promise<Outcome>;
}
