// The way in: a start that lies ready, a key where the server asks for one, and a walk that begins, or why it does not.

import { speed } from "/web/controls.js";
import { Gallery } from "/web/gallery.js";
import { refuse, stopWaiting } from "/web/refusal.js";
import { card, hideToast, status, toast } from "/web/say.js";
import { ask, give } from "/web/stream.js";

const $ = (id) => document.getElementById(id);
const THUMBS = matchMedia("(pointer: coarse)").matches;
const HOW = THUMBS ? "Your thumbs walk and turn." : "Press any key that walks, or click.";

export class Entrance {
  // `on` is asked seen(), whether a walk is, and told to leave() it; it hears begun(session)
  constructor(world, picture, on) {
    this.world = world;
    this.picture = picture;
    this.on = on;
    this.key = sessionStorage.getItem("relic-api-key") ?? "";
    this.attempt = null; // the newest try to begin a walk, as long as it is under way
    this.gallery = new Gallery(world, () => this.chosen());
    status("off", "not walking");
    card("Step inside", "Choose an image of your own.", null);
    this.gallery.first();
  }

  async begin() {
    stopWaiting();
    const { gallery } = this;
    if (!gallery.start || !$("start").reportValidity()) return;
    const mine = (this.attempt = Symbol());
    status("waiting", "opening");
    hideToast();
    card("", "Opening the world…", null);
    const left = this.on.leave();
    gallery.preview(this.picture);
    const { example, image } = gallery.start; // one of them
    const asked = { example, image, prompt: $("prompt").value, seed: Number($("seed").value) || 0, speed: speed() };
    try {
      await left;
      if (mine !== this.attempt) return;
      const session = await ask("/v1/sessions", { method: "POST", key: this.key, body: asked });
      if (mine !== this.attempt) return give(session); // another start came in between
      if (this.key) sessionStorage.setItem("relic-api-key", this.key);
      this.attempt = null;
      $("again").textContent = "Start again";
      this.on.begun(session);
      if (!THUMBS) $("stage").focus({ preventScroll: true });
    } catch (error) {
      if (mine !== this.attempt) return;
      this.attempt = null;
      if (error.status === 413 || error.status === 422) gallery.refuse();
      refuse(error, { again: () => this.begin(), unlock: (key) => this.unlock(key), keys: this.world.key_needed });
    }
  }

  // another start lies ready; a walk that is open goes on until the button is pressed
  chosen() {
    if (this.on.seen()) return toast("this walk goes on; “Start again” ends it and begins in the chosen picture", true);
    if (this.attempt) return;
    this.picture.restart();
    this.gallery.preview(this.picture);
    if ($("card-button").hidden) card("Step inside", HOW, "Walk", () => this.begin(), true);
  }

  unlock(key) {
    this.key = key;
    this.begin();
  }
}
