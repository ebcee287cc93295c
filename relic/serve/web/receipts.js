// Every action that was sent, until a picture's receipt names it: what still waits, and how long the last ones took.

const MOST_LINES = 3;

export class Receipts {
  constructor(list) {
    this.list = list;
    this.restart();
  }

  restart() {
    this.waiting = new Map(); // seq -> {names, when, line}
    this.running = false; // a picture has come, so that an answer's time is not that of opening the world
    this.list.replaceChildren();
  }

  // what was sent before the connection was lost may never be answered
  lose() {
    this.running = false;
    for (const { line } of this.waiting.values()) if (line.className === "waiting") line.remove();
    this.waiting.clear();
  }

  // `words` that are those of the newest line (a drag, the slider) are no new line
  sent(seq, names, words) {
    let line = this.list.firstElementChild;
    if (line?.dataset.words !== words) {
      line = document.createElement("li");
      line.className = "waiting";
      line.dataset.words = words;
      line.append(Object.assign(document.createElement("span"), { textContent: words }), document.createElement("b"));
      line.lastElementChild.textContent = "sent …";
      this.list.prepend(line);
      while (this.list.children.length > MOST_LINES) this.list.lastElementChild.remove();
    }
    this.waiting.set(seq, { names, when: this.running ? performance.now() : null, line });
  }

  // a picture with this receipt is painted: {names, ms} of the action it shows, ms only the first time and if it is known
  seen(receipt) {
    this.running = true;
    const now = performance.now();
    let found = null;
    for (const [seq, action] of this.waiting) {
      if (seq > receipt) break;
      const ms = action.when === null || action.done ? null : now - action.when;
      if (action.line.className === "waiting") {
        action.line.className = "seen";
        action.line.lastElementChild.textContent = ms === null ? "seen" : `seen after ${Math.round(ms)} ms`;
      }
      if (seq === receipt) found = { names: action.names, ms };
      action.done = true;
      if (seq < receipt) this.waiting.delete(seq);
    }
    return found;
  }
}
