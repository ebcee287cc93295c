// The list of all keys, and what there is to know of the model.

import { KEYS } from "/web/keys.js";

const MORE = [
  ["space", "pause, and go on"],
  ["⌫", "back a few seconds"],
  ["B", "branch: a second walk from here"],
  ["1–9", "another of your walks"],
  ["V", "record"],
  ["+ −", "speed, also by the wheel"],
  ["drag", "look around"],
];

export function explain(motions, commands, trained) {
  for (const [action, , cap, does] of KEYS) motions.append(line(cap, does, trained.has(action)));
  for (const [cap, does] of MORE) commands.append(line(cap, does, true));
}

function line(cap, does, known) {
  const found = document.createElement("div");
  found.className = known ? "" : "untrained";
  found.append(Object.assign(document.createElement("dt"), { textContent: cap }));
  found.append(Object.assign(document.createElement("dd"), { textContent: does }));
  return found;
}

// what the server says of its model, in one line
export function facts({ recipe, width, height, fps, about }) {
  const all = [
    `recipe ${recipe}`, `${width}×${height} at ${fps} a second`,
    about.parameters && `${(about.parameters / 1e6).toFixed(1)} M parameters`, about.steps && `${about.steps} steps`,
    about.memory && `memory in ${about.memory.toUpperCase()}, ${about.capacity} latents`,
    about.linears && `linears in ${about.linears}`, about.device,
  ];
  return all.filter(Boolean).join(" · ");
}
