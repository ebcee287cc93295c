// Where a walk begins: the world's examples, or a picture of one's own by the button or dropped on the world.

import { toast } from "/web/say.js";

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
    const { bytes, formats } = this.world.image;
    if (file.size > bytes) {
      return toast(`the file ${file.name} has ${(file.size / 1e6).toFixed(1)} MB; allowed are ${(bytes / 1e6).toFixed(1)} MB`);
    }
    const readable = await createImageBitmap(file).then((bitmap) => bitmap.close() ?? true, () => false);
    if (!readable) return toast(`the file ${file.name} is no picture that can be read; allowed are ${formats.join(", ")}`);
    const reader = new FileReader();
    reader.onload = () => {
      const start = { image: reader.result.split(",")[1], caption: "", blob: file };
      $("examples").prepend(this.thumbnail(reader.result, file.name, start));
      $("examples").firstElementChild.click();
    };
    reader.readAsDataURL(file);
  }
}
