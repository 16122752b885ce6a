// Compares corpus/canonical with the independent npm package `canonicalize` over JSON.parse. Prints every vector on
// which the two disagree, and exits 1 if there is one.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import canonicalize from "canonicalize";

// What JSON.parse with the canonicalize package lets pass: it keeps the last of two keys, rounds integers, and has no limits.
const UNSEEN_BY_LIBRARY = new Set(["duplicate_key", "integer_out_of_range", "depth_exceeded", "size_exceeded"]);

const FOLDER = new URL("../../corpus/canonical/", import.meta.url);
const load = (name) => readFileSync(new URL(name, FOLDER), "utf8").trimEnd().split("\n").map((line) => JSON.parse(line));
const bytesOf = (field) => Buffer.from(field, "base64");
const shown = (bytes) => JSON.stringify(bytes.subarray(0, 200).toString()) + (bytes.length > 200 ? "..." : "");

let differences = 0;
function difference(vector, what) {
  differences += 1;
  console.error(`DIFFERENCE ${vector.id} (${vector.description}): ${what}\n  input ${shown(bytesOf(vector.input))}`);
}

/** What a program gets that has only the language's parser and the library; throws where either refuses. */
function libraryForm(bytes) {
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  return Buffer.from(canonicalize(JSON.parse(text)));
}

function checkAccepted(vector) {
  const expected = bytesOf(vector.canonical);
  if (createHash("sha256").update(expected).digest("hex") !== vector.sha256) {
    difference(vector, "sha256 is not that of the canonical form");
  }
  try {
    const found = libraryForm(bytesOf(vector.input));
    if (!found.equals(expected)) {
      difference(vector, `canonicalize has ${shown(found)}, the corpus ${shown(expected)}`);
    }
  } catch (error) {
    difference(vector, `canonicalize refuses it: ${error.message}`);
  }
}

/** Also tells whether the library alone refused the vector. */
function checkRejected(vector) {
  try {
    libraryForm(bytesOf(vector.input));
  } catch {
    return true;
  }
  if (!UNSEEN_BY_LIBRARY.has(vector.reason)) {
    difference(vector, `canonicalize accepts what the corpus rejects as ${vector.reason}`);
  }
  return false;
}

const accepted = load("accepted.jsonl");
const rejected = load("rejected.jsonl");
if (accepted.length < 300 || rejected.length < 100) {
  console.error(`the corpus is incomplete: ${accepted.length} accepted and ${rejected.length} rejected vectors`);
  process.exit(1);
}
accepted.forEach(checkAccepted);
const classes = new Map();
for (const vector of rejected) {
  const count = classes.get(vector.reason) ?? { total: 0, refused: 0 };
  count.total += 1;
  count.refused += checkRejected(vector) ? 1 : 0;
  classes.set(vector.reason, count);
}
console.log(`canonicalize: ${accepted.length} accepted vectors compared, ${rejected.length} rejected ones read`);
for (const [reason, count] of [...classes].sort()) {
  const blind = UNSEEN_BY_LIBRARY.has(reason) ? "  (the library cannot see this class)" : "";
  console.log(`  ${reason}: refused by JSON.parse + canonicalize ${count.refused} of ${count.total}${blind}`);
}

console.log(`node: ${differences} differences`);
process.exitCode = differences > 0 ? 1 : 0;
