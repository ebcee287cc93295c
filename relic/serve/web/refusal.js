// Why there is no walk, or no longer one, and what to do about it.

import { capital, card, status } from "/web/say.js";
import { Refused } from "/web/stream.js";

const $ = (id) => document.getElementById(id);
const ENDINGS = {
  idle: "The world fell asleep",
  lifetime: "The walk is over",
  lost: "The connection is gone",
  failed: "Something broke",
};
let timer = 0;

// the walk that was seen has ended
export function farewell(reason, sentence, again) {
  status("off", "ended");
  card(ENDINGS[reason] ?? "The walk has ended", capital(sentence), "Walk again", again, reason === "idle");
}

// `again()` tries once more, `unlock(key)` with an API key, where the server has such `keys`
export function refuse(error, { again, unlock, keys }) {
  const { status: code, message, retryAfter } = error;
  status("off", "not walking");
  if (!(error instanceof Refused)) return card("The server cannot be reached", "Is it still running?", "Try again", again);
  if (code === 401 || (code === 403 && keys)) {
    const sentence = code === 401 ? "This server asks for a key." : `${capital(message)}.`;
    card("A key is needed", sentence, "Open", () => unlock($("api-key").value.trim()));
    $("key-form").hidden = false;
    return $("api-key").focus();
  }
  if (code === 429 || code === 503) return waitFor(capital(message), Math.max(2, retryAfter || 5), code, again);
  card(code === 409 ? "One walk too many" : "That did not work", capital(message), "Try again", again);
}

function waitFor(sentence, seconds, code, again) {
  const title = code === 429 ? "The world is full" : "One moment";
  card(title, `${sentence}. Trying again in ${seconds} s.`, "Try now", again);
  timer = setTimeout(() => (seconds > 1 ? waitFor(sentence, seconds - 1, code, again) : again()), 1000);
}

export function stopWaiting() {
  clearTimeout(timer);
}
