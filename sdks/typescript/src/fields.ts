/** Reads a reply field by field: the type it must have, or BadReply. Fields that this version does not know are ignored. */

import type { Json } from "./canon.js";
import { isTreeObject } from "./canon.js";
import type { Tree, TreeObject } from "./door.js";
import { BadReply } from "./errors.js";
import { hasOwn, isArray, parse } from "./natives.js";
import { plainText } from "./writer.js";

const HASH = /^[0-9a-f]{64}$/;
// Longest that the server takes back, characters. One is kept for each run, so a longer one would also cost memory without end.
const LONGEST_TRUST_TOKEN = 4096;
const ID = /^(?!\.{1,2}$)[A-Za-z0-9_.:-]{1,256}$/;

/** One JSON object of a reply. */
export class Fields {
  readonly tree: TreeObject;

  constructor(value: Tree | undefined, private readonly what: string) {
    if (!isTreeObject(value)) throw new BadReply(`${what} is not an object`);
    this.tree = value;
  }

  private get(name: string): Tree | undefined {
    return hasOwn(this.tree, name) ? this.tree[name] : undefined;
  }

  private bad(name: string, word: string): BadReply {
    return new BadReply(`\`${name}\` of ${this.what} is not ${word}`);
  }

  /** True where a field that must be there is null. */
  isNull(name: string): boolean {
    if (!hasOwn(this.tree, name)) throw new BadReply(`${this.what} has no \`${name}\``);
    return this.tree[name] === null;
  }

  /** True where a field that may be missing is null or missing. */
  isAbsent(name: string): boolean {
    return (this.get(name) ?? null) === null;
  }

  /** A text. */
  text(name: string): string {
    const value = this.get(name);
    if (typeof value !== "string") throw this.bad(name, "a text");
    return value;
  }

  /** A text, or null. */
  maybeText(name: string): string | null {
    return this.isNull(name) ? null : this.text(name);
  }

  /** True or false. */
  flag(name: string): boolean {
    const value = this.get(name);
    if (typeof value !== "boolean") throw this.bad(name, "true or false");
    return value;
  }

  /** A whole number, written as one. */
  integer(name: string): number {
    const value = this.get(name);
    if (typeof value !== "number" || !Number.isInteger(value)) throw this.bad(name, "a whole number");
    return value;
  }

  /** A whole number of seconds, none of them negative; null where it is null or missing. */
  maybeSeconds(name: string): number | null {
    if (this.isAbsent(name)) return null;
    const seconds = this.integer(name);
    if (seconds < 0) throw this.bad(name, "a number of seconds");
    return seconds;
  }

  /** 64 lower-case hex digits. */
  hash(name: string): string {
    const text = this.text(name);
    if (!HASH.test(text)) throw this.bad(name, "a hash");
    return text;
  }

  /** A token that is to be sent back. */
  trustToken(name: string): string {
    const text = this.text(name);
    if (text.length > LONGEST_TRUST_TOKEN) throw this.bad(name, "a token that is taken back");
    return text;
  }

  /** A hash, or null. */
  maybeHash(name: string): string | null {
    return this.isNull(name) ? null : this.hash(name);
  }

  /** An id that the server made. It goes into paths, errors and logs. */
  id(name: string): string {
    const text = this.text(name);
    if (!ID.test(text)) throw this.bad(name, "an id");
    return text;
  }

  /** A list. */
  items(name: string): Tree[] {
    const value = this.get(name);
    if (!isArray(value)) throw this.bad(name, "a list");
    return value;
  }

  /** A list of texts. */
  texts(name: string): readonly string[] {
    return this.items(name).map((item) => {
      if (typeof item !== "string") throw this.bad(name, "a list of texts");
      return item;
    });
  }

  /** An object, to be read in turn. */
  fields(name: string): Fields {
    return new Fields(this.get(name), `\`${name}\` of ${this.what}`);
  }

  /** An object as it is. */
  object(name: string): Json {
    return ordinary(this.fields(name).tree);
  }
}

/** An ordinary object of what the door has read. */
export function ordinary(tree: TreeObject): Json {
  return parse(plainText(tree)) as Json;
}
