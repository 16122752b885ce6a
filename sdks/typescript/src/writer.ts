/** Writes trees: the canonical form of RFC 8785, and the text that is sent, in which nothing is converted. */

import { Double, type Tree } from "./door.js";
import { CanonError } from "./errors.js";
import { isAdded, isArray, join, keys, sort, stringify } from "./natives.js";

/** The canonical form: keys sorted by their UTF-16 code units, numbers and texts as ECMAScript writes them (RFC 8785 section 3.2). */
export function canonicalText(tree: Tree): string {
  return written(tree, true);
}

/** The same values in the order they stand in, −0 included: what a reader makes of it is what it was made of. */
export function plainText(tree: Tree): string {
  return written(tree, false);
}

function add(parts: string[], part: string): void {
  if (!isAdded(parts, part)) throw new CanonError("unsupported_type", "an array, whose items somebody takes");
}

function written(tree: Tree, isCanonical: boolean): string {
  // `stringify` looks for no `toJSON` in a text or a number, so nothing but the value decides what is written.
  if (typeof tree === "string") return stringify(tree);
  if (tree === null) return "null";
  if (typeof tree === "boolean") return tree ? "true" : "false";
  if (typeof tree === "number") return tree === 0 && 1 / tree < 0 && !isCanonical ? "-0.0" : stringify(tree);
  if (tree instanceof Double) return written(tree.value, isCanonical);
  const parts: string[] = [];
  if (isArray(tree)) {
    for (let place = 0; place < tree.length; place += 1) add(parts, written(tree[place] as Tree, isCanonical));
    return `[${join(parts, ",")}]`;
  }
  const names = keys(tree);
  if (isCanonical) sort(names);
  for (let place = 0; place < names.length; place += 1) {
    const name = names[place] as string;
    add(parts, `${stringify(name)}:${written(tree[name] as Tree, isCanonical)}`);
  }
  return `{${join(parts, ",")}}`;
}
