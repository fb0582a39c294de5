import uPlot from "uplot";
import { byId, figure, make } from "./dom";
import type { FrameFigures } from "./types";

const KINDS = [
  { key: "psnr", label: "PSNR", unit: "dB", digits: 2 },
  { key: "ssim", label: "SSIM", unit: "", digits: 4 },
  { key: "flicker", label: "Flicker", unit: "levels", digits: 2 },
] as const;
const HEIGHT = 92;

/** Three charts over one axis of frames. A click, a drag or a key moves to a frame. */
export class Charts {
  onSeek: (number: number) => void = () => undefined;
  /** The frame that was asked for last; keys go on from it, though it may not be shown yet. */
  wanted: () => number = () => this.current;

  private readonly box = byId("charts", HTMLDivElement);
  private plots: uPlot[] = [];
  private values: HTMLElement[] = [];
  private rows: FrameFigures[] = [];
  private current = 0;

  constructor() {
    this.box.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.resize()).observe(this.box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show(this.rows));
  }

  /** Show the figures of other videos. One frame makes no chart. */
  show(rows: FrameFigures[]): void {
    for (const plot of this.plots) plot.destroy();
    this.rows = rows;
    this.plots = [];
    this.values = [];
    this.box.replaceChildren();
    byId("charts-section", HTMLElement).hidden = rows.length < 2;
    if (rows.length < 2) return;
    this.box.setAttribute("aria-valuemax", `${rows.length}`);
    for (const kind of KINDS) this.add(kind);
    this.mark(Math.min(this.current, rows.length - 1));
  }

  /** Mark the frame that is shown. */
  mark(number: number): void {
    this.current = number;
    const row = this.rows[number];
    if (!row) return;
    const texts = KINDS.map(({ key, unit, digits }) => `${figure(row[key], digits)} ${row[key] === null ? "" : unit}`.trim());
    texts.forEach((text, i) => this.values[i] && (this.values[i].textContent = text));
    const spoken = KINDS.map(({ label }, i) => `${label} ${texts[i].replace("–", "none")}`).join(", ");
    this.box.setAttribute("aria-valuenow", `${number + 1}`);
    this.box.setAttribute("aria-valuetext", `Frame ${number + 1} of ${this.rows.length}: ${spoken}`);
    for (const plot of this.plots) plot.redraw(false);
  }

  private add({ key, label, digits }: (typeof KINDS)[number]): void {
    const row = make("div", "chart");
    const head = make("div", "chart-head");
    const value = make("span", "chart-value");
    head.append(make("span", "chart-label", label), value);
    const body = make("div", "chart-body");
    row.append(head, body);
    this.box.append(row);
    this.values.push(value);
    const series = this.rows.map((each) => each[key]);
    const data: uPlot.AlignedData = [this.rows.map((_, i) => i), series];
    const plot = new uPlot(this.options(series, digits), data, body);
    this.plots.push(plot);
    this.follow(plot);
  }

  private options(series: (number | null)[], digits: number): uPlot.Options {
    const style = getComputedStyle(document.documentElement);
    const [ink, faint, accent] = ["--muted", "--line", "--accent"].map((name) => style.getPropertyValue(name));
    return {
      width: Math.max(this.box.clientWidth, 120),
      height: HEIGHT,
      legend: { show: false },
      padding: [8, 8, 4, 0],
      cursor: { sync: { key: "frames" }, y: false, drag: { x: false, y: false }, points: { size: 6, fill: accent } },
      scales: { x: { time: false }, y: { range: (_, low, high) => padded(low, high, 10 ** -digits) } },
      axes: [
        { show: false },
        {
          stroke: ink,
          size: 52,
          space: 22,
          font: "12px system-ui",
          grid: { stroke: faint, width: 1 },
          ticks: { show: false },
          values: (_, splits) => labels(splits, digits),
        },
      ],
      series: [{}, { stroke: accent, width: 1.5, points: { show: series.length <= 2 } }],
      hooks: { draw: [(plot) => this.drawMark(plot, style.getPropertyValue("--ink"))] },
    };
  }

  private drawMark(plot: uPlot, colour: string): void {
    const x = Math.round(plot.valToPos(this.current, "x", true));
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.fillStyle = colour;
    ctx.fillRect(x, bbox.top, Math.max(1, Math.round(devicePixelRatio)), bbox.height);
    ctx.restore();
  }

  /** Move with the pointer while it is down. */
  private follow(plot: uPlot): void {
    const seek = (event: PointerEvent) => {
      const { left } = plot.over.getBoundingClientRect();
      this.onSeek(plot.posToIdx(event.clientX - left));
    };
    plot.over.addEventListener("pointerdown", (event) => {
      plot.over.setPointerCapture(event.pointerId);
      seek(event);
    });
    plot.over.addEventListener("pointermove", (event) => event.buttons && seek(event));
  }

  private key(event: KeyboardEvent): void {
    const steps: Record<string, number> = {
      ArrowLeft: -1,
      ArrowDown: -1,
      ArrowRight: 1,
      ArrowUp: 1,
      PageDown: -10,
      PageUp: 10,
      Home: -Infinity,
      End: Infinity,
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.onSeek(Math.max(0, Math.min(this.wanted() + steps[event.key], this.rows.length - 1)));
  }

  private resize(): void {
    for (const plot of this.plots) plot.setSize({ width: Math.max(this.box.clientWidth, 120), height: HEIGHT });
  }
}

/** A range with room around the values, also where all are one. */
function padded(low: number | null, high: number | null, least: number): [number, number] {
  if (low === null || high === null) return [0, 1];
  const room = Math.max((high - low) * 0.15, least);
  return [low - room, high + room];
}

/** Ticks with as many digits as tell them apart. */
function labels(splits: number[], most: number): string[] {
  if (splits.length < 2) return splits.map((value) => `${Number(value.toFixed(most))}`);
  const digits = Math.ceil(-Math.log10(splits[1] - splits[0]) - 1e-9);
  return splits.map((value) => value.toFixed(Math.max(0, Math.min(most, digits))));
}
