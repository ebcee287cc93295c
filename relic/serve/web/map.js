// The track from above: x to the right, the first view's forward up, the camera as a wedge. Units are the world's mean steps.

const VIEW = Math.PI / 4; // half the wedge's angle
const MOST = 4000; // places kept

export class Track {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.restart();
    new ResizeObserver(() => this.fit()).observe(canvas);
  }

  restart() {
    this.places = [[0, 0]];
    this.heading = 0;
    this.height = 0;
    this.length = 0;
    this.view = { x: 0, y: 0, scale: 0 };
    this.dirty = true;
    this.loop ??= requestAnimationFrame(() => this.draw());
  }

  fit() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.canvas.width = this.canvas.clientWidth * ratio;
    this.canvas.height = this.canvas.clientHeight * ratio;
    this.dirty = true;
  }

  // pose: the upper three rows of a camera-to-world matrix, OpenCV axes
  add(pose) {
    const [x, y, z] = [pose[3], pose[7], pose[11]];
    const [lastX, lastZ] = this.places.at(-1);
    const step = Math.hypot(x - lastX, z - lastZ);
    this.length += step;
    if (step > 0.05) this.places.push([x, z]);
    if (this.places.length > MOST) this.places = this.places.filter((_, i) => i % 2 === 0);
    this.last = [x, z];
    this.heading = Math.atan2(pose[2], pose[10]);
    this.height = -y;
    this.dirty = true;
  }

  // the middle and scale that hold the whole track, approached smoothly
  aim() {
    const points = [...this.places, this.last ?? [0, 0]];
    const [xs, zs] = [points.map((p) => p[0]), points.map((p) => p[1])];
    const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...zs), Math.max(...zs)];
    const { width, height } = this.canvas;
    const margin = 84 * (width / (this.canvas.clientWidth || width));
    const scale = Math.min((width - margin) / Math.max(right - left, 12), (height - margin) / Math.max(high - low, 12));
    const goal = { x: (left + right) / 2, y: (low + high) / 2, scale };
    const ease = this.view.scale ? 0.12 : 1;
    let moved = 0;
    for (const name of ["x", "y", "scale"]) {
      const change = (goal[name] - this.view[name]) * ease;
      this.view[name] += change;
      moved += Math.abs(change) / (name === "scale" ? scale : 20);
    }
    return moved > 1e-3;
  }

  draw() {
    this.loop = requestAnimationFrame(() => this.draw());
    if (!this.dirty || !this.canvas.width) return;
    this.dirty = this.aim();
    const { context: c, canvas, view } = this;
    const ratio = canvas.width / canvas.clientWidth;
    const at = ([x, z]) => [canvas.width / 2 + (x - view.x) * view.scale, canvas.height / 2 - (z - view.y) * view.scale];
    c.clearRect(0, 0, canvas.width, canvas.height);
    this.grid(at, ratio);

    c.lineWidth = 2 * ratio;
    c.lineCap = c.lineJoin = "round";
    const points = [...this.places, this.last ?? [0, 0]].map(at);
    const fresh = 240; // the newest places are bright, what lies behind fades
    for (let start = 0; start < points.length - 1; start += 12) {
      const age = Math.max(0, 1 - (points.length - start) / fresh);
      c.strokeStyle = `rgba(233, 184, 114, ${0.22 + 0.7 * age})`;
      c.beginPath();
      points.slice(start, start + 13).forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
      c.stroke();
    }
    const [startX, startY] = at([0, 0]);
    c.strokeStyle = "rgba(236, 233, 226, 0.55)";
    c.lineWidth = 1.5 * ratio;
    c.beginPath();
    c.arc(startX, startY, 4 * ratio, 0, 7);
    c.stroke();

    const [x, y] = at(this.last ?? [0, 0]);
    const wedge = c.createRadialGradient(x, y, 0, x, y, 34 * ratio);
    wedge.addColorStop(0, "rgba(159, 198, 214, 0.55)");
    wedge.addColorStop(1, "rgba(159, 198, 214, 0)");
    c.fillStyle = wedge;
    c.beginPath();
    c.moveTo(x, y);
    c.arc(x, y, 34 * ratio, this.heading - Math.PI / 2 - VIEW, this.heading - Math.PI / 2 + VIEW);
    c.fill();
    c.fillStyle = "#ece9e2";
    c.beginPath();
    c.arc(x, y, 3.5 * ratio, 0, 7);
    c.fill();
  }

  grid(at, ratio) {
    const { context: c, canvas, view } = this;
    const wanted = (36 * ratio) / view.scale;
    const power = 10 ** Math.floor(Math.log10(wanted));
    const cell = power * ([1, 2, 5, 10].find((n) => n * power >= wanted) ?? 10);
    const [halfX, halfZ] = [canvas.width / 2 / view.scale, canvas.height / 2 / view.scale];
    c.fillStyle = "rgba(236, 233, 226, 0.13)";
    for (let x = Math.ceil((view.x - halfX) / cell) * cell; x < view.x + halfX; x += cell) {
      for (let z = Math.ceil((view.y - halfZ) / cell) * cell; z < view.y + halfZ; z += cell) {
        const [px, py] = at([x, z]);
        c.fillRect(px - ratio / 2, py - ratio / 2, 1.5 * ratio, 1.5 * ratio);
      }
    }
    const bar = cell * view.scale;
    const [left, base] = [canvas.width - bar - 12 * ratio, canvas.height - 12 * ratio];
    c.fillRect(left, base, bar, 1.5 * ratio);
    c.font = `${10.5 * ratio}px system-ui, sans-serif`;
    c.textAlign = "right";
    c.fillStyle = "rgba(236, 233, 226, 0.45)";
    c.fillText(`${cell} steps`, canvas.width - 12 * ratio, base - 6 * ratio);
  }
}
