// Where a walk begins: the world's examples, or a picture of one's own by the button or dropped on the world.

import { toast } from "/web/say.js";

const $ = (id) => document.getElementById(id);

export class Gallery {
  // `begin()` hears that a start was chosen; what it is lies in `start`: {example} or {image}, and its picture as a blob
  constructor(world, begin) {
    this.world = world;
    this.begin = begin;
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

  async blob() {
    return this.start.blob ?? (await fetch(this.start.url)).blob();
  }

  choose(start, button) {
    this.start = { ...start, button };
    if (start.caption !== undefined) $("prompt").value = start.caption;
    for (const other of $("examples").children) other.setAttribute("aria-pressed", String(other === button));
  }

  thumbnail(url, name, start) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = name;
    button.setAttribute("aria-pressed", "false");
    button.append(Object.assign(document.createElement("img"), { src: url, alt: name }));
    button.onclick = () => {
      this.choose(start, button);
      this.begin();
    };
    return button;
  }

  // the first example, before anything is chosen
  first() {
    $("examples").firstElementChild?.setAttribute("aria-pressed", "true");
    const [example] = this.world.examples;
    if (example) {
      this.choose({ example: example.id, caption: example.caption, url: example.image }, $("examples").firstElementChild);
    }
    return Boolean(example);
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
      return toast(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; allowed are ${(bytes / 1e6).toFixed(1)} MB`);
    }
    const readable = await createImageBitmap(file).then((bitmap) => bitmap.close() ?? true, () => false);
    if (!readable) return toast(`${file.name} is no picture that can be read; allowed are ${formats.join(", ")}`);
    const reader = new FileReader();
    reader.onload = () => {
      const button = this.thumbnail(reader.result, file.name, { image: reader.result.split(",")[1], blob: file });
      $("examples").prepend(button);
      button.click();
    };
    reader.readAsDataURL(file);
  }
}
