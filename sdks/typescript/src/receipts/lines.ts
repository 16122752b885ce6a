/** Lines of a stream of bytes, each bounded, without the white space around them. */

import { Buffer } from "node:buffer";

import type { ExportSource } from "./export.js";
import { BadInput, MAX_LINE_BYTES } from "./wire.js";

const LINE_FEED = 0x0a;
const SPACE = new Set([0x20, 0x09, 0x0a, 0x0c, 0x0d]);

/** Every line; an empty one for a line of white space. */
export async function* linesOf(source: ExportSource): AsyncGenerator<Buffer> {
  let number = 1;
  let parts: Buffer[] = [];
  let size = 0;
  for await (const part of partsOf(source)) {
    let start = 0;
    while (start < part.length) {
      const end = part.indexOf(LINE_FEED, start);
      const piece = part.subarray(start, end < 0 ? part.length : end);
      size += piece.length;
      // The line feed counts.
      if (size + (end < 0 ? 0 : 1) > MAX_LINE_BYTES) throw new BadInput(`line ${number}: it is longer than ${MAX_LINE_BYTES} bytes`);
      parts.push(piece);
      if (end < 0) break;
      yield stripped(Buffer.concat(parts));
      [number, parts, size, start] = [number + 1, [], 0, end + 1];
    }
  }
  if (size > 0) yield stripped(Buffer.concat(parts));
}

async function* partsOf(source: ExportSource): AsyncGenerator<Buffer> {
  if (typeof source === "string" || source instanceof Uint8Array) {
    yield bytesOf(source);
    return;
  }
  for await (const part of source) yield bytesOf(part);
}

function bytesOf(part: Uint8Array | string): Buffer {
  if (typeof part === "string" && !part.isWellFormed()) throw new BadInput("not UTF-8: the text holds half of a surrogate pair");
  return typeof part === "string" ? Buffer.from(part) : Buffer.from(part.buffer, part.byteOffset, part.byteLength);
}

function stripped(line: Buffer): Buffer {
  let [start, end] = [0, line.length];
  while (start < end && SPACE.has(line[start] as number)) start += 1;
  while (end > start && SPACE.has(line[end - 1] as number)) end -= 1;
  return line.subarray(start, end);
}
