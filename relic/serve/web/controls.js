// What is not walking: the keys of the commands, the slider of the speed and the wheel that moves it.

const WHEEL_STEP = 40; // pixels
const $ = (id) => document.getElementById(id);
export const speed = () => Number($("speed").value);

// `commands` are functions by KeyboardEvent.code; `choose(place)` hears a digit, `walking()` says whether the wheel is
// the walk's, `changed()` hears a new speed
export function listen({ commands, choose, walking, changed }) {
  addEventListener("keydown", (event) => {
    if (event.target.matches("input, textarea")) return event.key === "Escape" && $("stage").focus();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "?") $("help").open ? $("help").close() : help();
    if ($("help").open) return;
    if (event.key === "+" || event.key === "-") pace(event.key === "+");
    if (event.repeat) return;
    const digit = /^Digit([1-9])$/.exec(event.code);
    if (digit) choose(Number(digit[1]) - 1);
    if (!commands[event.code] || (["Space", "Enter"].includes(event.code) && event.target.matches("button, a"))) return;
    event.preventDefault();
    commands[event.code]();
  });

  function pace(faster) {
    $("speed")[faster ? "stepUp" : "stepDown"]();
    $("speed").oninput();
  }
  $("speed").oninput = () => {
    $("speed-shown").textContent = `${speed().toFixed(1)}×`;
    changed();
  };
  $("speed").onpointerup = () => $("stage").focus({ preventScroll: true });
  let wheel = 0; // pixels that are no step yet
  const turn = (event) => {
    if (!walking() || event.ctrlKey) return;
    event.preventDefault();
    wheel += event.deltaMode ? WHEEL_STEP * event.deltaY : event.deltaY;
    if (Math.abs(wheel) < WHEEL_STEP) return;
    pace(wheel < 0);
    wheel = 0;
  };
  $("stage").addEventListener("wheel", turn, { passive: false });
  // a click leaves the space bar to the walk, not to the button that was clicked
  for (const part of [$("tools"), $("walks")]) {
    part.addEventListener("click", (event) => event.detail && $("stage").focus({ preventScroll: true }));
  }
  $("dice").onclick = () => ($("seed").value = Math.floor(Math.random() * 1e6));
  $("help-open").onclick = help;
}

function help() {
  $("help").showModal();
  $("help").scrollTop = 0; // its button has the focus and lies at the end
}
