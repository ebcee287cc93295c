// The walks of this page: one that is seen, and those that wait as they were left, each with its last picture in a strip.

import { Stream } from "/web/stream.js";
import { Trail } from "/web/trail.js";

export class Walk {
  // `on` is a Stream's listener, each of its functions given the walk first
  constructor(session, on, trail = new Trail(), sequence = 0) {
    this.session = session;
    this.trail = trail;
    this.paused = false;
    this.points = []; // seconds back, nearest first
    const hear = Object.fromEntries(Object.entries(on).map(([name, listen]) => [name, (...said) => listen(this, ...said)]));
    this.stream = new Stream(session, hear, sequence);
  }

  get live() {
    return this.stream.live;
  }
}

export class Walks {
  // `on` hears chosen(walk) and closed(walk), both asked for in the strip
  constructor(strip, on) {
    this.strip = strip;
    this.on = on;
    this.list = [];
    this.current = null;
    this.count = 0;
  }

  add(walk) {
    this.count = this.list.length ? this.count + 1 : 1;
    const item = document.createElement("li");
    const choose = document.createElement("button");
    const close = document.createElement("button");
    walk.name = `walk ${this.count}`;
    walk.item = item;
    walk.small = Object.assign(document.createElement("canvas"), { width: 132, height: 88 });
    choose.type = close.type = "button";
    choose.className = "thumb";
    choose.append(walk.small, Object.assign(document.createElement("span"), { textContent: this.count }));
    choose.setAttribute("aria-label", `go on in ${walk.name}`);
    choose.onclick = () => this.on.chosen(walk);
    close.className = "close";
    close.textContent = "×";
    close.setAttribute("aria-label", `end ${walk.name}`);
    close.onclick = () => this.on.closed(walk);
    item.append(choose, close);
    this.strip.append(item);
    this.list.push(walk);
    this.draw();
  }

  choose(walk) {
    this.current = walk;
    this.draw();
  }

  remove(walk) {
    const index = this.list.indexOf(walk);
    if (index >= 0) this.list.splice(index, 1);
    walk.item.remove();
    if (walk === this.current) this.current = null;
    this.draw();
  }

  draw() {
    this.strip.hidden = this.list.length < (this.current ? 2 : 1);
    for (const walk of this.list) {
      walk.item.firstElementChild.setAttribute("aria-pressed", String(walk === this.current));
    }
  }

  // the current walk's small picture, from what the page shows
  snap(picture) {
    if (!this.current || !picture.bitmap) return;
    const { small } = this.current;
    const { bitmap } = picture;
    const scale = Math.max(small.width / bitmap.width, small.height / bitmap.height);
    const [w, h] = [bitmap.width * scale, bitmap.height * scale];
    small.getContext("2d").drawImage(bitmap, (small.width - w) / 2, (small.height - h) / 2, w, h);
  }
}
