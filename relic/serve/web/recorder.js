// Records what is seen: every picture as it is painted, at the world's shape, into a file of the browser's own making.

const KINDS = ["video/mp4;codecs=avc1.42E01E", "video/mp4;codecs=avc1", "video/mp4", "video/webm;codecs=vp9", "video/webm"];
const LEAST_HEIGHT = 480; // a small world is enlarged, as the page shows it
const BITS = 0.16; // of the file for a pixel
const TICK_MS = 250;
const LONGEST_S = 600; // what is recorded waits in the browser's memory

export class Recorder {
  // `on` hears changed(seconds), null when it is over, and done(blob, ending)
  constructor(picture, on) {
    this.picture = picture;
    this.on = on;
    this.kind = "MediaRecorder" in window ? KINDS.find((kind) => MediaRecorder.isTypeSupported(kind)) : undefined;
    this.recorder = null;
  }

  get running() {
    return this.recorder !== null;
  }

  get ending() {
    return this.kind.startsWith("video/mp4") ? "mp4" : "webm";
  }

  start({ width, height, fps }) {
    const scale = Math.max(1, Math.round(LEAST_HEIGHT / height));
    const even = (pixels) => 2 * Math.round((pixels * scale) / 2); // codecs take pixels by twos
    const canvas = Object.assign(document.createElement("canvas"), { width: even(width), height: even(height) });
    const context = canvas.getContext("2d", { alpha: false });
    context.imageSmoothingQuality = "high";
    const stream = canvas.captureStream(0);
    const [track] = stream.getVideoTracks();
    const source = track.requestFrame ? track : stream; // Firefox takes a frame by its stream
    const bits = Math.round(Math.max(1e6, BITS * canvas.width * canvas.height * fps));
    const recorder = (this.recorder = new MediaRecorder(stream, { mimeType: this.kind, videoBitsPerSecond: bits }));
    const parts = [];
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.onstop = () => {
      track.stop();
      this.on.done(new Blob(parts, { type: recorder.mimeType }), this.ending);
    };
    let drawn = 0;
    this.picture.painted = (bitmap) => {
      context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
      source.requestFrame();
      drawn = performance.now();
    };
    recorder.start(1000);
    this.picture.painted(this.picture.bitmap);
    const began = performance.now();
    this.on.changed(0);
    this.timer = setInterval(() => {
      const now = performance.now();
      if (now - drawn > TICK_MS) this.picture.painted(this.picture.bitmap); // a rest lasts as long in the file
      if (now - began > 1000 * LONGEST_S) this.stop();
      else this.on.changed(Math.floor((now - began) / 1000));
    }, TICK_MS);
  }

  stop() {
    clearInterval(this.timer);
    this.picture.painted = null;
    this.recorder.stop();
    this.recorder = null;
    this.on.changed(null);
  }
}

// hands the file over as a download, and says so
export function offer(blob, ending) {
  const name = `relic-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.${ending}`;
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  return `recorded ${(blob.size / 1e6).toFixed(1)} MB of ${ending.toUpperCase()}: ${name}`;
}
