/** The element of an id, of the kind that it must be. */
export function byId<Kind extends HTMLElement>(id: string, kind: new () => Kind): Kind {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`#${id} is no ${kind.name}`);
  return found;
}

/** A new element with a class and a text. */
export function make<Tag extends keyof HTMLElementTagNameMap>(tag: Tag, name = "", text = ""): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
}

/** Seconds as people say them. */
export function duration(seconds: number): string {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 90) return `${whole} s`;
  return whole < 5400 ? `${Math.round(whole / 60)} min` : `${(whole / 3600).toFixed(1)} h`;
}

/** A figure with so many digits behind the point; infinite and undefined ones as a dash. */
export function figure(value: number | null, digits: number): string {
  return value === null ? "–" : value.toFixed(digits);
}
