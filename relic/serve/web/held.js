// What is held at the moment, by keys and by a drag.

import { inWords } from "/web/keys.js";

export class Held {
  constructor(keys, drag) {
    this.keys = keys;
    this.drag = drag;
  }

  // [action, factor on its usual size] of the drag, where the world knows the action
  turns() {
    return Object.entries(this.drag.turns).filter(([action]) => this.keys.trained.has(action));
  }

  names() {
    return [...new Set([...this.keys.actions(), ...this.turns().map(([action]) => action)])];
  }

  words() {
    const walking = this.keys.actions().length ? [inWords(this.keys.actions())] : [];
    return [...walking, ...(this.turns().length ? ["looking around"] : [])].join(" + ") || inWords([]);
  }

  // as it is sent: names, or 13 numbers where a drag says how much; a drag has its own speed, whatever the slider's is
  row(world, speed) {
    if (!this.turns().length) return this.keys.actions();
    const numbers = world.actions.map((action) => (this.keys.actions().includes(action) ? world.trained[action] : 0));
    for (const [action, factor] of this.turns()) {
      numbers[world.actions.indexOf(action)] = Math.min((factor * world.trained[action]) / speed, world.max_magnitude);
    }
    return numbers;
  }
}
