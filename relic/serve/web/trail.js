// Where one walk has been, picture by picture, so that it can be cut back when the walk is.

const MOST_PLACES = 4000;
const SHORT = 0.05; // a step that is not worth a place of its own

export class Trail {
  constructor(family = Symbol()) {
    this.family = family; // walks that began in the same place and can be drawn on one map
    this.places = [{ x: 0, z: 0, length: 0, moment: 0, heading: 0 }];
    this.here = this.places[0];
    this.latest = null; // the newest picture
    this.shift = null; // a picture's sequence number less its moment in the walk's own time
    this.since = 0; // pictures before this number are of a time that was taken back
  }

  // the same past, which another walk goes on from
  fork() {
    const twin = new Trail(this.family);
    return Object.assign(twin, { places: [...this.places], here: this.here, latest: this.latest });
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
    return true;
  }

  // picture number `sequence` shows again what was seen so many pictures before the newest one
  rewind(sequence, pictures) {
    const moment = Math.max(0, this.here.moment - pictures);
    this.shift = sequence - moment;
    this.since = sequence;
    this.places = this.places.filter((place) => place.moment <= moment);
    this.here = { ...this.places.at(-1), moment };
  }
}
