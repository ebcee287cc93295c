// The page: a start image, a walk, and what there is to say about it.

import { KEYS, Keys, inWords } from "/web/keys.js";
import { Track } from "/web/map.js";
import { Meters } from "/web/meters.js";
import { Picture } from "/web/picture.js";
import { Refused, Stream, world as askWorld } from "/web/stream.js";

const $ = (id) => document.getElementById(id);
const picture = new Picture($("picture"), $("glow"));
const track = new Track($("map"));
const meters = new Meters({ fps: $("fps"), latency: $("latency"), chunk: $("chunk"), dropped: $("dropped") }, $("bars"));
const keys = new Keys({ move: $("move"), look: $("look") }, act);
const sent = new Map(); // seq -> actions, until a picture's receipt names it

let world = null;
let start = null; // {example} or {image, url}
let walking = false;
let draining = false;
let retry = 0;
let toastTimer = 0;

const stream = new Stream({
  open: () => status("waiting", "opening"),
  ready() {
    walking = true;
    status("live", "walking");
    hideCard();
    if (keys.actions().length) act(keys.actions());
  },
  picture(header, blob) {
    track.add(header.pose);
    picture.show(blob, header, painted);
  },
  state(message) {
    if (message.state === "draining") {
      draining = true;
      return toast(message.message);
    }
    meters.state(message, world.fps, picture.skipped);
    const left = Math.round(message.seconds_left);
    $("left").textContent = left < 120 ? `${left} s left` : "";
  },
  error: toast,
  lost() {
    walking = false;
    status("waiting", "reconnecting");
    card("The connection was lost", "Coming back to your walk…", null);
  },
  ended(reason, sentence) {
    walking = false;
    status("off", "ended");
    keys.show([]);
    const title = { idle: "The world fell asleep", lifetime: "The walk is over", lost: "The connection is gone", failed: "Something broke" };
    card(title[reason] ?? "The walk has ended", capital(sentence), draining ? null : "Walk again", begin);
  },
});

function painted({ receipt }) {
  meters.paint(receipt);
  if (sent.has(receipt)) keys.show(sent.get(receipt));
  for (const seq of sent.keys()) if (seq < receipt) sent.delete(seq);
  $("distance").textContent = track.length >= 1 ? `${Math.round(track.length)} steps` : "";
}

// --- walking -------------------------------------------------------------------------------------------------------

function act(actions) {
  $("doing").textContent = inWords(actions);
  if (!walking) {
    if (actions.length && $("card-button").dataset.key === "yes" && !$("card").hidden) begin();
    return;
  }
  const seq = stream.act(actions, speed());
  sent.set(seq, actions);
  meters.acted(seq);
}

async function begin() {
  clearTimeout(retry);
  if (!start) return;
  walking = false;
  status("waiting", "opening");
  card("", "Opening the world…", null);
  track.restart();
  meters.restart();
  picture.restart();
  sent.clear();
  keys.show([]);
  $("distance").textContent = $("left").textContent = "";
  picture.still(start.url);
  const asked = { prompt: $("prompt").value, seed: Number($("seed").value) || 0, speed: speed() };
  if (start.example !== undefined) asked.example = start.example;
  else asked.image = start.image;
  try {
    await stream.open(asked);
    if (!matchMedia("(pointer: coarse)").matches) $("stage").focus({ preventScroll: true });
  } catch (error) {
    refuse(error);
  }
}

// why there is no walk, and what to do about it
function refuse(error) {
  const { status: code, message, retryAfter } = error;
  status("off", "not walking");
  if (!(error instanceof Refused)) return card("The server cannot be reached", "Is it still running?", "Try again", begin);
  if (code === 401 || code === 403) {
    $("key-form").hidden = false;
    return card("A key is needed", capital(message), "Open", () => {
      stream.key = $("api-key").value.trim();
      begin();
    });
  }
  if (code === 429 || code === 503) return waitFor(capital(message), Math.max(2, retryAfter || 5), code);
  return card(code === 409 ? "One walk too many" : "That did not work", capital(message), "Try again", begin);
}

function waitFor(sentence, seconds, code) {
  const title = code === 429 ? "The world is full" : "One moment";
  card(title, `${sentence}. Trying again in ${seconds} s.`, "Try now", begin);
  retry = setTimeout(() => (seconds > 1 ? waitFor(sentence, seconds - 1, code) : begin()), 1000);
}

// --- what is shown -------------------------------------------------------------------------------------------------

function status(kind, text) {
  $("status").className = kind;
  $("status").lastElementChild.textContent = text;
  document.body.dataset.state = kind;
}

function card(title, text, button, action, anyKey = false) {
  const [heading, paragraph] = [$("card").querySelector("h2"), $("card").querySelector("p")];
  heading.textContent = title;
  heading.hidden = !title;
  paragraph.textContent = text;
  $("card-button").hidden = !button;
  $("card-button").textContent = button ?? "";
  $("card-button").onclick = action ?? null;
  $("card-button").dataset.key = anyKey ? "yes" : "no";
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    action?.();
  };
  $("card").hidden = false;
}

function hideCard() {
  $("card").hidden = true;
  $("key-form").hidden = true;
}

function toast(sentence) {
  $("toast").textContent = capital(sentence);
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), 6000);
}

const capital = (sentence) => sentence.charAt(0).toUpperCase() + sentence.slice(1);
const speed = () => Number($("speed").value);

setInterval(() => {
  const resting = walking && meters.resting && picture.newest >= 0;
  $("rest").hidden = !resting;
  if (walking) status("live", resting ? "at rest" : "walking");
}, 300);

// --- the start -----------------------------------------------------------------------------------------------------

function choose(chosen, button) {
  start = chosen;
  for (const other of $("examples").children) other.setAttribute("aria-pressed", String(other === button));
}

function thumbnail(url, name, chosen) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = name;
  button.setAttribute("aria-pressed", "false");
  button.append(Object.assign(document.createElement("img"), { src: url, alt: name }));
  button.onclick = () => {
    choose({ ...chosen, url }, button);
    if (chosen.caption !== undefined) $("prompt").value = chosen.caption;
    begin();
  };
  return button;
}

$("upload").onchange = () => take($("upload").files[0]);
$("stage").ondragover = (event) => event.preventDefault();
$("stage").ondrop = (event) => {
  event.preventDefault();
  take(event.dataTransfer.files[0]);
};

function take(file) {
  if (!file) return;
  if (file.size > world.image.bytes) {
    return toast(`the image has ${(file.size / 1e6).toFixed(1)} MB; allowed are ${(world.image.bytes / 1e6).toFixed(1)} MB`);
  }
  const reader = new FileReader();
  reader.onload = () => {
    const button = thumbnail(reader.result, file.name, { image: reader.result.split(",")[1] });
    $("examples").prepend(button);
    button.click();
  };
  reader.readAsDataURL(file);
}

$("start").onsubmit = (event) => {
  event.preventDefault();
  begin();
};
$("dice").onclick = () => ($("seed").value = Math.floor(Math.random() * 1e6));

// --- speed, help, leaving ------------------------------------------------------------------------------------------

$("speed").oninput = () => {
  $("speed-shown").textContent = `${speed().toFixed(1)}×`;
  if (keys.actions().length) act(keys.actions());
};
$("speed").onpointerup = () => $("stage").focus({ preventScroll: true });
$("help-open").onclick = () => $("help").showModal();
addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea")) {
    if (event.key === "Escape") $("stage").focus();
    return;
  }
  if (event.key === "?") $("help").open ? $("help").close() : $("help").showModal();
  if (event.key === "+" || event.key === "-") {
    $("speed")[event.key === "+" ? "stepUp" : "stepDown"]();
    $("speed").oninput();
  }
});
addEventListener("pagehide", () => stream.leave(true));
addEventListener("pageshow", (event) => event.persisted && location.reload());

function explain() {
  for (const [action, , cap, does] of KEYS) {
    const line = document.createElement("div");
    line.className = keys.trained.has(action) ? "" : "untrained";
    line.append(Object.assign(document.createElement("dt"), { textContent: cap }));
    line.append(Object.assign(document.createElement("dd"), { textContent: does }));
    $("help-keys").append(line);
  }
  const line = document.createElement("div");
  line.append(Object.assign(document.createElement("dt"), { textContent: "+ −" }));
  line.append(Object.assign(document.createElement("dd"), { textContent: "speed" }));
  $("help-keys").append(line);
}

async function open() {
  try {
    world = await askWorld();
  } catch {
    status("off", "no server");
    return card("The server cannot be reached", "Is it still running?", "Try again", open);
  }
  keys.train(Object.keys(world.trained));
  explain();
  document.documentElement.style.setProperty("--aspect", world.width / world.height);
  $("speed").max = world.max_speed;
  $("prompt").maxLength = world.prompt_characters;
  const { about } = world;
  const facts = [
    `recipe ${world.recipe}`, `${world.width}×${world.height} at ${world.fps} a second`,
    about.parameters && `${(about.parameters / 1e6).toFixed(1)} M parameters`, about.steps && `${about.steps} steps`,
    about.memory && `memory in ${about.memory.toUpperCase()}, ${about.capacity} latents`,
    about.linears && `linears in ${about.linears}`, about.device,
  ];
  $("about").textContent = facts.filter(Boolean).join(" · ");
  for (const { id, caption, place, image } of world.examples) {
    $("examples").append(thumbnail(image, place ? `${place}: ${caption}` : caption, { example: id, caption }));
  }
  const first = world.examples[0];
  if (first) {
    choose({ example: first.id, caption: first.caption, url: first.image }, $("examples").firstElementChild);
    $("prompt").value = first.caption;
    picture.still(first.image);
  }
  status("off", "not walking");
  card("Step inside", first ? "Press any key that walks, or click." : "Choose an image of your own.", first && "Walk", begin, true);
}

open();
