import { Cancelled, UserError } from "./errors";
import { comparisonDownload, jsonDownload, videoDownload } from "./downloads";
import { PixelFrames } from "./frames";
import { latentFile } from "./latentfile";
import { bytesOfClip, clipStarts, grouped, plural } from "./clips";
import type { Model } from "./model";
import type { Backend, Download, Metrics, Outcome, Progress, Settings } from "./types";
import type { Message, Order, Work } from "./worker";

/** The embedded model in this browser. Nothing leaves it. */
export class BrowserBackend implements Backend {
  constructor(
    private readonly model: Model,
    private readonly base: string,
  ) {}

  async run(file: File, settings: Settings, report: (progress: Progress) => void, stop: AbortSignal): Promise<Outcome> {
    const started = performance.now();
    const work = await this.compute(file, settings, report, stop);
    return this.outcome(file, settings, work, (performance.now() - started) / 1000);
  }

  /** A worker of its own for each run: ending it is the cancelling, and gives all memory back. */
  private compute(file: File, settings: Settings, report: (progress: Progress) => void, stop: AbortSignal): Promise<Work> {
    const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
    return new Promise<Work>((resolve, reject) => {
      stop.addEventListener("abort", () => reject(new Cancelled()));
      worker.onerror = (event) =>
        reject(new UserError(`The worker stopped (${event.message ?? "no reason given"}). Choose a smaller width, or reload the page.`));
      worker.onmessage = ({ data }: MessageEvent<Message>) => {
        if (data.type === "progress") report(data.progress);
        else if (data.type === "done") resolve(data.work);
        else reject(new UserError(data.sentence));
      };
      const device = new URL(location.href).searchParams.get("device");
      worker.postMessage({ file, settings, model: this.model, base: this.base, device } satisfies Order);
    }).finally(() => worker.terminate());
  }

  private outcome(file: File, settings: Settings, work: Work, totalSeconds: number): Outcome {
    const { width, height, frames, still } = work.reading;
    const second = 1 / Number(work.reading.tick.split("/")[1]);
    const times = work.reading.ticks.map((tick) => (tick - work.reading.ticks[0]) * second);
    const last = work.reading.lastTicks * second;
    const source = new PixelFrames(width, height, times, last, frames);
    const result = new PixelFrames(width, height, times, last, work.result);
    const stem = file.name.replace(/\.[^.]*$/, "") || "video";
    const metrics: Metrics = {
      source: file.name,
      target: `${stem}.result.${still ? "png" : "mp4"}`,
      model: "embedded",
      dtype: "float32",
      device: work.device,
      width,
      height,
      clip_frames: settings.clipFrames,
      overlap: settings.overlap,
      model_seconds: work.modelSeconds,
      total_seconds: totalSeconds,
      peak_memory: null,
      seconds_per_frame: work.modelSeconds / frames.length,
      summary: work.summary,
      per_frame: work.perFrame,
    };
    const latents: Download = {
      label: "Latents",
      file: `${stem}.safetensors`,
      make: async () => latentFile(file.name, work, this.model),
    };
    const f = this.model.spatial_factor;
    return {
      name: file.name,
      source,
      result,
      metrics,
      latents: {
        frames: frames.length,
        channels: this.model.latent_channels,
        height: Math.ceil(height / f),
        width: Math.ceil(width / f),
        mean: work.mean,
      },
      plan: planLines(frames.length, width, height, settings, work.device),
      downloads: [
        videoDownload("Result", `${stem}.result`, result, still),
        latents,
        comparisonDownload("Comparison", `${stem}.compare`, source, result, still),
        jsonDownload("Metrics", `${stem}.metrics.json`, metrics),
      ],
    };
  }
}

/** What a run takes, by the shapes alone. */
export function planLines(frames: number, width: number, height: number, settings: Settings, device: string): string {
  const clips = clipStarts(frames, settings.clipFrames, settings.overlap);
  const longest = Math.max(...clips.map(([start, stop]) => stop - start));
  const bytes = bytesOfClip(longest, width * height);
  const cut = clips.length === 1 ? "one clip" : `${plural(clips.length, "clip")} of up to ${longest}`;
  return [
    `${plural(frames, "frame")} of ${width}×${height}, ${cut}`,
    `about ${grouped(Math.round(bytes / 2 ** 20))} MiB while a clip is decoded`,
    `the embedded model in float32 on ${device}`,
  ].join("\n");
}
