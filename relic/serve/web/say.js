// What the page says: the state in the header, a card over the picture, a toast, and a quiet voice for screen readers.

const TOAST_MS = 6000;
const $ = (id) => document.getElementById(id);
let toastTimer = 0;

export const capital = (sentence) => sentence.charAt(0).toUpperCase() + sentence.slice(1);

export function status(kind, text) {
  if ($("status").className === kind && $("status").lastElementChild.textContent === text) return;
  $("status").className = kind;
  $("status").lastElementChild.textContent = text;
  document.body.dataset.state = kind;
}

// for who does not see the picture; only what changes the walk, never what happens many times a second
export function voice(sentence) {
  $("voice").textContent = sentence;
}

export function card(title, text, button, action, anyKey = false) {
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
  $("key-form").hidden = true;
  $("card").hidden = false;
  voice([title, text].filter(Boolean).join(". "));
}

// whether any key that walks does what the card's button does
export const cardTakesKeys = () => !$("card").hidden && $("card-button").dataset.key === "yes";

export function hideCard() {
  $("card").hidden = true;
}

// what went wrong, or what is good to know
export function toast(sentence, calm = false) {
  $("toast").className = calm ? "calm" : "";
  $("toast").textContent = capital(sentence);
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(hideToast, TOAST_MS);
}

export function hideToast() {
  $("toast").hidden = true;
}
