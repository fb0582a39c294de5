import { ALL_FORMATS, BlobSource, EncodedPacketSink, Input, VideoSampleSink } from "mediabunny";
import type { InputVideoTrack } from "mediabunny";
import { UserError } from "./errors";

// A file as frames, read by the browser itself. Runs in the page and in the worker.

/** What a file is, as far as its headers tell. */
export interface Facts {
  width: number;
  height: number;
  frames: number;
  still: boolean;
}

/** Frames with their times; ticks are exact, as latent files keep them. */
export interface Reading {
  width: number;
  height: number;
  still: boolean;
  rate: string; // a fraction
  tick: string; // seconds, a fraction
  ticks: number[];
  lastTicks: number; // how long the last frame is shown
  colour: Record<"matrix" | "range" | "primaries" | "transfer", string>; // of the file, in FFmpeg's names
  frames: Uint8ClampedArray<ArrayBuffer>[]; // RGBA
}

const VIDEO = { matrix: "bt709", range: "limited", primaries: "unspecified", transfer: "unspecified" };
const SRGB = { matrix: "rgb", range: "full", primaries: "bt709", transfer: "iec61966-2-1" };

const PICTURE = /\.(png|jpe?g|gif|webp|avif|bmp|apng)$/i;

/** Width and height of frames whose width is to be `width`. */
export function scaled(facts: { width: number; height: number }, width: number | null): [number, number] {
  if (width === null) return [facts.width, facts.height];
  return [width, Math.max(1, Math.round((facts.height * width) / facts.width))];
}

/** Read the headers of a file. */
export async function inspect(file: File): Promise<Facts> {
  if (isPicture(file)) {
    return withPicture(file, async (picture) => ({
      width: picture.width,
      height: picture.height,
      frames: picture.count,
      still: picture.count === 1,
    }));
  }
  return withVideo(file, async (track) => {
    const times = await packetTimes(track, Infinity);
    const [width, height] = [await track.getDisplayWidth(), await track.getDisplayHeight()];
    return { width, height, frames: times.length, still: false };
  });
}

/** Read up to `most` frames at a width; `check` may refuse what they are before they are read. */
export async function read(
  file: File,
  width: number | null,
  most: number | null,
  check: (frames: number, width: number, height: number) => void,
  report: (done: number, total: number) => void,
): Promise<Reading> {
  const how = { width, most: most ?? Infinity, check, report };
  return isPicture(file) ? withPicture(file, (picture) => readPicture(picture, how)) : withVideo(file, (track) => readVideo(track, how));
}

interface How {
  width: number | null;
  most: number;
  check: (frames: number, width: number, height: number) => void;
  report: (done: number, total: number) => void;
}

function isPicture(file: File): boolean {
  return file.type.startsWith("image/") || PICTURE.test(file.name);
}

function unreadable(file: File): UserError {
  return new UserError(
    `${file.name} is no video or picture that this browser can read. Choose an MP4, WebM, MOV, PNG, JPEG or GIF ` +
      "file; `temporal-vae serve` and `temporal-vae reconstruct` read all that FFmpeg does.",
  );
}

// Videos

async function withVideo<Result>(file: File, use: (track: InputVideoTrack) => Promise<Result>): Promise<Result> {
  if (!("VideoDecoder" in globalThis)) {
    throw new UserError(
      "This browser gives pages no frames of videos (it lacks WebCodecs). Use a current Chrome, Edge, Firefox or " +
        "Safari over https or from this machine, or choose a picture.",
    );
  }
  const input = new Input({ formats: ALL_FORMATS, source: new BlobSource(file) });
  try {
    const track = (await input.canRead()) ? await input.getPrimaryVideoTrack() : null;
    if (!track) throw unreadable(file);
    if (!(await track.canDecode())) {
      throw new UserError(
        `${file.name} is coded as ${(await track.getCodec()) ?? "something unknown"}, which this browser cannot ` +
          "decode. Convert it to H.264 or VP9, or let the server or `temporal-vae reconstruct` read it.",
      );
    }
    return await use(track);
  } catch (error) {
    if (error instanceof UserError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new UserError(`${file.name} is damaged or cut off (${reason}). Choose another file, or make it again.`);
  } finally {
    input.dispose();
  }
}

/** Start of every frame in seconds, in the order in which they are shown. */
export async function packetTimes(track: InputVideoTrack, most: number): Promise<number[]> {
  const times: number[] = [];
  const packets = new EncodedPacketSink(track).packets(undefined, undefined, { metadataOnly: true });
  for await (const packet of packets) {
    times.push(packet.timestamp);
    if (times.length >= most + 32) break; // frames may be stored up to 16 places from where they are shown
  }
  return times.sort((a, b) => a - b).filter((time) => time >= 0);
}

async function readVideo(track: InputVideoTrack, how: How): Promise<Reading> {
  const times = (await packetTimes(track, how.most)).slice(0, how.most);
  const whole = { width: await track.getDisplayWidth(), height: await track.getDisplayHeight() };
  const [width, height] = scaled(whole, how.width);
  how.check(times.length, width, height);
  const surface = drawing(width, height);
  const resolution = Math.round(await track.getTimeResolution());
  const frames: Uint8ClampedArray<ArrayBuffer>[] = [];
  const ticks: number[] = [];
  let lastTicks = 1;
  for await (const sample of new VideoSampleSink(track).samples()) {
    if (sample.timestamp >= 0 && frames.length < how.most) {
      surface.clear();
      sample.draw(surface.context, 0, 0, width, height);
      frames.push(surface.pixels());
      ticks.push(Math.round(sample.timestamp * resolution));
      lastTicks = Math.max(1, Math.round(sample.duration * resolution));
      how.report(frames.length, times.length);
    }
    sample.close();
    if (frames.length >= how.most) break;
  }
  if (frames.length < Math.max(times.length, 1)) throw new Error(`${frames.length} of ${times.length} frames can be read`);
  const rate = fraction((await track.computePacketStats(100)).averagePacketRate);
  return { width, height, still: false, rate, tick: `1/${resolution}`, ticks, lastTicks, colour: VIDEO, frames };
}

/** A rate as people write it: whole, over 1001, or in thousandths. */
export function fraction(rate: number): string {
  const usual = [Math.round(rate), Math.round((rate * 1001) / 1000)];
  if (Math.abs(rate - usual[0]) < 1e-3 && usual[0] > 0) return `${usual[0]}`;
  if (Math.abs(rate - (usual[1] * 1000) / 1001) < 1e-3) return `${usual[1] * 1000}/1001`;
  return `${Math.max(1, Math.round(rate * 1000))}/1000`;
}

// Pictures

interface Picture {
  width: number;
  height: number;
  count: number;
  frame(number: number): Promise<{ image: ImageBitmap | VideoFrame; milliseconds: number }>;
}

async function withPicture<Result>(file: File, use: (picture: Picture) => Promise<Result>): Promise<Result> {
  const animation = await openAnimation(file);
  if (animation) {
    try {
      return await use(animation.picture);
    } finally {
      animation.close();
    }
  }
  const image = await createImageBitmap(file, { premultiplyAlpha: "none" }).catch(() => {
    throw unreadable(file);
  });
  const { width, height } = image;
  return use({ width, height, count: 1, frame: async () => ({ image, milliseconds: 0 }) });
}

/** The frames of an animated GIF, WebP or PNG, where the browser gives them one by one. */
async function openAnimation(file: File): Promise<{ picture: Picture; close(): void } | null> {
  const type = file.type || `image/${file.name.split(".").pop()}`;
  if (!("ImageDecoder" in globalThis) || !(await ImageDecoder.isTypeSupported(type))) return null;
  const decoder = new ImageDecoder({ data: await file.arrayBuffer(), type });
  try {
    await decoder.tracks.ready;
    await decoder.completed; // only then are all frames counted
    const count = decoder.tracks.selectedTrack?.frameCount ?? 1;
    if (count > 1) {
      const { image } = await decoder.decode({ frameIndex: 0 });
      const frame = async (number: number) => {
        const { image } = await decoder.decode({ frameIndex: number });
        return { image, milliseconds: (image.duration ?? 100_000) / 1000 };
      };
      const picture = { width: image.displayWidth, height: image.displayHeight, count, frame };
      image.close();
      return { picture, close: () => decoder.close() };
    }
  } catch {
    // createImageBitmap says what is wrong with it
  }
  decoder.close();
  return null;
}

async function readPicture(picture: Picture, how: How): Promise<Reading> {
  const count = Math.min(picture.count, how.most);
  const [width, height] = scaled(picture, how.width);
  how.check(count, width, height);
  const surface = drawing(width, height);
  const frames: Uint8ClampedArray<ArrayBuffer>[] = [];
  const ticks: number[] = [];
  let at = 0;
  let last = 0;
  for (let number = 0; number < count; number++) {
    const { image, milliseconds } = await picture.frame(number);
    surface.clear();
    surface.context.drawImage(image, 0, 0, width, height);
    image.close();
    frames.push(surface.pixels());
    ticks.push(at);
    at += last = Math.max(1, Math.round(milliseconds));
    how.report(number + 1, count);
  }
  const common = { width, height, ticks, colour: SRGB, frames };
  if (picture.count === 1) return { ...common, still: true, rate: "24", tick: "1/24", lastTicks: 1 };
  return { ...common, still: false, rate: fraction((1000 * count) / at), tick: "1/1000", lastTicks: last };
}

/** A canvas to draw frames on and read them from; black behind transparent parts, as in the package. */
function drawing(width: number, height: number) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false })!;
  context.imageSmoothingQuality = "high";
  return {
    context,
    clear: () => context.fillRect(0, 0, width, height),
    pixels: () => context.getImageData(0, 0, width, height).data as Uint8ClampedArray<ArrayBuffer>,
  };
}
