// The session API: what the page asks for, and one walk's connection, which comes back by itself after it was lost.

const PING_MS = 5000;
const PROBE_MS = 2500; // after a sleep or a change of network an answer must come within this
const AGAIN_MS = 700;
const MOVED = 1012; // close code: the walk is saved and goes on at another server
const GONE = 4404; // while a walk moves, a server that does not know it yet
const HARD = new Set([4401, 4403, GONE, 4409, 4410]); // close codes after which coming back is useless

export class Refused extends Error {
  constructor(status, sentence, retryAfter) {
    super(sentence);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

// The JSON that a request is answered by, or Refused. `key` is an API key or a session's token.
export async function ask(path, { method = "GET", key = "", body } = {}) {
  const headers = body === undefined ? {} : { "content-type": "application/json" };
  if (/[^\x20-\xff]/.test(key)) throw new Refused(403, "the API key has a character that no key has");
  if (key) headers.authorization = `Bearer ${key}`;
  const reply = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const said = await reply.json().catch(() => ({ error: `the server said ${reply.status}` }));
  if (!reply.ok) throw new Refused(reply.status, said.error, Number(reply.headers.get("retry-after")) || 0);
  return said;
}

export class Stream {
  // `on` hears ready(message), picture(header, blob), state(message), rewound(message), error(sentence), lost(moving) and
  // ended(reason, sentence); `sequence` is the number of the last action, for a walk that goes on from another one
  constructor(session, on, sequence = 0) {
    this.session = session;
    this.on = on;
    this.sequence = sequence;
    this.live = this.over = this.moving = false;
    this.unanswered = 0; // pings since the server was last heard
    this.beaten = Date.now(); // the clock that goes on while a machine sleeps
    this.wake = () => document.hidden || this.probe();
    for (const name of ["online", "offline", "pageshow"]) addEventListener(name, this.wake);
    document.addEventListener("visibilitychange", this.wake);
    this.beat = setInterval(() => this.pulse(), PING_MS);
    this.extend();
    this.connect();
  }

  // how long coming back is tried: as long as the walk keeps its place
  extend() {
    this.until = performance.now() + 1000 * this.session.lease_seconds;
  }

  connect() {
    clearTimeout(this.again);
    const url = new URL(this.session.path, location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = (this.socket = new WebSocket(url));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket === this.socket && this.say({ type: "hello", token: this.session.token });
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      this.unanswered = 0;
      if (typeof data === "string") this.hear(JSON.parse(data));
      else this.see(data);
    };
    socket.onclose = ({ code }) => socket === this.socket && this.closed(code);
  }

  closed(code) {
    this.socket = null;
    if (this.over) return;
    const hard = HARD.has(code) && !(this.moving && code === GONE);
    if (hard) return this.finish("refused", this.complaint ?? "the server has closed the walk");
    if (this.live) this.extend();
    this.live = false;
    this.unanswered = 0;
    const sentence = this.complaint ?? "the connection was lost and did not come back";
    if (performance.now() > this.until) return this.finish("lost", sentence);
    this.on.lost(this.moving);
    this.again = setTimeout(() => this.connect(), code === MOVED ? 0 : AGAIN_MS);
  }

  // gives up a connection that is dead, whatever the browser thinks of it
  drop() {
    const socket = this.socket;
    this.closed(1006);
    socket.close();
  }

  pulse() {
    const late = Date.now() - this.beaten > 3 * PING_MS; // the machine slept, or the browser held this page's clocks
    this.beaten = Date.now();
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    if (this.unanswered >= 2) this.drop();
    else if (late) this.probe();
    else this.ping();
  }

  // the machine woke up or changed its network: is the server still there?
  probe() {
    if (!this.socket) return this.connect();
    if (this.socket.readyState !== WebSocket.OPEN) return;
    const socket = this.socket;
    this.ping();
    setTimeout(() => socket === this.socket && this.unanswered && this.drop(), PROBE_MS);
  }

  ping() {
    this.unanswered += 1;
    this.say({ type: "ping", at: performance.now() });
  }

  hear(message) {
    if (message.token) this.session.token = message.token;
    if (message.type === "ready") {
      const again = this.known ?? false; // not the first time
      this.live = this.known = true;
      this.moving = false;
      this.complaint = null;
      this.on.ready({ ...message, again });
    } else if (message.type === "state") this.on.state(message);
    else if (message.type === "rewound") this.on.rewound(message);
    else if (message.type === "moved") {
      this.moving = true;
      this.extend();
    } else if (message.type === "ended") this.finish(message.reason, message.message);
    else if (message.type === "error") {
      this.complaint = message.message;
      if (this.live) this.on.error(message.message);
    }
  }

  see(buffer) {
    const view = new DataView(buffer);
    const header = {
      still: Boolean(view.getUint8(1) & 1),
      sequence: view.getUint32(4, true),
      receipt: view.getUint32(8, true),
      made: view.getFloat64(12, true),
      sent: view.getFloat64(20, true),
      pose: Float32Array.from({ length: 12 }, (_, i) => view.getFloat32(28 + 4 * i, true)),
    };
    this.on.picture(header, new Blob([new Uint8Array(buffer, view.getUint16(2, true))]));
  }

  // sends what is held, as names or as 13 numbers; returns the number that the pictures' receipts will carry
  act(keys, speed) {
    this.sequence += 1;
    this.say({ type: "action", seq: this.sequence, keys, speed });
    return this.sequence;
  }

  say(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  stop() {
    this.over = true;
    this.live = false;
    clearInterval(this.beat);
    clearTimeout(this.again);
    for (const name of ["online", "offline", "pageshow"]) removeEventListener(name, this.wake);
    document.removeEventListener("visibilitychange", this.wake);
    this.socket?.close();
    this.socket = null;
  }

  finish(reason, sentence) {
    this.stop();
    this.on.ended(reason, sentence);
  }

  // gives the slot back; a page that goes away says so on both ways, for one may be cut
  async leave(gone = false) {
    if (this.over) return;
    if (gone) this.say({ type: "bye" });
    this.stop();
    await give(this.session);
  }
}

export async function give({ id, token }) {
  const headers = { authorization: `Bearer ${token}` };
  await fetch(`/v1/sessions/${id}`, { method: "DELETE", headers, keepalive: true }).catch(() => {});
}
