/** What went wrong in a sentence for the person in front of the page, with what to do about it. */
export class UserError extends Error {}

/** Work that the person stopped. */
export class Cancelled extends Error {
  constructor() {
    super("Cancelled.");
  }
}

/** Whatever was thrown, as a sentence. */
export function sentence(error: unknown): string {
  if (error instanceof UserError || error instanceof Cancelled) return error.message;
  const text = error instanceof Error ? error.message : String(error);
  return `Something went wrong that this page did not expect (${text}). Reload it and try again.`;
}
