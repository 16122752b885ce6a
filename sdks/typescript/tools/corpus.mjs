// Prints what this SDK makes of vectors as corpus/canonical has them, one JSON object a line: {"id", "canonical_sha256"} or {"id", "reason"}.
//
//     node tools/corpus.mjs FILE...        after the package was built

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";

import { canonicalize, CanonError } from "../dist/index.js";

function answer(vector) {
  try {
    const form = canonicalize(Buffer.from(vector.input, "base64"), { maxBytes: vector.limits?.max_bytes });
    return { canonical_sha256: createHash("sha256").update(form).digest("hex") };
  } catch (error) {
    if (error instanceof CanonError) return { reason: error.reason };
    throw error;
  }
}

for (const file of process.argv.slice(2)) {
  for await (const line of createInterface({ input: createReadStream(file), crlfDelay: Infinity })) {
    if (line === "") continue;
    const vector = JSON.parse(line);
    console.log(JSON.stringify({ id: vector.id, ...answer(vector) }));
  }
}
