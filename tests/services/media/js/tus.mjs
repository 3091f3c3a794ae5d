// Uploads a file to a given URL with tus-js-client, as a program of its own.
//
//   node tus.mjs <upload URL> <path> <chunk size> <bytes after which to give up, 0 for never>
//
// Prints one JSON line: {sent, done, aborted, error}.
import { createReadStream, statSync } from "node:fs";
import { Upload } from "tus-js-client";

const [url, path, chunkSize, stopAfter] = process.argv.slice(2);
const say = (what) => {
  console.log(JSON.stringify(what));
  process.exit(0);
};
let sent = 0;

const upload = new Upload(createReadStream(path), {
  uploadUrl: url,
  uploadSize: statSync(path).size,
  chunkSize: Number(chunkSize),
  retryDelays: [50, 200],
  onProgress(bytes) {
    sent = bytes;
  },
  onChunkComplete(_size, accepted) {
    if (Number(stopAfter) && accepted >= Number(stopAfter)) {
      upload.abort().then(() => say({ sent: accepted, done: false, aborted: true }));
    }
  },
  onError(error) {
    say({ sent, done: false, error: String(error) });
  },
  onSuccess() {
    say({ sent, done: true });
  },
});
upload.start();
