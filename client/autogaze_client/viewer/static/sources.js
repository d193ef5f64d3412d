// Where frames come from. Each source draws the current picture into a 2D context of its own size.

const WIDTH = 640;

// A test picture that pans: a striped field, discs that stand still and one that moves against the pan.
export class SyntheticPan {
  constructor() { this.width = WIDTH; this.height = 360; this.frame = 0; this.label = "synthetic pan"; }
  async start() {}
  stop() {}
  ready() { return true; }
  draw(context) {
    const { width, height } = this, t = this.frame++;
    const sky = context.createLinearGradient(0, 0, 0, height);
    sky.addColorStop(0, "#27496d"); sky.addColorStop(0.55, "#c9825b"); sky.addColorStop(0.56, "#2f4a35"); sky.addColorStop(1, "#1c2b22");
    context.fillStyle = sky;
    context.fillRect(0, 0, width, height);
    context.fillStyle = "#f6d58a";
    context.beginPath(); context.arc(470, 92, 34, 0, 7); context.fill();
    for (let i = 0; i < 9; i++) {
      const x = ((i * 131 - t * 1.5) % (width + 160) + width + 160) % (width + 160) - 80;
      const tall = 60 + ((i * 53) % 90);
      context.fillStyle = i % 2 ? "#1f2f44" : "#33415c";
      context.fillRect(x, 202 - tall, 62, tall);
      context.fillStyle = "#ffdf8e";
      for (let w = 0; w < 6; w++) if ((i + w) % 3) context.fillRect(x + 9 + (w % 3) * 17, 212 - tall + Math.floor(w / 3) * 24, 9, 12);
    }
    for (let i = -1; i < 12; i++) {
      context.fillStyle = "#e7e2c8";
      context.fillRect(((i * 70 - t * 4) % 840 + 840) % 840 - 90, 292, 38, 6);
    }
    const car = (t * 3) % (width + 140) - 120;
    context.fillStyle = "#e4572e"; context.fillRect(car, 262, 92, 26); context.fillRect(car + 18, 244, 52, 20);
    context.fillStyle = "#15181c";
    for (const wheel of [20, 72]) { context.beginPath(); context.arc(car + wheel, 290, 11, 0, 7); context.fill(); }
    const ball = 240 + 90 * Math.sin(t / 19);
    context.fillStyle = "#7bdff2"; context.beginPath(); context.arc(ball, 120 + 40 * Math.cos(t / 11), 16, 0, 7); context.fill();
  }
}

class VideoSource {
  constructor(video) { this.video = video; this.width = WIDTH; this.height = 360; }
  fit() {
    const { videoWidth, videoHeight } = this.video;
    this.width = Math.min(WIDTH, videoWidth);
    this.height = Math.max(1, Math.round((videoHeight * this.width) / videoWidth));
  }
  ready() { return this.video.readyState >= 2; }
  draw(context) { context.drawImage(this.video, 0, 0, this.width, this.height); }
}

export class FileSource extends VideoSource {
  constructor(video, file) { super(video); this.file = file; this.label = file.name; }
  async start() {
    this.address = URL.createObjectURL(this.file);
    this.video.src = this.address;
    await this.video.play();
    this.fit();
  }
  stop() { this.video.pause(); this.video.removeAttribute("src"); URL.revokeObjectURL(this.address); }
}

export class CameraSource extends VideoSource {
  constructor(video) { super(video); this.label = "camera"; }
  async start() {
    this.stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, frameRate: { ideal: 30 } } });
    this.video.srcObject = this.stream;
    await this.video.play();
    this.fit();
  }
  stop() { this.video.srcObject = null; this.stream?.getTracks().forEach((track) => track.stop()); }
}
