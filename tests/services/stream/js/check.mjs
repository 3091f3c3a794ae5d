// What readers by others make of playlists and MP4, given one JSON value a line on stdin:
//   {"playlist": text}       → {"playlist": what hls-parser, strict, has read of it}
//   {"mp4": base64}          → {"mp4": what mp4box has read: tracks, and of each sample its time, size and duration}
// or {"error": what is wrong with it}.
import * as hls from "hls-parser";
import { createFile } from "mp4box";
import { createInterface } from "node:readline";

hls.setOptions({ strictMode: true });

function mp4(bytes) {
  const file = createFile();
  const samples = [];
  let tracks = [];
  let failed;
  file.onError = (module, message) => (failed = `${module}: ${message}`);
  file.onReady = (info) => {
    tracks = info.tracks.map(({ id, codec, timescale, audio }) => ({ id, codec, timescale, audio }));
    for (const { id } of info.tracks) file.setExtractionOptions(id, null, { nbSamples: 1 });
    file.start();
  };
  file.onSamples = (id, user, got) => {
    for (const { dts, duration, size, is_sync } of got) samples.push({ dts, duration, size, is_sync });
  };
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  buffer.fileStart = 0;
  file.appendBuffer(buffer, true);
  file.flush();
  if (failed) throw new Error(failed);
  const boxes = (list) => list.map((box) => (box.boxes ? [box.type, boxes(box.boxes)] : box.type));
  return { tracks, samples, boxes: boxes(file.boxes) };
}

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  let said;
  try {
    said = "playlist" in asked ? { playlist: hls.parse(asked.playlist) } : { mp4: mp4(Buffer.from(asked.mp4, "base64")) };
  } catch (error) {
    said = { error: String(error) };
  }
  console.log(JSON.stringify(said));
}
