// Plays a stream by HLS with hls.js, or over a WebSocket by MediaSource or WebCodecs, and listens to what is played.

const audio = document.getElementById("audio");
const context = new AudioContext();
let analyser;

function listen(node) {
  analyser = context.createAnalyser();
  analyser.fftSize = 16384;
  analyser.smoothingTimeConstant = 0;
  node.connect(analyser);
  node.connect(context.destination);
}

// The strongest frequency in Hz, and how loud it is in dB.
function heard() {
  const bins = new Float32Array(analyser.frequencyBinCount);
  analyser.getFloatFrequencyData(bins);
  let best = 0;
  for (let i = 1; i < bins.length; i += 1) if (bins[i] > bins[best]) best = i;
  return { hz: (best * context.sampleRate) / analyser.fftSize, db: bins[best] };
}

// How the last wave correlates with a tone of this frequency, whatever its phase: 1 is nothing but that tone.
function correlation(hz) {
  const wave = new Float32Array(analyser.fftSize);
  analyser.getFloatTimeDomainData(wave);
  let sine = 0, cosine = 0, power = 0;
  for (let i = 0; i < wave.length; i += 1) {
    const angle = (2 * Math.PI * hz * i) / context.sampleRate;
    sine += wave[i] * Math.sin(angle);
    cosine += wave[i] * Math.cos(angle);
    power += wave[i] * wave[i];
  }
  return power === 0 ? 0 : Math.sqrt((2 * (sine * sine + cosine * cosine)) / (wave.length * power));
}

const state = { errors: [], levels: [], stalls: 0, gaps: 0, loaded: [] };
audio.addEventListener("waiting", () => (state.stalls += 1));

async function playHls(url, options = {}) {
  const hls = (state.hls = new Hls({ lowLatencyMode: true, ...options }));
  hls.on(Hls.Events.ERROR, (_, data) => state.errors.push(`${data.details} ${data.fatal}`));
  hls.on(Hls.Events.LEVEL_SWITCHED, (_, data) => state.levels.push(hls.levels[data.level].attrs["STABLE-VARIANT-ID"]));
  hls.on(Hls.Events.FRAG_BUFFERED, (_, { frag, part }) => state.loaded.push(`${frag.sn}${part ? "." + part.index : ""}`));
  hls.loadSource(url);
  hls.attachMedia(audio);
  await new Promise((done) => hls.once(Hls.Events.MANIFEST_PARSED, done));
  listen(context.createMediaElementSource(audio));
  await context.resume();
  await audio.play();
}

function level(name) {
  return state.hls.levels.findIndex((each) => each.attrs["STABLE-VARIANT-ID"] === name);
}

function facts() {
  const buffered = [...Array(audio.buffered.length).keys()].map((i) => [audio.buffered.start(i), audio.buffered.end(i)]);
  const { errors, levels, stalls, loaded, hls } = state;
  return {
    time: audio.currentTime,
    latency: hls?.latency,
    date: hls?.playingDate?.getTime(),
    now: Date.now(),
    names: hls?.levels.map((each) => each.attrs["STABLE-VARIANT-ID"]),
    paused: audio.paused,
    buffered, errors, levels, stalls, loaded: loaded.slice(-8),
    ...(analyser ? heard() : {}),
  };
}

Object.assign(window, { playHls, level, facts, correlation, heard, state, audio, context, listen });
window.ready = true;
