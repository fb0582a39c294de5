import { UserError } from "./errors";

/** `model.json`: what the page has to know of the graphs beside it. Written by `build.py`. */
export interface Model {
  version: string; // of the package
  parameters: number;
  latent_channels: number;
  spatial_factor: number;
  scaling_factor: number;
  /** Multiply-adds for each pixel of a frame. */
  work: { encode: number; decode: number };
  /** As in latent files: `name`, `config`, `encoder_probe`. */
  identity: Record<string, unknown>;
  config_sha256: string;
}

export async function loadModel(base: string): Promise<Model> {
  const answer = await fetch(new URL("model.json", base)).catch(() => null);
  if (!answer?.ok) throw new UserError("model.json did not come. Reload the page; run `make page` if it stays away.");
  return answer.json();
}
