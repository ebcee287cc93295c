// Keys and touch buttons that name the actions a person holds.

// [action, KeyboardEvent.code, cap, what it does, pad, column, row]; codes are places on the keyboard, not letters
export const KEYS = [
  ["roll_ccw", "KeyQ", "Q", "roll left", "move", 1, 1],
  ["dolly_in", "KeyW", "W", "forward", "move", 2, 1],
  ["roll_cw", "KeyE", "E", "roll right", "move", 3, 1],
  ["truck_left", "KeyA", "A", "left", "move", 1, 2],
  ["dolly_out", "KeyS", "S", "back", "move", 2, 2],
  ["truck_right", "KeyD", "D", "right", "move", 3, 2],
  ["pedestal_up", "KeyR", "R", "rise", "move", 4, 1],
  ["pedestal_down", "KeyF", "F", "sink", "move", 4, 2],
  ["tilt_up", "ArrowUp", "↑", "look up", "look", 2, 1],
  ["pan_left", "ArrowLeft", "←", "turn left", "look", 1, 2],
  ["tilt_down", "ArrowDown", "↓", "look down", "look", 2, 2],
  ["pan_right", "ArrowRight", "→", "turn right", "look", 3, 2],
];
const DOES = Object.fromEntries(KEYS.map(([action, , , does]) => [action, does]));

export class Keys {
  // `changed(actions)` hears the held actions whenever they change
  constructor(pads, changed) {
    this.changed = changed;
    this.held = new Map(); // action -> the set of what holds it: "key" or a pointer's id
    this.trained = new Set();
    this.buttons = {};
    this.codes = {};
    for (const [action, code, cap, does, pad, column, row] of KEYS) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "cap";
      button.style.gridArea = `${row} / ${column}`;
      button.append(Object.assign(document.createElement("b"), { textContent: cap }));
      button.append(Object.assign(document.createElement("small"), { textContent: does }));
      button.setAttribute("aria-label", `${does}, key ${cap}`);
      button.setAttribute("aria-pressed", "false");
      pads[pad].append(button);
      this.buttons[action] = button;
      this.codes[code] = action;
      this.listen(button, action);
    }
    addEventListener("keydown", (event) => this.key(event, true));
    addEventListener("keyup", (event) => this.key(event, false));
    addEventListener("blur", () => this.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.release());
  }

  listen(button, action) {
    button.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      button.setPointerCapture(event.pointerId);
      this.hold(action, event.pointerId, true);
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      button.addEventListener(name, (event) => this.hold(action, event.pointerId, false));
    }
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    for (const [name, down] of [["keydown", true], ["keyup", false], ["blur", false]]) {
      button.addEventListener(name, (event) => {
        if (name !== "blur" && event.code !== "Space" && event.code !== "Enter") return;
        if (name !== "blur") event.preventDefault();
        this.hold(action, "button", down);
      });
    }
  }

  train(actions) {
    this.trained = new Set(actions);
    for (const [action, button] of Object.entries(this.buttons)) {
      button.disabled = !this.trained.has(action);
      button.title = button.disabled ? `this world was not trained on "${DOES[action]}"` : "";
    }
  }

  key(event, down) {
    const action = this.codes[event.code];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    if (down && (typing(event.target) || document.querySelector("dialog[open]"))) return;
    if (!typing(event.target)) event.preventDefault();
    if (!event.repeat) this.hold(action, "key", down);
  }

  hold(action, holder, down) {
    if (down && !this.trained.has(action)) return;
    const before = this.actions().join();
    const holders = this.held.get(action) ?? new Set();
    down ? holders.add(holder) : holders.delete(holder);
    this.held.set(action, holders);
    this.tell(before);
  }

  release() {
    const before = this.actions().join();
    this.held.clear();
    this.tell(before);
  }

  tell(before) {
    const actions = this.actions();
    if (actions.join() === before) return;
    for (const [action, button] of Object.entries(this.buttons)) {
      button.classList.toggle("down", actions.includes(action));
      button.setAttribute("aria-pressed", String(actions.includes(action)));
    }
    this.changed(actions);
  }

  actions() {
    return KEYS.map(([action]) => action).filter((action) => this.held.get(action)?.size);
  }

  // the actions that the painted picture shows, by its receipt
  show(actions) {
    for (const [action, button] of Object.entries(this.buttons)) button.classList.toggle("shown", actions.includes(action));
  }
}

export function inWords(actions) {
  return actions.map((action) => DOES[action]).join(" + ") || "standing still";
}

// whether keys belong to the field that has the focus
function typing(target) {
  return target instanceof HTMLElement && (target.matches("input, textarea, select") || target.isContentEditable);
}
