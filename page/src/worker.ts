import type * as Ort from "onnxruntime-web";
import { checkFits, clipStarts, fade, fadeShare, padded, toPixels, toTensor } from "./clips";
import { sentence, UserError } from "./errors";
import { QualityMeter } from "./metrics";
import type { Model } from "./model";
import { read, type Reading } from "./reading";
import type { FrameFigures, Metrics, Progress, Settings } from "./types";

// The whole work of the browser's own backend: file to frames, latents, frames, figures. It is ended by ending the worker.

export interface Order {
  file: File;
  settings: Settings;
  model: Model;
  base: string; // address of the page's folder
  device: string | null; // `wasm` or `webgpu` where one is asked for
}

/** What is handed back, all of it moved rather than copied. */
export interface Work {
  reading: Reading;
  result: Uint8ClampedArray<ArrayBuffer>[];
  mean: Float32Array<ArrayBuffer>;
  logvar: Float32Array<ArrayBuffer>;
  sourceHash: string;
  perFrame: FrameFigures[];
  summary: Metrics["summary"];
  device: string;
  modelSeconds: number;
}

export type Message =
  | { type: "progress"; progress: Progress }
  | { type: "done"; work: Work }
  | { type: "error"; sentence: string };

const send = (message: Message, moved: Transferable[] = []) => self.postMessage(message, { transfer: moved });

self.onmessage = async (event: MessageEvent<Order>) => {
  try {
    const work = await compute(event.data);
    const buffers = [...work.reading.frames, ...work.result, work.mean, work.logvar].map((values) => values.buffer);
    send({ type: "done", work }, buffers);
  } catch (error) {
    send({ type: "error", sentence: sentence(explained(error)) });
  }
};

/** What ONNX Runtime and browsers say when there is no more memory, in a sentence. */
function explained(error: unknown): unknown {
  if (error instanceof UserError) return error;
  const text = String(error);
  if (!/alloc|memory|out of bounds|OOM|Device.*lost|\b\d{6,}\b/i.test(text)) return error;
  return new UserError(
    "The browser ran out of memory. Choose shorter clips or a smaller width, close other tabs, or let the server or " +
      "`temporal-vae reconstruct` do it.",
  );
}

async function compute({ file, settings, model, base, device }: Order): Promise<Work> {
  const { clipFrames, overlap } = settings;
  report("Reading the file", 0);
  const check = (frames: number, width: number, height: number) => checkFits(frames, clipFrames, width, height);
  const reading = await read(file, settings.width, settings.frames, check, (done, total) =>
    report(`Reading frame ${done} of ${total}`, 0),
  );
  const sourceHash = await sha256(file);
  report("Loading the model", 0);
  const engine = await Engine.load(base, model, device);

  const clips = clipStarts(reading.frames.length, clipFrames, overlap);
  const clock = new Clock(model, reading, clips);
  const started = performance.now();
  const { mean, logvar } = await encode(engine, reading, clock);
  await engine.release("encoder");
  const { result, meter } = await decode(engine, reading, mean, clips, overlap, clock);
  return {
    reading,
    result,
    mean,
    logvar,
    sourceHash,
    perFrame: meter.perFrame(),
    summary: meter.summary(),
    device: engine.device,
    modelSeconds: (performance.now() - started) / 1000 - clock.aside,
  };
}

/** Share of the work that is done, counted in the model's multiply-adds, and the time left at the pace so far. */
class Clock {
  aside = 0; // seconds spent on other things than the model
  private done = 0;
  private readonly total: number;
  private readonly begin = performance.now();
  readonly encodeFrame: number;
  readonly decodeFrame: number;

  constructor(model: Model, reading: Reading, clips: [number, number][]) {
    const pixels = padded(reading.width, model.spatial_factor) * padded(reading.height, model.spatial_factor);
    this.encodeFrame = model.work.encode * pixels;
    this.decodeFrame = model.work.decode * pixels;
    const decoded = clips.reduce((sum, [start, stop]) => sum + stop - start, 0);
    this.total = reading.frames.length * this.encodeFrame + decoded * this.decodeFrame;
  }

  add(work: number): void {
    this.done += work;
  }

  say(doing: string, inOnePiece = false): void {
    const seconds = (performance.now() - this.begin) / 1000 - this.aside;
    const left = this.done ? (seconds / this.done) * (this.total - this.done) : null;
    send({ type: "progress", progress: { doing, share: this.done / this.total, secondsLeft: left, inOnePiece } });
  }
}

function report(doing: string, share: number | null): void {
  send({ type: "progress", progress: { doing, share, secondsLeft: null } });
}

async function encode(engine: Engine, reading: Reading, clock: Clock) {
  const { frames, width, height } = reading;
  const { spatial_factor: factor, latent_channels: channels } = engine.model;
  const [w, h] = [padded(width, factor), padded(height, factor)];
  const size = (channels * w * h) / factor ** 2;
  const mean = new Float32Array(size * frames.length);
  const logvar = new Float32Array(size * frames.length);
  for (const [number, pixels] of frames.entries()) {
    clock.say(`Encoding frame ${number + 1} of ${frames.length}`);
    const out = await engine.run("encoder", "frames", toTensor(pixels, width, height, factor), [1, 3, h, w]);
    mean.set(out.mean, number * size);
    logvar.set(out.logvar, number * size);
    clock.add(clock.encodeFrame);
  }
  return { mean, logvar };
}

async function decode(
  engine: Engine,
  reading: Reading,
  mean: Float32Array,
  clips: [number, number][],
  overlap: number,
  clock: Clock,
) {
  const { frames, width, height } = reading;
  const { spatial_factor: factor, latent_channels: channels } = engine.model;
  const [w, h] = [padded(width, factor) / factor, padded(height, factor) / factor];
  const size = channels * w * h;
  const result: Uint8ClampedArray<ArrayBuffer>[] = [];
  const meter = new QualityMeter();
  let measured = 0;
  for (const [place, [start, stop]] of clips.entries()) {
    const count = stop - start;
    const one = clips.length === 1 ? `Decoding ${frames.length} frames` : `Decoding clip ${place + 1} of ${clips.length}`;
    clock.say(one, true);
    const out = await engine.run("decoder", "latents", mean.slice(start * size, stop * size), [1, count, channels, h, w]);
    clock.add(count * clock.decodeFrame);
    const rest = performance.now();
    const ofFrame = out.frames.length / count;
    const shared = result.length - start;
    for (let i = 0; i < count; i++) {
      const pixels = toPixels(out.frames.subarray(i * ofFrame, (i + 1) * ofFrame), width, height, factor);
      if (i < shared) fade(result[start + i], pixels, fadeShare(i, shared));
      result[start + i] = pixels;
    }
    const final = place === clips.length - 1 ? frames.length : stop - overlap;
    for (; measured < final; measured++) {
      clock.say(`Comparing frame ${measured + 1} of ${frames.length}`);
      meter.update(frames[measured], result[measured], width, height);
    }
    clock.aside += (performance.now() - rest) / 1000;
  }
  clock.say("Done");
  return { result, meter };
}

type Graph = "encoder" | "decoder";

/** The two graphs in ONNX Runtime: on WebGPU where there is an adapter, else in WebAssembly on threads where allowed. */
class Engine {
  private sessions = new Map<Graph, Ort.InferenceSession>();

  private constructor(
    readonly model: Model,
    readonly device: string,
    private readonly ort: typeof Ort,
    private readonly provider: string,
    private readonly base: string,
  ) {}

  static async load(base: string, model: Model, asked: string | null): Promise<Engine> {
    const gpu = asked === "wasm" ? null : await adapter(asked === "webgpu");
    const ort: typeof Ort = gpu ? await import("onnxruntime-web/webgpu") : await import("onnxruntime-web/wasm");
    const build = gpu ? "ort-wasm-simd-threaded.asyncify" : "ort-wasm-simd-threaded";
    const at = (suffix: string) => new URL(`ort/${build}.${suffix}`, base).href;
    const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
    ort.env.wasm.wasmPaths = { mjs: at("mjs"), wasm: at("wasm") };
    ort.env.wasm.numThreads = gpu ? 1 : threads;
    const device = gpu ? `WebGPU (${gpu})` : `WebAssembly, ${threads} thread${threads === 1 ? "" : "s"}`;
    return new Engine(model, device, ort, gpu ? "webgpu" : "wasm", base);
  }

  async run(graph: Graph, input: string, values: Float32Array, shape: number[]): Promise<Record<string, Float32Array>> {
    let session = this.sessions.get(graph);
    if (!session) {
      const file = await fetchGraph(new URL(`${graph}.onnx`, this.base));
      session = await this.ort.InferenceSession.create(file, {
        executionProviders: [this.provider],
        logSeverityLevel: 3, // errors; what it warns of is where it keeps sums of shapes
      });
      this.sessions.set(graph, session);
    }
    const out = await session.run({ [input]: new this.ort.Tensor("float32", values, shape) });
    return Object.fromEntries(Object.entries(out).map(([name, tensor]) => [name, tensor.data as Float32Array]));
  }

  async release(graph: Graph): Promise<void> {
    await this.sessions.get(graph)?.release();
    this.sessions.delete(graph);
  }
}

/** Name of the graphics adapter; null where there is none, or one in software, which is slower than WebAssembly. */
async function adapter(insisting: boolean): Promise<string | null> {
  const found = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!found && insisting) {
    throw new UserError("This browser gives no WebGPU adapter. Leave ?device=webgpu out of the address.");
  }
  if (found?.info?.isFallbackAdapter && !insisting) return null;
  return found ? [found.info?.vendor, found.info?.architecture].filter(Boolean).join(" ") || "graphics card" : null;
}

async function fetchGraph(address: URL): Promise<Uint8Array> {
  const answer = await fetch(address).catch(() => null);
  if (!answer?.ok) {
    throw new UserError(`The model (${address.pathname}) did not come. Check the connection and try again.`);
  }
  return new Uint8Array(await answer.arrayBuffer());
}

/** Hash of a file; empty where the browser computes none, which is outside of https. */
async function sha256(file: File): Promise<string> {
  if (!self.crypto?.subtle) return "";
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
