// The list of all keys.

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
