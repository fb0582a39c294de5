import { ALL_FORMATS, BlobSource, Input, VideoSampleSink } from "mediabunny";
import type { VideoSample } from "mediabunny";
import { UserError } from "./errors";
import { packetTimes } from "./reading";
import type { Drawable, Frames } from "./types";

/** Frames that lie in memory as RGBA pixels. */
export class PixelFrames implements Frames {
  constructor(
    readonly width: number,
    readonly height: number,
    readonly times: number[],
    readonly lastDuration: number,
    readonly pixels: Uint8ClampedArray<ArrayBuffer>[],
  ) {}

  async load(number: number): Promise<Drawable> {
    const data = new ImageData(this.pixels[number], this.width, this.height);
    return { draw: (context) => context.putImageData(data, 0, 0), close: () => undefined };
  }

  close(): void {}
}

/** One picture. */
export class PictureFrames implements Frames {
  readonly times = [0];
  readonly lastDuration = 1;
  readonly width: number;
  readonly height: number;

  private constructor(private readonly image: ImageBitmap) {
    this.width = image.width;
    this.height = image.height;
  }

  static async open(file: Blob): Promise<PictureFrames> {
    return new PictureFrames(await createImageBitmap(file));
  }

  async load(): Promise<Drawable> {
    return { draw: (context) => context.drawImage(this.image, 0, 0), close: () => undefined };
  }

  close(): void {
    this.image.close();
  }
}

const NEAR = 8; // frames ahead that are decoded on the way rather than from the key frame before

/** Frames of a video file, decoded as they are asked for; what is shown is always the frame that was asked for. */
export class VideoFrames implements Frames {
  private samples: AsyncGenerator<VideoSample, void, unknown> | null = null;
  private next = 0; // number of the frame that `samples` gives next

  private constructor(
    private readonly input: Input,
    private readonly sink: VideoSampleSink,
    private readonly stamps: number[],
    readonly times: number[],
    readonly lastDuration: number,
    readonly width: number,
    readonly height: number,
  ) {}

  static async open(file: Blob): Promise<VideoFrames> {
    if (!("VideoDecoder" in globalThis)) {
      throw new UserError(
        "This browser gives pages no frames of videos (it lacks WebCodecs), so there is nothing to compare here. " +
          "Use a current Chrome, Edge, Firefox or Safari over https or from this machine.",
      );
    }
    const input = new Input({ formats: ALL_FORMATS, source: new BlobSource(file) });
    const track = await input.getPrimaryVideoTrack();
    if (!track || !(await track.canDecode())) {
      input.dispose();
      throw new UserError(
        "This browser does not decode the H.264 of the result. Choose an even width, use a current Chrome, Edge, " +
          "Firefox or Safari, or take the downloads of `temporal-vae reconstruct`.",
      );
    }
    const stamps = await packetTimes(track, Infinity);
    const times = stamps.map((stamp) => stamp - stamps[0]);
    const end = await track.computeDuration();
    const size: [number, number] = [await track.getDisplayWidth(), await track.getDisplayHeight()];
    return new VideoFrames(input, new VideoSampleSink(track), stamps, times, end - stamps[stamps.length - 1], ...size);
  }

  async load(number: number): Promise<Drawable> {
    if (!this.samples || number < this.next || number >= this.next + NEAR) await this.restart(number);
    for (;;) {
      const step = await this.samples!.next();
      if (step.done) throw new UserError(`Frame ${number} of the video is missing. Run it again.`);
      const sample = step.value;
      const found = this.numberOf(sample.timestamp);
      this.next = found + 1;
      if (found === number) {
        return { draw: (context) => sample.draw(context, 0, 0, this.width, this.height), close: () => sample.close() };
      }
      sample.close();
      if (found > number) throw new UserError(`Frame ${number} of the video is missing. Run it again.`);
    }
  }

  close(): void {
    void this.samples?.return();
    this.input.dispose();
  }

  private async restart(number: number): Promise<void> {
    await this.samples?.return();
    this.samples = this.sink.samples(this.stamps[number]);
    this.next = number;
  }

  /** Number of the frame that begins at or, by rounding, around a time stamp. */
  private numberOf(stamp: number): number {
    return frameAt(this.stamps, stamp + 1e-4);
  }
}

/** Number of the frame that is shown at a time; the first one before its time. */
export function frameAt(times: readonly number[], seconds: number): number {
  let [low, high] = [0, times.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (times[middle] <= seconds) low = middle;
    else high = middle - 1;
  }
  return low;
}
