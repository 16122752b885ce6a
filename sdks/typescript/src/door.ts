/**
 * The strict door, character by character: a JSON text to a tree, or the reason for its refusal, in reading order.
 *
 * A tree has objects without a prototype, so that no key of a text (`__proto__` among them) and nothing that hangs on `Object.prototype` means
 * anything to it, and keeps whole numbers that were written as doubles (`1.0`, `1e20`) apart from integers.
 */

import { CanonError } from "./errors.js";
import { charCodeAt, create, fromCharCode, hasOwn, isAdded, isFinite, isInteger, isSafeInteger, slice, startsWith } from "./natives.js";

export const MAX_DEPTH = 128;
// Digits of 2^53 − 1: a longer literal is out of range.
const INTEGER_DIGITS = 16;

/** A whole number that was written with a fraction or an exponent. */
export class Double {
  constructor(readonly value: number) {}
}

export interface TreeObject {
  [key: string]: Tree;
}
export type Tree = null | boolean | number | string | Double | Tree[] | TreeObject;

/** An empty object of a tree. */
export const emptyObject = (): TreeObject => create(null) as TreeObject;

/** The tree of a JSON text; CanonError with the first offence in reading order. */
export function read(text: string): Tree {
  const reader = new Reader(text);
  const value = reader.value(0);
  reader.skipSpace();
  if (reader.at < text.length) throw new CanonError("trailing_data");
  return value;
}

const SHORT: Readonly<Record<number, string>> = {
  0x22: '"', 0x5c: "\\", 0x2f: "/", 0x62: "\b", 0x66: "\f", 0x6e: "\n", 0x72: "\r", 0x74: "\t",
};
const NOT_FINITE = ["NaN", "Infinity", "-Infinity"];

class Reader {
  at = 0;

  constructor(private readonly text: string) {}

  /** The code unit here; NaN at the end. */
  private peek(): number {
    return charCodeAt(this.text, this.at);
  }

  skipSpace(): void {
    for (;;) {
      const unit = this.peek();
      if (unit !== 0x20 && unit !== 0x0a && unit !== 0x0d && unit !== 0x09) return;
      this.at += 1;
    }
  }

  private nextSignificant(): number {
    this.skipSpace();
    return this.peek();
  }

  private expect(unit: number): void {
    if (this.nextSignificant() !== unit) throw new CanonError("syntax");
    this.at += 1;
  }

  value(depth: number): Tree {
    const first = this.nextSignificant();
    if (first === 0x7b) return this.object(depth);
    if (first === 0x5b) return this.array(depth);
    if (first === 0x22) return this.string();
    for (const word of NOT_FINITE) if (startsWith(this.text, word, this.at)) throw new CanonError("non_finite_number");
    if (first === 0x2d || isDigit(first)) return this.number();
    if (startsWith(this.text, "true", this.at)) return this.word(4, true);
    if (startsWith(this.text, "false", this.at)) return this.word(5, false);
    if (startsWith(this.text, "null", this.at)) return this.word(4, null);
    throw new CanonError("syntax");
  }

  private word<T>(length: number, value: T): T {
    this.at += length;
    return value;
  }

  private enter(depth: number): number {
    if (depth >= MAX_DEPTH) throw new CanonError("depth_exceeded");
    this.at += 1;
    return depth + 1;
  }

  private object(outer: number): TreeObject {
    const depth = this.enter(outer);
    const members = emptyObject();
    if (this.nextSignificant() === 0x7d) return this.word(1, members);
    for (;;) {
      if (this.nextSignificant() !== 0x22) throw new CanonError("syntax");
      const key = this.string();
      if (hasOwn(members, key)) throw new CanonError("duplicate_key");
      this.expect(0x3a);
      members[key] = this.value(depth);
      if (this.nextSignificant() === 0x7d) return this.word(1, members);
      this.expect(0x2c);
    }
  }

  private array(outer: number): Tree[] {
    const depth = this.enter(outer);
    const items: Tree[] = [];
    if (this.nextSignificant() === 0x5d) return this.word(1, items);
    for (;;) {
      if (!isAdded(items, this.value(depth))) throw new CanonError("unsupported_type", "an array, whose items somebody takes");
      if (this.nextSignificant() === 0x5d) return this.word(1, items);
      this.expect(0x2c);
    }
  }

  private string(): string {
    this.at += 1;
    let text = "";
    let start = this.at;
    for (;;) {
      const unit = this.peek();
      if (unit === 0x22) {
        text += slice(this.text, start, this.at);
        this.at += 1;
        return text;
      }
      if (unit === 0x5c) {
        text += slice(this.text, start, this.at) + this.escape();
        start = this.at;
      } else if (unit >= 0x20) {
        this.at += 1;
      } else {
        // A control character, or the end of the text (NaN).
        throw new CanonError("syntax");
      }
    }
  }

  private escape(): string {
    this.at += 1;
    const kind = this.peek();
    if (kind !== 0x75) {
      const short = hasOwn(SHORT, kind) ? SHORT[kind] : undefined;
      if (short === undefined) throw new CanonError("syntax");
      return this.word(1, short);
    }
    const first = this.codeUnit();
    if (first < 0xd800 || first > 0xdfff) return fromCharCode(first);
    if (first >= 0xdc00 || !startsWith(this.text, "\\u", this.at)) throw new CanonError("lone_surrogate");
    this.at += 1;
    const second = this.codeUnit();
    if (second < 0xdc00 || second > 0xdfff) throw new CanonError("lone_surrogate");
    return fromCharCode(first, second);
  }

  /** Reads `uXXXX` from its `u`. */
  private codeUnit(): number {
    let value = 0;
    for (let place = 1; place <= 4; place += 1) {
      const digit = hexDigit(charCodeAt(this.text, this.at + place));
      if (digit < 0) throw new CanonError("syntax");
      value = value * 16 + digit;
    }
    this.at += 5;
    return value;
  }

  private digits(): void {
    const start = this.at;
    while (isDigit(this.peek())) this.at += 1;
    if (this.at === start) throw new CanonError("syntax");
  }

  private skipOne(one: number, other: number): boolean {
    const unit = this.peek();
    if (unit !== one && unit !== other) return false;
    this.at += 1;
    return true;
  }

  private number(): number | Double {
    const start = this.at;
    this.skipOne(0x2d, 0x2d);
    const firstDigit = this.at;
    this.digits();
    const digits = this.at - firstDigit;
    if (digits > 1 && charCodeAt(this.text, firstDigit) === 0x30) throw new CanonError("syntax");
    const hasFraction = this.skipOne(0x2e, 0x2e);
    if (hasFraction) this.digits();
    const hasExponent = this.skipOne(0x65, 0x45);
    if (hasExponent) {
      this.skipOne(0x2b, 0x2d);
      this.digits();
    }
    // The grammar is checked, so this is the nearest double of the literal, however long it is.
    const value = +slice(this.text, start, this.at);
    if (hasFraction || hasExponent) {
      if (!isFinite(value)) throw new CanonError("number_out_of_range");
      return isInteger(value) ? new Double(value) : value;
    }
    if (digits > INTEGER_DIGITS || !isSafeInteger(value)) throw new CanonError("integer_out_of_range");
    return value;
  }
}

function isDigit(unit: number): boolean {
  return unit >= 0x30 && unit <= 0x39;
}

function hexDigit(unit: number): number {
  if (isDigit(unit)) return unit - 0x30;
  const lower = unit | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x61 + 10 : -1;
}
