// Dragging the picture looks around: it follows the pointer, so the camera turns the other way, as fast as the drag.

const TICK_MS = 80; // how often the speed of a drag is told
const SLACK = 5; // pixels that are a click yet
const GAIN = 1.6; // usual turns for one width of the picture a second
const STEP = 0.25; // of the factor on the usual turn: what differs less is the same

export class Drag {
  // `allowed()` says whether one may look around now, `most()` the largest factor; `changed()` hears that `turns` changed
  constructor(stage, { allowed, most, changed }) {
    Object.assign(this, { stage, allowed, most, changed });
    this.turns = {}; // action -> factor on its usual size
    this.pointer = null;
    stage.addEventListener("pointerdown", (event) => this.begin(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    const ends = (event) => event.pointerId === this.pointer && this.end();
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, ends);
    // a finger that the stage takes over is lost to the picture in it, which is no end
    stage.addEventListener("lostpointercapture", (event) => event.target === stage && ends(event));
  }

  begin(event) {
    if (this.pointer !== null || event.button !== 0 || !this.allowed() || event.target.closest("button, form")) return;
    this.pointer = event.pointerId;
    this.from = this.at = [event.clientX, event.clientY];
    this.rate = [0, 0];
    this.moving = false;
  }

  move(event) {
    if (event.pointerId !== this.pointer) return;
    this.at = [event.clientX, event.clientY];
    if (this.moving || Math.hypot(this.at[0] - this.from[0], this.at[1] - this.from[1]) < SLACK) return;
    this.moving = true;
    this.stage.setPointerCapture(this.pointer);
    this.stage.classList.add("dragging");
    this.timer = setInterval(() => this.tick(), TICK_MS);
    this.tick();
  }

  tick() {
    const width = this.stage.clientWidth;
    this.rate = this.rate.map((rate, i) => {
      const fresh = (this.at[i] - this.from[i]) / width / (TICK_MS / 1000);
      return rate * fresh > 0 ? (rate + fresh) / 2 : fresh;
    });
    this.from = this.at;
    const [right, down] = this.rate.map((rate) => Math.round((GAIN * rate) / STEP) * STEP);
    const turns = {};
    if (right) turns[right > 0 ? "pan_left" : "pan_right"] = Math.min(Math.abs(right), this.most());
    if (down) turns[down > 0 ? "tilt_up" : "tilt_down"] = Math.min(Math.abs(down), this.most());
    this.tell(turns);
  }

  end() {
    this.pointer = null;
    clearInterval(this.timer);
    this.stage.classList.remove("dragging");
    this.tell({});
  }

  tell(turns) {
    if (JSON.stringify(turns) === JSON.stringify(this.turns)) return;
    this.turns = turns;
    this.changed();
  }
}
