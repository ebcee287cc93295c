// Pictures a second, latency by receipts, and the bars of the last chunks' times against real time.

const MOST_BARS = 64;
const GAP_MS = 1000; // a longer pause between two pictures (a rest, a lost connection) is no rate

export class Meters {
  constructor(shown, bars) {
    this.shown = shown; // elements fps, latency, chunk, dropped, skipped
    this.bars = bars;
    this.restart();
    setInterval(() => this.tick(), 250);
  }

  restart() {
    this.painted = []; // when
    this.latencies = [];
    this.chunks = [];
    this.budget = 0;
    this.resting = false;
    for (const element of Object.values(this.shown)) element.textContent = "–";
    this.draw();
  }

  // a picture has been painted; `ms` since the action that it is the first to show, if it is one
  paint(ms) {
    const now = performance.now();
    if (now - this.painted.at(-1) > GAP_MS) this.painted = [];
    this.painted.push(now);
    if (ms === null) return;
    this.latencies = [...this.latencies.slice(-4), ms];
    const middle = [...this.latencies].sort((a, b) => a - b)[this.latencies.length >> 1];
    this.shown.latency.textContent = Math.round(middle);
  }

  // a chunk's time against what its pictures last at the world's fps; `skipped` are those that this screen did not take
  state(message, fps, skipped) {
    this.shown.chunk.textContent = Math.round(message.chunk_ms);
    this.shown.dropped.textContent = message.dropped;
    this.shown.skipped.textContent = skipped;
    this.shown.chunk.parentElement.title = `${message.decode_ms} ms of it in the codec`;
    this.budget = (1000 * message.pictures) / fps;
    this.chunks = [...this.chunks.slice(1 - MOST_BARS), message.chunk_ms];
    this.draw();
  }

  tick() {
    const now = performance.now();
    this.painted = this.painted.filter((when) => now - when < 3000);
    const recent = this.painted;
    const span = recent.length > 1 ? (recent.at(-1) - recent[0]) / (recent.length - 1) : 0;
    this.resting = !recent.length || now - recent.at(-1) > 1200;
    this.shown.fps.textContent = this.resting || !span ? "–" : (1000 / span).toFixed(1);
  }

  draw() {
    const c = this.bars.getContext("2d");
    const { width, height } = this.bars;
    c.clearRect(0, 0, width, height);
    const most = Math.max(this.budget * 1.5, ...this.chunks);
    const step = width / MOST_BARS;
    this.chunks.forEach((ms, i) => {
      const h = Math.max(3, (ms / most) * (height - 6));
      c.fillStyle = ms <= this.budget ? "rgba(159, 198, 214, 0.6)" : "rgba(233, 184, 114, 0.75)";
      c.fillRect((MOST_BARS - this.chunks.length + i) * step + 1, height - h, step - 3, h);
    });
    const line = height - (this.budget ? this.budget / most : 2 / 3) * (height - 6);
    c.fillStyle = "rgba(236, 233, 226, 0.35)";
    for (let x = 0; x < width; x += 10) c.fillRect(x, line, 5, 1.5);
    c.fillStyle = "rgba(236, 233, 226, 0.7)";
    c.font = "21px system-ui, sans-serif";
    c.fillText("real time", 2, line - 7);
  }
}
