// A walk over the session API: POST for a session, a WebSocket for actions and pictures, and again after a lost connection.

const PING_MS = 5000;
const HARD = new Set([4401, 4403, 4404, 4409, 4410]); // close codes after which coming back is useless

export class Refused extends Error {
  constructor(status, sentence, retryAfter) {
    super(sentence);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export async function world() {
  const reply = await fetch("/v1/world");
  if (!reply.ok) throw new Refused(reply.status, "the server does not answer as it should", 3);
  return reply.json();
}

export class Stream {
  // `on` hears open(session), ready(), picture(header, blob), state(message), error(sentence), lost(), ended(reason, sentence)
  constructor(on) {
    this.on = on;
    this.session = null;
    this.socket = null;
    this.sequence = 0;
    this.key = sessionStorage.getItem("relic-api-key") ?? "";
  }

  async open(asked) {
    await this.leave();
    const attempt = (this.attempt = Symbol());
    const headers = { "content-type": "application/json" };
    if (this.key) headers.authorization = `Bearer ${this.key}`;
    const reply = await fetch("/v1/sessions", { method: "POST", headers, body: JSON.stringify(asked) });
    const said = await reply.json().catch(() => ({ error: `the server said ${reply.status}` }));
    if (!reply.ok) throw new Refused(reply.status, said.error, Number(reply.headers.get("retry-after")) || 0);
    if (this.key) sessionStorage.setItem("relic-api-key", this.key);
    if (attempt !== this.attempt) return this.give(said); // another start came in between
    this.session = said;
    this.sequence = 0;
    this.on.open(said);
    this.connect(performance.now() + 1000 * said.lease_seconds);
  }

  connect(until) {
    const session = this.session;
    const url = new URL(session.path, location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = (this.socket = new WebSocket(url));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.send({ type: "hello", token: session.token });
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket || session !== this.session) return;
      if (typeof data === "string") this.hear(JSON.parse(data));
      else this.see(data);
    };
    socket.onclose = ({ code }) => {
      clearInterval(socket.ping);
      if (socket !== this.socket || session !== this.session) return;
      if (HARD.has(code)) return this.finish("refused", this.complaint ?? "the server has closed the walk");
      if (this.readyOnce) until = Math.max(until, performance.now() + 1000 * session.lease_seconds);
      this.readyOnce = false;
      if (performance.now() > until) return this.finish("lost", "the connection was lost and did not come back");
      this.on.lost();
      setTimeout(() => session === this.session && this.connect(until), 700);
    };
    socket.ping = setInterval(() => this.send({ type: "ping", at: performance.now() }), PING_MS);
  }

  hear(message) {
    if (message.token) this.session.token = message.token;
    if (message.type === "ready") {
      this.readyOnce = true;
      this.on.ready();
    } else if (message.type === "state") this.on.state(message);
    else if (message.type === "ended") this.finish(message.reason, message.message);
    else if (message.type === "error") {
      this.complaint = message.message;
      this.on.error(message.message);
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
    this.on.picture(header, new Blob([new Uint8Array(buffer, view.getUint16(2, true))], { type: "image/jpeg" }));
  }

  // sends the held actions; returns the number that the pictures' receipts will carry
  act(keys, speed) {
    this.sequence += 1;
    this.send({ type: "action", seq: this.sequence, keys, speed });
    return this.sequence;
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  finish(reason, sentence) {
    this.session = null;
    this.socket?.close();
    this.on.ended(reason, sentence);
  }

  // gives the slot back; a page that goes away says so on both ways, for one may be cut
  async leave(gone = false) {
    this.attempt = null;
    const session = this.session;
    if (!session) return;
    this.session = null;
    if (gone) this.send({ type: "bye" });
    this.socket?.close();
    await this.give(session);
  }

  async give(session) {
    const headers = { authorization: `Bearer ${session.token}` };
    await fetch(`/v1/sessions/${session.id}`, { method: "DELETE", headers, keepalive: true }).catch(() => {});
  }
}
