// Where one walk has been and what it saw there, so that both can be cut back when the walk is.

const MOST_PLACES = 4000;
const SHORT = 0.05; // a step that is not worth a place of its own
const VIEW_EVERY = 4; // pictures
const MOST_VIEWS = 64;

export class Trail {
  constructor(family = Symbol()) {
    this.family = family; // walks that began in the same place and can be drawn on one map
    this.places = [{ x: 0, z: 0, length: 0, moment: 0 }];
    this.here = { ...this.places[0], heading: 0 };
    this.views = []; // {moment, blob}: a few of the last seconds
    this.shift = null; // a picture's sequence number less its moment in the walk's own time
    this.since = 0; // pictures before this number are of a time that was taken back
  }

  // the same past, which another walk goes on from
  fork() {
    const twin = new Trail(this.family);
    return Object.assign(twin, { places: [...this.places], here: this.here, views: [...this.views], latest: this.latest });
  }

  get length() {
    return this.here.length;
  }

  // pose: the upper three rows of a camera-to-world matrix, OpenCV axes; says whether the picture counts
  add({ sequence, pose }, blob) {
    if (sequence < this.since) return false;
    this.shift ??= sequence - (this.latest ? this.here.moment + 1 : 0);
    const moment = sequence - this.shift;
    const [x, z, last] = [pose[3], pose[11], this.places.at(-1)];
    const length = this.here.length + Math.hypot(x - this.here.x, z - this.here.z);
    this.here = { x, z, length, moment, heading: Math.atan2(pose[2], pose[10]) };
    if (Math.hypot(x - last.x, z - last.z) > SHORT) this.places.push(this.here);
    if (this.places.length > MOST_PLACES) this.places = this.places.filter((_, i) => i % 2 === 0);
    this.latest = blob;
    if (moment % VIEW_EVERY === 0) this.views = [...this.views.slice(1 - MOST_VIEWS), { moment, blob }];
    return true;
  }

  // from picture number `sequence` on it is so many pictures earlier; what was seen then is the latest again
  rewind(sequence, pictures) {
    this.shift = (this.shift ?? 0) + pictures;
    this.since = sequence;
    const moment = sequence - this.shift;
    const before = (all) => all.filter((one) => one.moment < moment);
    this.places = before(this.places).length ? before(this.places) : this.places.slice(0, 1);
    this.views = before(this.views).length ? before(this.views) : this.views.slice(0, 1);
    this.here = { heading: 0, ...this.places.at(-1) };
    this.latest = this.views.at(-1)?.blob ?? this.latest;
  }
}
