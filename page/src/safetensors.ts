import { UserError } from "./errors";

/** A tensor as float32. */
export interface Tensor {
  shape: number[];
  values: Float32Array;
}

/** Read the tensors of a safetensors file that are called `names`. */
export function readTensors(buffer: ArrayBuffer, names: string[]): Record<string, Tensor> {
  const damaged = () => new UserError("The latents that came are no complete safetensors file. Compute them again.");
  if (buffer.byteLength < 8) throw damaged();
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  if (8 + length > buffer.byteLength) throw damaged();
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const found: Record<string, Tensor> = {};
  for (const name of names) {
    if (!header[name]) throw damaged();
    const { dtype, shape, data_offsets: [start, stop] } = header[name];
    if (8 + length + stop > buffer.byteLength) throw damaged();
    found[name] = { shape, values: toFloat32(buffer.slice(8 + length + start, 8 + length + stop), dtype) };
  }
  return found;
}

function toFloat32(bytes: ArrayBuffer, dtype: string): Float32Array {
  if (dtype === "F32") return new Float32Array(bytes);
  const halves = new Uint16Array(bytes);
  if (dtype === "BF16") {
    const words = Uint32Array.from(halves, (half) => half << 16);
    return new Float32Array(words.buffer);
  }
  if (dtype === "F16") return Float32Array.from(halves, fromHalf);
  throw new UserError(`Latents of type ${dtype} cannot be shown here. Take the file instead.`);
}

function fromHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Float32 tensors as a safetensors file. */
export function writeTensors(tensors: Record<string, Tensor>, metadata: Record<string, string>): Blob {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let at = 0;
  for (const [name, { shape, values }] of Object.entries(tensors)) {
    header[name] = { dtype: "F32", shape, data_offsets: [at, at + values.byteLength] };
    at += values.byteLength;
  }
  const bytes = new TextEncoder().encode(JSON.stringify(header));
  const room = Math.ceil(bytes.length / 8) * 8;
  const start = new Uint8Array(8 + room).fill(32); // spaces, so that what follows is aligned
  new DataView(start.buffer).setBigUint64(0, BigInt(room), true);
  start.set(bytes, 8);
  return new Blob([start, ...Object.values(tensors).map(({ values }) => values as Float32Array<ArrayBuffer>)]);
}
