import { Cancelled, UserError } from "./errors";
import { PictureFrames, VideoFrames } from "./frames";
import { readTensors } from "./safetensors";
import type { Backend, Download, Frames, Latents, Metrics, Outcome, Progress, Settings } from "./types";

/** What `./info` answers. */
export interface Info {
  version: string;
  model: {
    name: string;
    class: string;
    clips: boolean;
    parameters: number;
    latent_channels: number;
    spatial_factor: number;
    dtype: string;
    device: string;
  };
  limits: { memory: number | null; body: number; seconds: number };
  machine: { processor: string; threads: number };
}

interface Job {
  id: string;
  state: "queued" | "running" | "done" | "failed" | "cancelled";
  position: number;
  done: number;
  total: number | null;
  seconds_left: number | null;
  plan: Record<string, { text: string }> | null;
  error: string | null;
  results: Record<string, string>;
}

const MOST_LATENTS = 256 * 2 ** 20; // bytes that are read to be shown
const UNREACHABLE = "The server does not answer. See that `temporal-vae serve` still runs, then try again.";

/** `temporal-vae serve` behind this page. */
export class Server implements Backend {
  info: Info | null = null;
  needsToken = false;
  private token = "";

  constructor(private readonly base: string) {}

  /** Whether a server answers behind this page; where it asks for a token, `needsToken` says so and `info` stays null. */
  async find(): Promise<boolean> {
    const answer = await fetch(this.address("info"), { headers: this.headers() }).catch(() => null);
    this.needsToken = answer?.status === 401;
    if (this.needsToken) return true;
    const info = answer?.ok ? await answer.json().catch(() => null) : null;
    this.info = info?.model ? info : null;
    return this.info !== null;
  }

  /** Try a token; false where it is not the right one. */
  async use(token: string): Promise<boolean> {
    this.token = token;
    await this.find();
    return this.info !== null;
  }

  async run(file: File, settings: Settings, report: (progress: Progress) => void, stop: AbortSignal): Promise<Outcome> {
    this.check(file);
    const submitted = await this.submit(file, settings, report, stop);
    const leave = () => void this.remove(submitted.id, true);
    window.addEventListener("pagehide", leave);
    try {
      const job = await this.follow(submitted, report, stop);
      report({ doing: "Fetching the results", share: 1, secondsLeft: null });
      return await this.outcome(file, job, stop);
    } catch (error) {
      if (!stop.aborted) throw error;
      await this.remove(submitted.id, false);
      throw new Cancelled();
    } finally {
      window.removeEventListener("pagehide", leave);
    }
  }

  private check(file: File): void {
    const most = this.info?.limits.body;
    if (most && file.size > most) {
      const size = (bytes: number) => `${Math.ceil(bytes / 2 ** 20).toLocaleString("en-US")} MiB`;
      throw new UserError(
        `${file.name} has ${size(file.size)}, and this server takes ${size(most)}. Cut or compress it, or start ` +
          "the server with a larger limit.",
      );
    }
  }

  private submit(file: File, settings: Settings, report: (progress: Progress) => void, stop: AbortSignal): Promise<Job> {
    const form = new FormData();
    const clips = this.info?.model.clips ?? true;
    if (clips) form.set("clip_frames", settings.clipFrames === null ? "all" : `${settings.clipFrames}`);
    if (clips) form.set("overlap", `${settings.overlap}`);
    if (settings.frames !== null) form.set("frames", `${settings.frames}`);
    if (settings.width !== null) form.set("size", `${settings.width}`);
    if (settings.memoryLimit) form.set("memory_limit", settings.memoryLimit);
    form.set("file", file);
    // Of the browser's two ways to send, this one tells how far it is.
    const request = new XMLHttpRequest();
    return new Promise<Job>((resolve, reject) => {
      request.open("POST", this.address("jobs"));
      for (const [name, value] of Object.entries(this.headers())) request.setRequestHeader(name, value);
      request.upload.onprogress = ({ loaded, total }) =>
        report({ doing: `Sending the file, ${Math.round((100 * loaded) / (total || 1))} %`, share: null, secondsLeft: null });
      request.onerror = () => reject(new UserError(UNREACHABLE));
      request.onabort = () => reject(new Cancelled());
      request.onload = () => {
        if (request.status === 202) resolve(JSON.parse(request.responseText));
        else reject(refusal(request.status, request.responseText, request.getResponseHeader("Retry-After")));
      };
      stop.addEventListener("abort", () => request.abort());
      request.send(form);
    });
  }

  /** Follow a job to its end; a stream that breaks off is opened again. */
  private async follow(job: Job, report: (progress: Progress) => void, stop: AbortSignal): Promise<Job> {
    for (;;) {
      for await (const next of this.events(job.id, stop)) {
        report(progressOf((job = next)));
      }
      if (!isOver(job)) job = await (await this.fetch(`jobs/${job.id}`, stop)).json();
      if (job.state === "done") return job;
      if (job.state === "cancelled") throw new UserError("The server cancelled this run. Start it again.");
      if (job.state === "failed") throw new UserError(job.error ?? "The server gave no reason. Try again.");
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }

  private async *events(id: string, stop: AbortSignal): AsyncGenerator<Job> {
    const answer = await this.fetch(`jobs/${id}/events`, stop);
    const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        if (stop.aborted) throw error;
        return { done: true, value: undefined };
      });
      if (done) return;
      const events = (text + value).replaceAll("\r\n", "\n").split("\n\n");
      text = events.pop()!;
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:"));
        if (data.length) yield JSON.parse(data.map((line) => line.slice(5)).join("\n"));
      }
    }
  }

  private async outcome(file: File, job: Job, stop: AbortSignal): Promise<Outcome> {
    const { results } = job;
    const blob = async (address: string) => (await this.fetch(address, stop)).blob();
    const open = async (address: string): Promise<Frames> =>
      address.endsWith(".png") ? PictureFrames.open(await blob(address)) : VideoFrames.open(await blob(address));
    const metrics: Metrics = await (await this.fetch(results.metrics, stop)).json();
    const [source, result] = await Promise.all([open(results.source), open(results.result)]);
    return {
      name: file.name,
      source,
      result,
      metrics,
      latents: await this.latents(results.latents, stop),
      plan: Object.values(job.plan ?? {}).map(({ text }) => text).join("\n\n"),
      downloads: this.downloads(file, results),
    };
  }

  private async latents(address: string, stop: AbortSignal): Promise<Latents | string> {
    const answer = await this.fetch(address, stop);
    if (Number(answer.headers.get("Content-Length") ?? 0) > MOST_LATENTS) {
      await answer.body?.cancel();
      return "These latents are too large to be shown here. Take the file instead.";
    }
    const { mean } = readTensors(await answer.arrayBuffer(), ["mean"]);
    const [frames, channels, height, width] = mean.shape;
    return { frames, channels, height, width, mean: mean.values };
  }

  private downloads(file: File, results: Record<string, string>): Download[] {
    const stem = file.name.replace(/\.[^.]*$/, "") || "video";
    const labels: Record<string, string> = {
      result: "Result",
      latents: "Latents",
      comparison: "Comparison",
      sheet: "Contact sheet",
      metrics: "Metrics",
      report: "Report",
    };
    return Object.entries(labels)
      .filter(([key]) => results[key])
      .map(([key, label]) => ({
        label,
        file: `${stem}.${key}.${results[key].split(".").pop()}`,
        make: async () => (await this.fetch(results[key], new AbortController().signal)).blob(),
      }));
  }

  private async remove(id: string, leaving: boolean): Promise<void> {
    await fetch(this.address(`jobs/${id}`), { method: "DELETE", headers: this.headers(), keepalive: leaving }).catch(() => null);
  }

  private async fetch(address: string, signal: AbortSignal): Promise<Response> {
    const answer = await fetch(this.address(address), { headers: this.headers(), signal }).catch((error) => {
      throw signal.aborted ? error : new UserError(UNREACHABLE);
    });
    if (answer.status === 404) throw new UserError("The server no longer has this run; results are kept for a limited time. Start it again.");
    if (!answer.ok) throw refusal(answer.status, await answer.text(), answer.headers.get("Retry-After"));
    return answer;
  }

  private address(path: string): string {
    return new URL(path, this.base).href;
  }

  private headers(): Record<string, string> {
    return this.token ? { Authorization: `Bearer ${this.token}` } : {};
  }
}

function isOver(job: Job): boolean {
  return job.state === "done" || job.state === "failed" || job.state === "cancelled";
}

function progressOf(job: Job): Progress {
  if (job.state === "queued") {
    const before = job.position === 1 ? "next in the queue" : `number ${job.position} in the queue`;
    return { doing: `Waiting: ${before}`, share: null, secondsLeft: null };
  }
  const share = job.total ? Math.min(job.done / job.total, 1) : null;
  return { doing: "The server computes", share, secondsLeft: job.seconds_left };
}

/** What a server refused, in its own sentence where it gave one. */
function refusal(status: number, body: string, retryAfter: string | null): UserError {
  let detail: unknown;
  try {
    detail = JSON.parse(body).detail;
  } catch {
    detail = null;
  }
  const said = typeof detail === "string" ? detail : `The server answered with status ${status}. Try again.`;
  return new UserError(retryAfter ? `${said} (Try again in ${retryAfter} s.)` : said);
}
