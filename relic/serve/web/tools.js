// The row under the picture: pause, the moments one can go back to, branch and record.

const SPAN_S = 9; // of the line that ends now
const LEAST_S = 1; // a step back that is noticed

export class Tools {
  // `elements` are the buttons pause, rewind, branch, record and the list points; `on` hears a click on each, rewind(seconds)
  constructor(elements, on) {
    this.elements = elements;
    this.on = on;
    this.walk = null;
    this.branching = false; // a branch is asked for
    this.running = false; // a recording, which may outlast its walk
    elements.pause.onclick = on.pause;
    elements.rewind.onclick = () => on.rewind(this.usual());
    elements.branch.onclick = on.branch;
    elements.record.onclick = on.record;
  }

  // what can be done with this walk; null: nothing
  show(walk) {
    this.walk = walk;
    const { pause, rewind, branch, record, points } = this.elements;
    const live = Boolean(walk?.live);
    pause.disabled = !live;
    branch.disabled = !live || this.branching;
    record.disabled = !live && !this.running;
    pause.lastElementChild.textContent = live && walk.paused ? "Go on" : "Pause";
    pause.setAttribute("aria-label", live && walk.paused ? "go on" : "pause");
    pause.classList.toggle("paused", live && walk.paused);
    const seconds = live ? walk.points : [];
    rewind.disabled = !seconds.length;
    while (points.children.length > seconds.length) points.lastElementChild.remove();
    while (points.children.length < seconds.length) points.append(this.tick(points.children.length));
    const span = Math.max(SPAN_S, ...seconds);
    seconds.forEach((back, i) => {
      points.children[i].style.right = `${(100 * back) / span}%`;
      points.children[i].firstElementChild.setAttribute("aria-label", `${back.toFixed(1)} seconds back`);
      points.children[i].firstElementChild.title = `${back.toFixed(1)} s back`;
    });
  }

  // the ticks stay and move, so that a click never meets one that is being replaced
  tick(place) {
    const [item, button] = [document.createElement("li"), document.createElement("button")];
    button.type = "button";
    button.onclick = () => this.on.rewind(this.walk.points[place]);
    item.append(button);
    return item;
  }

  // seconds back that are meant where nothing is said: pressed again, it goes further
  usual() {
    const seconds = this.walk?.points ?? [];
    return seconds.find((back) => back >= LEAST_S) ?? seconds.at(-1);
  }

  recording(seconds, ending) {
    const { record } = this.elements;
    const [minutes, rest] = [Math.floor(seconds / 60), String(seconds % 60).padStart(2, "0")];
    this.running = seconds !== null;
    record.classList.toggle("running", this.running);
    record.setAttribute("aria-label", this.running ? "stop recording" : `record to ${ending}`);
    record.lastElementChild.textContent = this.running ? `${minutes}:${rest}` : "Record";
    this.show(this.walk);
  }
}
