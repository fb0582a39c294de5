import { byId } from "./dom";
import { UserError } from "./errors";
import type { Settings } from "./types";

const field = (id: string) => byId(id, HTMLInputElement);

/** What the fields say; a sentence for what they must not say. */
export function readSettings(): Settings {
  const clip = field("clip").value.trim().toLowerCase();
  const clipFrames = clip === "all" ? null : whole("clip", "Frames in a clip", 1, "a whole number from 1 up, or all");
  const overlap = whole("overlap", "Overlap of clips", 0, "a whole number from 0 up") ?? 0;
  if (clip === "") throw invalid("clip", "Frames in a clip: write a whole number from 1 up, or all.");
  if (clipFrames !== null && overlap >= clipFrames) {
    throw invalid("overlap", `Overlap of clips: clips of ${clipFrames} can share 0 to ${clipFrames - 1} frames.`);
  }
  return {
    clipFrames,
    overlap,
    frames: whole("frames", "Most frames", 1, "a whole number from 1 up, or nothing for all"),
    width: whole("width", "Width", 1, "a whole number of pixels, or nothing to leave it as it is"),
    memoryLimit: field("memory").value.trim(),
  };
}

/** Clear the marks of fields that were wrong. */
export function clearInvalid(): void {
  for (const input of document.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
}

function whole(id: string, label: string, least: number, allowed: string): number | null {
  const text = field(id).value.trim();
  if (text === "") return null;
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < least || value > 1e6) throw invalid(id, `${label}: write ${allowed}.`);
  return value;
}

function invalid(id: string, sentence: string): UserError {
  field(id).setAttribute("aria-invalid", "true");
  return new UserError(sentence);
}
