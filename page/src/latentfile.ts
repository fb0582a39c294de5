import { padded } from "./clips";
import type { Model } from "./model";
import { writeTensors } from "./safetensors";
import type { Work } from "./worker";

/** What the browser computed as a latent file of the package (docs/files.md), which `temporal-vae decode` reads. */
export function latentFile(name: string, work: Work, model: Model): Blob {
  const { width, height, frames, ticks, tick, lastTicks, rate, still, colour } = work.reading;
  const [w, h] = [padded(width, model.spatial_factor), padded(height, model.spatial_factor)];
  const about = {
    format_version: 1,
    model: model.identity,
    config_sha256: model.config_sha256,
    source_name: name,
    source_sha256: work.sourceHash,
    rate,
    height,
    width,
    padded_height: h,
    padded_width: w,
    color: colour,
    pixel_aspect: "1",
    time_base: tick,
    timestamps: still ? { tick: "1", ticks } : { tick, ticks },
    last_duration: still ? null : `${lastTicks}/${tick.split("/")[1]}`,
  };
  const f = model.spatial_factor;
  const shape = [frames.length, model.latent_channels, h / f, w / f];
  const tensors = { mean: { shape, values: work.mean }, logvar: { shape, values: work.logvar } };
  return writeTensors(tensors, { temporal_vae: JSON.stringify(about) });
}
