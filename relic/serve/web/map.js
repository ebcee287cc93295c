// The track from above: x to the right, the first view's forward up, the camera as a wedge. Units are the world's mean steps.

const VIEW = Math.PI / 4; // half the wedge's angle
const EASE_MS = 130; // the view has come some two thirds of its way
const FRESH = 240; // the newest places are bright, what lies behind fades

export class Track {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.drawn = 0; // when
    this.show(null, []);
    new ResizeObserver(() => this.fit()).observe(canvas);
    requestAnimationFrame((now) => this.draw(now));
  }

  // `trail` is the walk that is seen; of the `others`, those that began with it are drawn behind it
  show(trail, others) {
    this.trail = trail;
    this.others = others.filter((other) => other !== trail && other.family === trail?.family);
    this.view = { x: 0, y: 0, scale: 0 };
    this.dirty = true;
  }

  fit() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.canvas.width = this.canvas.clientWidth * ratio;
    this.canvas.height = this.canvas.clientHeight * ratio;
    this.dirty = true;
  }

  // the middle and scale that hold the whole track, approached smoothly; `ms` have passed, and false is: it is there
  aim(ms) {
    let [left, right, low, high] = [0, 0, 0, 0];
    for (const { x, z } of [this.trail, ...this.others].flatMap((trail) => (trail ? [...trail.places, trail.here] : []))) {
      [left, right, low, high] = [Math.min(left, x), Math.max(right, x), Math.min(low, z), Math.max(high, z)];
    }
    const { width, height } = this.canvas;
    const margin = Math.min(84 * (width / (this.canvas.clientWidth || width)), 0.65 * height);
    const scale = Math.min((width - margin) / Math.max(right - left, 12), (height - margin) / Math.max(high - low, 12));
    const goal = { x: (left + right) / 2, y: (low + high) / 2, scale };
    const ease = this.view.scale ? 1 - Math.exp(-ms / EASE_MS) : 1;
    let away = 0;
    for (const name of ["x", "y", "scale"]) {
      const gap = goal[name] - this.view[name];
      this.view[name] += gap * ease;
      away += Math.abs(gap) / (name === "scale" ? scale : 20);
    }
    return away > 8e-3;
  }

  draw(now) {
    requestAnimationFrame((next) => this.draw(next));
    const ms = now - this.drawn;
    this.drawn = now;
    if (!this.dirty || !this.canvas.clientWidth) return; // a low window shows no track
    this.dirty = this.aim(ms);
    const { context: c, canvas, view } = this;
    const ratio = canvas.width / canvas.clientWidth;
    const at = ({ x, z }) => [canvas.width / 2 + (x - view.x) * view.scale, canvas.height / 2 - (z - view.y) * view.scale];
    c.clearRect(0, 0, canvas.width, canvas.height);
    this.grid(at, ratio);

    c.lineWidth = 2 * ratio;
    c.lineCap = c.lineJoin = "round";
    for (const other of this.others) {
      c.strokeStyle = "rgba(159, 198, 214, 0.3)";
      this.line([...other.places, other.here].map(at));
    }
    const here = this.trail?.here ?? { x: 0, z: 0, heading: 0 };
    const points = [...(this.trail?.places ?? []), here].map(at);
    for (let start = 0; start < points.length - 1; start += 12) {
      const age = Math.max(0, 1 - (points.length - start) / FRESH);
      c.strokeStyle = `rgba(233, 184, 114, ${0.22 + 0.7 * age})`;
      this.line(points.slice(start, start + 13));
    }
    const [startX, startY] = at({ x: 0, z: 0 });
    c.strokeStyle = "rgba(236, 233, 226, 0.55)";
    c.lineWidth = 1.5 * ratio;
    c.beginPath();
    c.arc(startX, startY, 4 * ratio, 0, 7);
    c.stroke();
    this.camera(at(here), here.heading, ratio);
  }

  line(points) {
    this.context.beginPath();
    points.forEach(([x, y], i) => (i ? this.context.lineTo(x, y) : this.context.moveTo(x, y)));
    this.context.stroke();
  }

  camera([x, y], heading, ratio) {
    const c = this.context;
    const wedge = c.createRadialGradient(x, y, 0, x, y, 34 * ratio);
    wedge.addColorStop(0, "rgba(159, 198, 214, 0.55)");
    wedge.addColorStop(1, "rgba(159, 198, 214, 0)");
    c.fillStyle = wedge;
    c.beginPath();
    c.moveTo(x, y);
    c.arc(x, y, 34 * ratio, heading - Math.PI / 2 - VIEW, heading - Math.PI / 2 + VIEW);
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
        const [px, py] = at({ x, z });
        c.fillRect(px - ratio / 2, py - ratio / 2, 1.5 * ratio, 1.5 * ratio);
      }
    }
    const bar = cell * view.scale;
    const [left, base] = [canvas.width - bar - 12 * ratio, canvas.height - 12 * ratio];
    c.fillRect(left, base, bar, 1.5 * ratio);
    c.font = `${10.5 * ratio}px system-ui, sans-serif`;
    c.textAlign = "right";
    c.fillStyle = "rgba(236, 233, 226, 0.7)";
    c.fillText(`${cell} steps`, canvas.width - 12 * ratio, base - 6 * ratio);
  }
}
