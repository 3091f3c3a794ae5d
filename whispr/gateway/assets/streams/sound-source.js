// What is sent: a microphone, or a tone to test with.
//
//   source = new SoundSource()        an EventTarget: "changed" (another track, or none any more)
//     await .use({device, processed, stereo})   `device`: an id, "" for the system's own, TONE; throws an Error to be shown
//     .track · .chosen · .level() in dBFS · .release() · .close()
//   await microphones()               [{id, name}], whose names are known once a microphone has been allowed
//   microphoneProblem()               why no page here can have one, or ""

import { levelOf } from "./meter.js";

export const TONE = "tone";
const [TONE_HZ, TONE_GAIN] = [440, 0.25];

const PROBLEMS = {
  NotAllowedError: "The browser was not allowed to use the microphone. Allow it in the address bar, or send the test tone.",
  NotFoundError: "There is no microphone. Connect one, or send the test tone.",
  NotReadableError: "Another program holds the microphone. Close it, or send the test tone.",
  OverconstrainedError: "That microphone is not there any more. Choose another.",
};

export function microphoneProblem() {
  if (navigator.mediaDevices?.getUserMedia) return "";
  return "Browsers give a microphone to secure pages alone: open this one by https, or on the machine itself as localhost.";
}

export async function microphones() {
  if (microphoneProblem()) return [];
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter((each) => each.kind === "audioinput" && each.deviceId);
  return devices.filter((each) => each.deviceId !== "default").map((each, index) => ({ id: each.deviceId, name: each.label || `Microphone ${index + 1}` }));
}

export class SoundSource extends EventTarget {
  #context = null;
  #oscillator = null;
  track = null;
  chosen = { device: "", processed: true, stereo: true };

  async use({ device, processed, stereo }) {
    this.#context ??= new AudioContext({ sampleRate: 48_000 });
    await this.#context.resume();
    const [stream, oscillator] = device === TONE ? this.#tone() : [await this.#microphone(device, processed, stereo), null];
    this.#let();
    [this.stream, this.#oscillator] = [stream, oscillator];
    [this.track] = stream.getAudioTracks();
    this.chosen = { device, processed, stereo };
    // Speech, or music: what encoders make of it.
    this.track.contentHint = processed ? "speech" : "music";
    this.track.addEventListener("ended", () => this.#gone(stream));
    this.analyser = new AnalyserNode(this.#context, { fftSize: 4096 });
    this.node = this.#context.createMediaStreamSource(stream);
    this.node.connect(this.analyser);
    this.dispatchEvent(new CustomEvent("changed"));
  }

  level() { return this.analyser ? levelOf(this.analyser) : null; }

  // Lets go of the microphone: browsers show that one is in use.
  release() { this.#let(); }

  close() {
    this.#let();
    this.#context?.close();
    this.#context = null;
  }

  async #microphone(device, processed, stereo) {
    const problem = microphoneProblem();
    if (problem) throw new Error(problem);
    const audio = { echoCancellation: processed, noiseSuppression: processed, autoGainControl: processed, channelCount: { ideal: stereo ? 2 : 1 } };
    if (device) audio.deviceId = { exact: device };
    try {
      return await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      throw new Error(PROBLEMS[error.name] || `The microphone cannot be used (${error.name}).`);
    }
  }

  #tone() {
    const context = this.#context;
    const tone = new OscillatorNode(context, { frequency: TONE_HZ });
    const out = new MediaStreamAudioDestinationNode(context);
    tone.connect(new GainNode(context, { gain: TONE_GAIN })).connect(out);
    tone.start();
    return [out.stream, tone];
  }

  #gone(stream) {
    if (stream !== this.stream) return;
    this.#let();
    this.dispatchEvent(new CustomEvent("changed"));
  }

  #let() {
    this.node?.disconnect();
    this.#oscillator?.stop();
    this.#oscillator = null;
    for (const each of this.stream?.getTracks() || []) each.stop();
    [this.stream, this.track, this.node, this.analyser] = [null, null, null, null];
  }
}
