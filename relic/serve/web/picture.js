// The picture, upscaled with a smooth cubic filter (in Firefox a linear one), and its glow on the page behind it.

const GLOW_MS = 400; // the glow is slow and calm, and a page is costly to repaint

export class Picture {
  constructor(canvas, glow) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.glow = glow.getContext("2d");
    this.drop = Object.assign(document.createElement("canvas"), { width: 6, height: 4 }).getContext("2d");
    this.bitmap = null;
    this.painted = null; // hears every bitmap that is painted, as long as somebody records
    this.glowed = 0;
    this.restart();
    new ResizeObserver(() => this.fit()).observe(canvas.parentElement);
  }

  fit() {
    const { clientWidth, clientHeight } = this.canvas.parentElement;
    const ratio = Math.min(devicePixelRatio || 1, 2);
    this.canvas.width = Math.max(1, Math.round(clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(clientHeight * ratio));
    this.paint();
  }

  restart(skipped = 0) {
    this.walk = Symbol(); // what an earlier walk still decodes is not painted
    this.newest = -1; // sequence of the newest picture that was painted
    this.next = null; // {bitmap, header, painted}, decoded and waiting for the screen's next refresh
    this.skipped = skipped; // pictures that a slow screen did not take
  }

  // Decodes a picture and paints it at the screen's next refresh, then calls painted(header). Where the screen is slower
  // than the pictures, only the newest is painted: what is old is not worth its latency.
  async show(blob, header, painted) {
    const walk = this.walk;
    const bitmap = await createImageBitmap(blob);
    if (walk !== this.walk) return bitmap.close();
    if (header.sequence <= this.newest || header.sequence < (this.next?.header.sequence ?? 0)) return this.skip(bitmap);
    if (this.next) this.skip(this.next.bitmap);
    else requestAnimationFrame(() => this.refresh());
    this.next = { bitmap, header, painted };
  }

  skip(bitmap) {
    bitmap.close();
    this.skipped += 1;
  }

  refresh() {
    if (!this.next) return;
    const { bitmap, header, painted } = this.next;
    this.next = null;
    this.newest = header.sequence;
    this.replace(bitmap);
    painted(header);
  }

  // a picture that stays until the walk's own come
  async still(blob) {
    const walk = this.walk;
    const bitmap = await createImageBitmap(blob);
    if (walk === this.walk && this.newest < 0) this.replace(bitmap);
    else bitmap.close();
  }

  replace(bitmap) {
    this.bitmap?.close();
    this.bitmap = bitmap;
    this.paint();
    this.painted?.(bitmap);
    if (performance.now() - this.glowed > GLOW_MS) this.shine();
  }

  paint() {
    if (!this.bitmap) return;
    const { width, height } = this.canvas;
    const scale = Math.max(width / this.bitmap.width, height / this.bitmap.height);
    const [w, h] = [this.bitmap.width * scale, this.bitmap.height * scale];
    this.context.imageSmoothingEnabled = true;
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(this.bitmap, (width - w) / 2, (height - h) / 2, w, h);
  }

  // a few pixels of the picture, eased over time and spread over the page
  shine() {
    const { glow, drop } = this;
    const { width, height } = glow.canvas;
    drop.globalAlpha = this.glowed ? 0.35 : 1;
    drop.imageSmoothingQuality = "high";
    drop.filter = "saturate(1.8) brightness(1.3)";
    drop.drawImage(this.bitmap, 0, 0, 6, 4);
    glow.globalCompositeOperation = "copy";
    glow.imageSmoothingQuality = "high";
    glow.drawImage(drop.canvas, 0.5, 0.5, 5, 3, 0, 0, width, height);
    glow.globalCompositeOperation = "destination-in";
    const fade = glow.createRadialGradient(width * 0.4, height * 0.45, 0, width * 0.4, height * 0.45, width * 0.62);
    fade.addColorStop(0, "rgba(0, 0, 0, 0.26)");
    fade.addColorStop(1, "rgba(0, 0, 0, 0)");
    glow.fillStyle = fade;
    glow.fillRect(0, 0, width, height);
    this.glowed = performance.now();
  }
}
