// Where a walk begins: the world's examples, or a picture of one's own by the button or dropped on the world.

import { hideToast, toast } from "/web/say.js";

const $ = (id) => document.getElementById(id);

export class Gallery {
  // `chosen()` hears that another start was chosen; it lies in `start`: {example} or {image}, its caption and its picture
  constructor(world, chosen) {
    this.world = world;
    this.chosen = chosen;
    this.start = null;
    for (const { id, caption, place, image } of world.examples) {
      $("examples").append(this.thumbnail(image, place ? `${place}: ${caption}` : caption, { example: id, caption, url: image }));
    }
    $("upload").onchange = () => {
      this.take($("upload").files[0]);
      $("upload").value = ""; // the same file once more is a change, too
    };
    $("stage").ondragover = (event) => event.preventDefault();
    $("stage").ondrop = (event) => {
      event.preventDefault();
      this.take(event.dataTransfer.files[0]);
    };
  }

  // the start's picture, until a walk brings its own
  async preview(picture) {
    const { start } = this;
    const blob = start.blob ?? (await fetch(start.url).then((reply) => reply.ok && reply.blob(), () => null)); // the card says it
    if (blob && start === this.start) picture.still(blob);
  }

  choose(start, button) {
    this.start = { ...start, button };
    $("prompt").value = start.caption;
    for (const other of $("examples").children) other.setAttribute("aria-pressed", String(other === button));
    hideToast(); // what was said of an earlier choice
    this.chosen();
  }

  thumbnail(url, name, start) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = name;
    button.setAttribute("aria-pressed", "false");
    button.append(Object.assign(document.createElement("img"), { src: url, alt: name }));
    button.onclick = () => this.choose(start, button);
    return button;
  }

  // the first example, before anything is chosen
  first() {
    $("examples").firstElementChild?.click();
  }

  // what the server would not take, after it said so
  refuse() {
    if (this.start.blob) this.start.button.remove();
    this.first();
  }

  async take(file) {
    if (!file) return;
    const { formats } = this.world.image;
    const blob = await this.needed(file).catch(() => null);
    if (!blob) return toast(`the file ${file.name} is no picture that can be read; allowed are ${formats.join(", ")}`);
    const reader = new FileReader();
    reader.onload = () => {
      const start = { image: reader.result.split(",")[1], caption: "", blob };
      $("examples").prepend(this.thumbnail(reader.result, file.name, start));
      $("examples").firstElementChild.click();
    };
    reader.readAsDataURL(blob);
  }

  // The file, or of one that is larger than needed the middle, at twice the world's size. Fails where it cannot be read.
  async needed(file) {
    const [width, height] = [2 * this.world.width, 2 * this.world.height];
    const whole = await createImageBitmap(file);
    if (whole.width <= width && whole.height <= height && file.size <= this.world.image.bytes) return file;
    const scale = Math.min(whole.width / width, whole.height / height);
    const [w, h] = [scale * width, scale * height];
    const middle = [(whole.width - w) / 2, (whole.height - h) / 2, w, h];
    const small = await createImageBitmap(whole, ...middle, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    canvas.getContext("2d").drawImage(small, 0, 0);
    whole.close();
    small.close();
    return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  }
}
