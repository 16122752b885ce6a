// proved.mjs FOLDER: the sorted list of the features of which at least one test ran and every one passed, from what each test file has written.

import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";

const folder = process.argv[2];
const total = new Map();
for (const name of readdirSync(folder)) {
  for (const [feature, { tests, passed }] of Object.entries(JSON.parse(readFileSync(path.join(folder, name), "utf8")))) {
    const sum = total.get(feature) ?? { tests: 0, passed: 0 };
    total.set(feature, { tests: sum.tests + tests, passed: sum.passed + passed });
  }
}
const proved = [...total].filter(([, { tests, passed }]) => tests > 0 && tests === passed).map(([feature]) => feature);
console.log(JSON.stringify(proved.sort()));
