// Every test names the features of sdks/features.json that it proves. Each file's process writes how many of a feature's tests there are, and how
// many passed; `proved.mjs` makes the list of those of which at least one test ran and every one passed.

import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import nodeTest from "node:test";

import { REPOSITORY } from "./where.mjs";

const known = JSON.parse(readFileSync(path.join(REPOSITORY, "sdks/features.json"), "utf8"));
const counted = {};
// A test that never ends fails, and leaves the others to be run.
const LONGEST_MS = 600_000;
// Of the cases of one table at once: most of their time they wait.
const AT_ONCE = 8;

function counting(features, work) {
  const named = [features].flat();
  for (const name of named) {
    if (!(name in known)) throw new Error(`sdks/features.json does not know ${name}`);
    counted[name] ??= { tests: 0, passed: 0 };
    counted[name].tests += 1;
  }
  return async (...given) => {
    await work(...given);
    for (const name of named) counted[name].passed += 1;
  };
}

export function test(features, name, work) {
  nodeTest(name, { timeout: LONGEST_MS }, counting(features, work));
}

/** One test for each entry of a table, several at once: they must not share anything. */
export function cases(features, name, table, work) {
  const entries = Object.entries(table);
  if (entries.length === 0) throw new Error(`${name} has no cases`);
  const each = entries.map(([label, value]) => [label, counting(features, () => work(value, label))]);
  nodeTest(name, { concurrency: AT_ONCE, timeout: LONGEST_MS }, async (t) => {
    await Promise.all(each.map(([label, run]) => t.test(label, run)));
  });
}

process.on("exit", () => {
  const folder = process.env.AEGIS_SDK_FEATURES;
  if (folder) writeFileSync(path.join(folder, `${path.basename(process.argv[1])}.json`), JSON.stringify(counted));
});
