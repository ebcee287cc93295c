// The page: walks that go on, wait, branch and end, and what there is to say about them.

import { listen, speed } from "/web/controls.js";
import { Drag } from "/web/drag.js";
import { Entrance } from "/web/entrance.js";
import { Held } from "/web/held.js";
import { explain, facts } from "/web/help.js";
import { Keys } from "/web/keys.js";
import { Track } from "/web/map.js";
import { Meters } from "/web/meters.js";
import { Picture } from "/web/picture.js";
import { Receipts } from "/web/receipts.js";
import { Recorder, offer } from "/web/recorder.js";
import { farewell } from "/web/refusal.js";
import { card, cardTakesKeys, hideCard, hideToast, status, toast, voice } from "/web/say.js";
import { Refused, ask } from "/web/stream.js";
import { Tools } from "/web/tools.js";
import { Walk, Walks } from "/web/walks.js";

const $ = (id) => document.getElementById(id);
const picture = new Picture($("picture"), $("glow"));
const track = new Track($("map"));
const figures = { fps: $("fps"), latency: $("latency"), chunk: $("chunk"), dropped: $("dropped"), skipped: $("skipped") };
const meters = new Meters(figures, $("bars"));
const receipts = new Receipts($("receipts"));
const keys = new Keys({ move: $("move"), look: $("look") }, act);
const walking = () => Boolean(walks.current?.live);
const drag = new Drag($("stage"), { allowed: walking, most: () => world.max_speed, changed: act });
const held = new Held(keys, drag);
const walks = new Walks($("walks"), { chosen: go, closed: close });
const tools = new Tools(
  { pause: $("pause"), rewind: $("rewind"), branch: $("branch"), record: $("record"), points: $("points") },
  { pause, rewind, branch, record },
);
const recorder = new Recorder(picture, {
  changed: (seconds) => tools.recording(seconds, recorder.ending),
  done: (blob, ending) => (blob.size ? toast(offer(blob, ending), true) : toast("this browser recorded nothing")),
});

let world = null;
let entrance = null; // once the world is known
const begin = () => entrance?.begin();

// what a walk's connection says; only the walk that is seen is shown
const on = {
  ready(walk, { paused = false, again }) {
    walk.paused = paused;
    if (walk !== walks.current) return paused || walk.stream.say({ type: "pause" });
    status("live", "walking");
    hideCard();
    if (again) hideToast(); // that the server closes is over
    tools.show(walk);
    voice(again ? "the walk goes on" : `${walk.name} has begun`);
    if (!paused && (again || held.names().length)) act();
  },
  picture(walk, header, blob) {
    if (!walk.trail.add(header, blob)) return;
    track.dirty = true;
    if (walk === walks.current) picture.show(blob, header, painted);
  },
  state(walk, message) {
    if (message.state === "draining") toast(message.message, true);
    walk.paused = message.paused ?? walk.paused;
    walk.points = message.rewind_s ?? walk.points;
    if (walk !== walks.current) return;
    tools.show(walk);
    rest();
    if (message.chunks > (walk.chunks ?? 0)) meters.state(message, world.fps, picture.skipped);
    walk.chunks = message.chunks ?? walk.chunks;
    if (message.seconds_left < 120) $("left").textContent = `${Math.round(message.seconds_left)} s left`;
  },
  rewound(walk, { seconds, sequence }) {
    walk.trail.rewind(sequence, Math.round(seconds * world.fps));
    if (walk !== walks.current) return;
    track.dirty = true;
    receipts.lose();
    keys.show([]);
    picture.restart(picture.skipped);
    voice(`${seconds.toFixed(1)} seconds back`);
  },
  error: (walk, sentence) => toast(sentence),
  lost(walk, moving) {
    if (walk !== walks.current) return;
    receipts.lose();
    keys.show([]);
    tools.show(walk);
    status("waiting", moving ? "moving" : "reconnecting");
    if (moving) voice("the walk moves to another server");
    else card("The connection was lost", "Coming back to your walk…", null);
    rest();
  },
  ended(walk, reason, sentence) {
    if (walk !== walks.current) toast(`${walk.name} has ended: ${sentence}`);
    else farewell(reason, sentence, begin);
    gone(walk);
  },
};

function close(walk) {
  walk.stream.leave();
  if (walk === walks.current) farewell("deleted", "you ended it", begin);
  gone(walk);
}

function gone(walk) {
  const seen = walk === walks.current;
  walks.remove(walk);
  track.show(walks.current?.trail ?? walk.trail, walks.list.map((other) => other.trail));
  if (!seen) return;
  keys.show([]);
  tools.show(null);
  $("left").textContent = "";
}

function painted({ receipt }) {
  const action = receipts.seen(receipt);
  meters.paint(action?.ms ?? null);
  if (action) keys.show(action.names);
  distance();
}

function distance() {
  const length = walks.current?.trail.length ?? 0;
  $("distance").textContent = length >= 1 ? `${Math.round(length)} steps` : "";
}

// --- walking -------------------------------------------------------------------------------------------------------

function act() {
  const walk = walks.current;
  const names = held.names();
  if (!walk?.live) return names.length && cardTakesKeys() && begin();
  if (walk.paused && !names.length) return; // letting go is no reason to go on
  receipts.sent(walk.stream.act(held.row(world, speed()), speed()), names, held.words());
}

function pause() {
  const walk = walks.current;
  if (!walk?.live) return;
  walk.stream.say({ type: walk.paused ? "resume" : "pause" });
  voice(walk.paused ? "the walk goes on" : "paused");
  walk.paused = !walk.paused;
  tools.show(walk);
  rest();
  receipts.lose();
  keys.show([]);
  if (!walk.paused) act(); // what is held now, not what was held then
}

function rewind(seconds) {
  if (!walks.current?.live) return;
  if (seconds === undefined) return toast("there is no moment to go back to yet", true);
  walks.current.stream.say({ type: "rewind", seconds });
}

async function branch() {
  const walk = walks.current;
  if (!walk?.live || tools.branching) return;
  tools.branching = true;
  tools.show(walk);
  const asked = ask(`/v1/sessions/${walk.session.id}/branch`, { method: "POST", key: walk.session.token });
  const refused = (error) => toast(error instanceof Refused ? error.message : "the server cannot be reached");
  const session = await asked.catch(refused);
  tools.branching = false;
  if (session) {
    const twin = new Walk(session, on, walk.trail.fork(), walk.stream.sequence);
    walks.add(twin);
    if (walk === walks.current) go(twin);
  }
  tools.show(walks.current);
}

// leaves the walk that is seen as it is, and goes on in another one
function go(walk) {
  const left = walks.current;
  if (walk === left) return;
  walks.snap(picture);
  if (left?.live) left.stream.say({ type: "pause" });
  enter(walk);
  if (walk.trail.latest) picture.still(walk.trail.latest);
  voice(walk.name);
  if (!walk.live) return status("waiting", "opening");
  hideCard();
  status("live", "walking");
  walk.stream.say({ type: "resume" });
  walk.paused = false;
  tools.show(walk);
  act();
}

function enter(walk) {
  walks.choose(walk);
  picture.restart();
  meters.restart();
  receipts.restart();
  keys.show([]);
  tools.show(walk);
  track.show(walk?.trail ?? null, walks.list.map((other) => other.trail));
  distance();
  $("left").textContent = "";
}

// ends the walk that is seen, for another one
function leave() {
  const left = walks.current;
  if (left) walks.remove(left);
  enter(null);
  return left?.stream.leave();
}

function begun(session) {
  const walk = new Walk(session, on);
  walks.add(walk);
  walks.choose(walk);
  track.show(walk.trail, []);
}

// what the picture's foot says about a world that stands still
function rest() {
  const walk = walks.current;
  const resting = walk?.live && meters.resting && picture.newest >= 0;
  const said = walk?.stream.moving ? "moving to another server" : walk?.live && walk.paused ? "paused" : resting ? "at rest" : "";
  $("rest").hidden = !said;
  $("rest").textContent = said;
  $("stage").classList.toggle("paused", said === "paused");
  if (walk?.live) status("live", said || "walking");
}

function record() {
  if (recorder.running) return recorder.stop();
  if (!recorder.kind) return toast("this browser records no video");
  if (walking() && picture.bitmap) recorder.start(world);
}

// --- the page ------------------------------------------------------------------------------------------------------

listen({
  commands: {
    Space: pause, Backspace: () => rewind(tools.usual()), KeyB: branch, KeyV: record, Enter: () => cardTakesKeys() && begin(),
  },
  choose: (place) => walks.list[place] && go(walks.list[place]),
  walking,
  changed: () => held.names().length && act(),
});
$("start").onsubmit = (event) => {
  event.preventDefault();
  begin();
};
addEventListener("pagehide", () => walks.list.forEach((walk) => walk.stream.leave(true)));
addEventListener("pageshow", (event) => event.persisted && location.reload());
setInterval(rest, 300);
setInterval(() => walks.list.length > 1 && walks.snap(picture), 1000);

async function open() {
  try {
    world = await ask("/v1/world");
  } catch {
    status("off", "no server");
    return card("The server cannot be reached", "Is it still running?", "Try again", open);
  }
  keys.train(Object.keys(world.trained));
  explain($("help-keys"), $("help-more"), keys.trained);
  document.documentElement.style.setProperty("--aspect", world.width / world.height);
  $("speed").max = world.max_speed;
  $("prompt").maxLength = world.prompt_characters;
  $("about").textContent = facts(world);
  if (recorder.kind) tools.recording(null, recorder.ending);
  entrance = new Entrance(world, picture, { seen: () => Boolean(walks.current), leave, begun });
}

open();
