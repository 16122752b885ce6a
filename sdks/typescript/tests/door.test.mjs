// The strict door beside the language's own parser and an RFC 8785 library of somebody else, on texts made at random.

import assert from "node:assert/strict";

import { canonicalize, canonicalizeValue, CanonError, parseStrict } from "aegisagent";
import library from "canonicalize";

import { test } from "./feature.mjs";

const PIECES = [
  '"a"', '"b"', '"\\u00e9"', '"\\ud83d\\ude00"', '"\\ud83d"', '"é"', "1", "-0", "1.0", "1e400", "9007199254740992", "0.1", "01", "NaN", "-Infinity", "true", "null",
  "nul", "[", "]", "{", "}", ",", ":", " ", "\n", "\\", '"', "\x01", "\ufeff", "１", "1e", "-", "[]", "{}", '{"a":', "[[", "]]", '"__proto__":',
];
// What the language's own parser lets pass.
const STRICTER = ["duplicate_key", "integer_out_of_range", "number_out_of_range", "depth_exceeded", "lone_surrogate", "invalid_utf8"];

/** The same numbers every time. */
function random(seed) {
  let state = seed;
  const next = () => {
    state = (state * 48_271) % 2_147_483_647;
    return state / 2_147_483_647;
  };
  return { next, below: (end) => Math.floor(next() * end), one: (list) => list[Math.floor(next() * list.length)] };
}

function textAtRandom(rng) {
  const ranges = [[0, 32], [32, 127], [160, 0xd800], [0xe000, 0x110000]];
  return Array.from({ length: rng.below(6) }, () => {
    const [from, to] = rng.one(ranges);
    return String.fromCodePoint(from + rng.below(to - from));
  }).join("");
}

function valueAtRandom(rng, depth = 0) {
  const kind = rng.below(depth < 6 ? 9 : 7);
  if (kind === 7) return Array.from({ length: rng.below(4) }, () => valueAtRandom(rng, depth + 1));
  if (kind === 8) return Object.fromEntries(Array.from({ length: rng.below(4) }, () => [textAtRandom(rng), valueAtRandom(rng, depth + 1)]));
  return [null, true, rng.below(2 ** 53) - 2 ** 52, rng.next() * 1000, rng.next() * 10 ** (rng.below(330) - 320), textAtRandom(rng), -0][kind];
}

function answer(read, text) {
  try {
    return { value: read(text) };
  } catch (error) {
    if (error instanceof CanonError) return { reason: error.reason };
    if (error instanceof SyntaxError) return { reason: "refused" };
    throw error;
  }
}

test("canonicalize", "what passes the door is what the language's parser makes of it, and what that refuses does not pass", () => {
  const rng = random(7);
  const texts = Array.from({ length: 20_000 }, () => Array.from({ length: 1 + rng.below(8) }, () => rng.one(PIECES)).join(""));
  for (let made = 0; made < 3000; made += 1) {
    const text = JSON.stringify(valueAtRandom(rng));
    const place = rng.below(text.length);
    texts.push(text, text.slice(0, place) + rng.one(PIECES) + text.slice(place), text.slice(0, place) + text.slice(place + 1), text.slice(0, place));
  }
  let passed = 0;
  for (const text of texts) {
    const [ours, theirs] = [answer(parseStrict, text), answer(JSON.parse, text)];
    if ("value" in ours) {
      passed += 1;
      assert.deepEqual(ours, theirs, JSON.stringify(text));
    } else if ("value" in theirs) {
      assert.ok(STRICTER.includes(ours.reason), `${ours.reason} for ${JSON.stringify(text)}`);
    }
  }
  assert.ok(passed > 3000 && passed < texts.length);
});

test("canonicalize", "a value, its text and its canonical form are one, and an independent library's", () => {
  const rng = random(8);
  for (let made = 0; made < 3000; made += 1) {
    const value = valueAtRandom(rng);
    const form = Buffer.from(canonicalizeValue(value)).toString("utf8");
    assert.equal(form, Buffer.from(canonicalize(JSON.stringify(value))).toString("utf8"));
    assert.equal(form, library(value));
  }
});

const nested = (levels, opening, closing) => opening.repeat(levels) + '"x"' + closing.repeat(levels);

test("canonicalize", "128 levels pass and 129 do not, however wide", () => {
  for (const [opening, closing] of [["[", "]"], ['{"a":', "}"]]) {
    assert.deepEqual(Object.keys(answer(parseStrict, nested(128, opening, closing))), ["value"]);
    assert.deepEqual(answer(parseStrict, nested(129, opening, closing)), { reason: "depth_exceeded" });
    assert.deepEqual(answer(parseStrict, `[[],${nested(128, opening, closing)},{}]`), { reason: "depth_exceeded" });
  }
  assert.equal(parseStrict(`[${Array(5000).fill("[{}]").join(",")}]`).length, 5000);
});

test("canonicalize", "of several faults the first in reading order is named; before all of them size and UTF-8", () => {
  const expected = {
    '[1e400,{"a":1,"a":2}]': "number_out_of_range", '[{"a":1,"a":2},1e400]': "duplicate_key", '["\\ud800",NaN]': "lone_surrogate",
    '[9007199254740992,"\\ud800"]': "integer_out_of_range", "[NaN,01]": "non_finite_number", "[01,NaN]": "syntax", '{"a":1}x NaN': "trailing_data",
    [`${"[".repeat(200)}{"a":1,"a":2}`]: "depth_exceeded", [`{"a":1,"a":${"[".repeat(200)}`]: "duplicate_key", "": "syntax", "\ufeff1": "syntax",
    '{"__proto__":1,"__proto__":2}': "duplicate_key", '{"\\u005f_proto__":1,"__proto__":2}': "duplicate_key", '"\ud800"': "invalid_utf8",
  };
  for (const [text, reason] of Object.entries(expected)) assert.deepEqual(answer(parseStrict, text), { reason }, text);
  assert.deepEqual(answer(() => canonicalize(Buffer.alloc(10, 0xff), { maxBytes: 5 })), { reason: "size_exceeded" });
  assert.deepEqual(answer(() => canonicalize(Buffer.from([0x5b, 0x31, 0x65, 0x34, 0x30, 0x30, 0x2c, 0xff, 0x5d]))), { reason: "invalid_utf8" });
});

test("canonicalize", "a key that means something to objects is a key like others", () => {
  const value = parseStrict('{"__proto__":{"polluted":true},"constructor":1,"toString":2}');
  assert.deepEqual(Object.keys(value), ["__proto__", "constructor", "toString"]);
  assert.equal(Object.getPrototypeOf(value), Object.prototype);
  assert.equal(value.polluted, undefined);
  assert.equal(Buffer.from(canonicalize('{"b":1,"__proto__":2}')).toString(), '{"__proto__":2,"b":1}');
  assert.equal(Buffer.from(canonicalizeValue(value)).toString(), '{"__proto__":{"polluted":true},"constructor":1,"toString":2}');
});
