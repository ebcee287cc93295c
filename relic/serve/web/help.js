// The list of all keys, and what there is to know of the model.

import { KEYS } from "/web/keys.js";

const MORE = [
  ["space", "pause, go on"],
  ["⌫", "back a few seconds"],
  ["B", "branch: a second walk from here"],
  ["1 … 9", "another of your walks"],
  ["V", "record"],
  ["+ −", "speed, also by the wheel"],
  ["drag", "look around"],
];

export function explain(list, trained) {
  const keys = KEYS.map(([action, , cap, does]) => [cap, does, trained.has(action)]);
  for (const [cap, does, known = true] of [...keys, ...MORE]) {
    const line = document.createElement("div");
    line.className = known ? "" : "untrained";
    line.append(Object.assign(document.createElement("dt"), { textContent: cap }));
    line.append(Object.assign(document.createElement("dd"), { textContent: does }));
    list.append(line);
  }
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
