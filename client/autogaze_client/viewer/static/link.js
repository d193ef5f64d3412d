// The connection to the gaze: one request in flight, stale answers dropped, lost servers tried again.

const RETRY_MS = 700;

export class Link {
  // onAnswer(answer), onState(state, text): "live", "lost" or "connecting".
  constructor(onAnswer, onState) {
    this.onAnswer = onAnswer;
    this.onState = onState;
    this.sequence = 0;      // the last request sent
    this.accepted = 0;      // answers up to this one are stale
    this.pending = null;    // the request in flight
    this.restart = true;    // the next request begins a new stream
    this.stale = 0;
    this.notBefore = 0;
    this.connect();
  }

  connect() {
    this.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/frames`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => { this.pending = null; this.restart = true; };
    this.socket.onmessage = (event) => this.receive(JSON.parse(event.data));
    this.socket.onclose = () => {
      this.pending = null;
      this.onState("lost", "The viewer's own process is gone; trying to reach it again…");
      setTimeout(() => this.connect(), RETRY_MS);
    };
  }

  get idle() { return this.socket.readyState === WebSocket.OPEN && this.pending === null && performance.now() >= this.notBefore; }

  // Gives up what is under way: its answer belongs to settings that no longer hold.
  invalidate(restart) {
    this.accepted = this.sequence;
    this.restart = this.restart || restart;
  }

  send(settings, image) {
    this.sequence += 1;
    this.pending = this.sequence;
    const header = new TextEncoder().encode(JSON.stringify({
      sequence: this.sequence, width: image.width, height: image.height, restart: this.restart, ...settings,
    }));
    this.restart = false;
    const message = new Uint8Array(4 + header.length + image.data.length);
    new DataView(message.buffer).setUint32(0, header.length, true);
    message.set(header, 4);
    message.set(image.data, 4 + header.length);
    this.socket.send(message);
  }

  receive(answer) {
    this.pending = null;
    if (answer.error) {
      this.notBefore = performance.now() + RETRY_MS;
      this.restart = true;
      this.onState("lost", answer.lost ? `The gaze server does not answer; trying again… (${answer.error})` : answer.error);
      return;
    }
    this.onState("live", "live");
    if (answer.sequence <= this.accepted) { this.stale += 1; return; }
    this.accepted = answer.sequence;
    this.onAnswer(answer);
  }
}
