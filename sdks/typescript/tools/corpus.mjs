// Prints what this SDK makes of the files of the corpus, one JSON object a line, after the package was built.
//
//     node tools/corpus.mjs FILE...               of corpus/canonical: {"id", "canonical_sha256"} or {"id", "reason"}
//     node tools/corpus.mjs --receipts FILE...    of corpus/receipts/cases.jsonl: {"id", "exit", "report"}, what the program of this SDK says

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";

import { canonicalize, CanonError, ConfigError } from "../dist/index.js";
import { BadInput, Roots, verifyExport } from "../dist/receipts/index.js";

const BAD_INPUT = { exit: 2, report: null };

function answer(vector) {
  try {
    const form = canonicalize(Buffer.from(vector.input, "base64"), { maxBytes: vector.limits?.max_bytes });
    return { canonical_sha256: createHash("sha256").update(form).digest("hex") };
  } catch (error) {
    if (error instanceof CanonError) return { reason: error.reason };
    throw error;
  }
}

// The failure's message is for people.
async function verdict(vector) {
  try {
    const report = await verifyExport(Buffer.from(vector.input, "base64"), Roots.read(vector.roots));
    const { message: _message, ...failure } = report.failure ?? {};
    return { exit: report.verdict === "invalid" ? 1 : 0, report: { ...report, failure: report.failure && failure } };
  } catch (error) {
    if (error instanceof BadInput || error instanceof ConfigError) return BAD_INPUT;
    throw error;
  }
}

const ofReceipts = process.argv[2] === "--receipts";
for (const file of process.argv.slice(ofReceipts ? 3 : 2)) {
  for await (const line of createInterface({ input: createReadStream(file), crlfDelay: Infinity })) {
    if (line === "") continue;
    const vector = JSON.parse(line);
    console.log(JSON.stringify({ id: vector.id, ...(ofReceipts ? await verdict(vector) : answer(vector)) }));
  }
}
