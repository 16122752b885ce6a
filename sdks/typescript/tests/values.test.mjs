// JavaScript's own hazards: values that say one thing when they are hashed and another when they are run, and a world that was changed around them.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import vm from "node:vm";

import { actionHash, canonicalizeValue, CanonError, DeniedUnfreezable, protect } from "aegisagent";

import { call, DEFAULTS, recorder, withClient } from "./calling.mjs";
import { withEdge } from "./fake.mjs";
import { cases, test } from "./feature.mjs";

class Money {
  amount = 1;
}
class List extends Array {}
class Lying {
  toJSON() {
    return 1;
  }
}
let looked = 0;
const proxied = (target) => new Proxy(target, { get: (...given) => (looked += 1, Reflect.get(...given)), ownKeys: (of) => (looked += 1, Reflect.ownKeys(of)) });
const circle = [];
circle.push(circle);
const nest = (levels) => Array.from({ length: levels }).reduce((inner) => [inner], "x");
// Forty levels that refer to the same thing twice: a terabyte when it is written.
const bomb = Array.from({ length: 40 }).reduce((inner) => [inner, inner], "x");

const UNFREEZABLE = {
  "NaN": [NaN, "non_finite_number"], "an infinity": [-Infinity, "non_finite_number"], "2^53": [2 ** 53, "integer_out_of_range"],
  "−2^60": [-(2 ** 60), "integer_out_of_range"], "1e21": [1e21, "integer_out_of_range"], "a BigInt": [1n, "unsupported_type"], "undefined": [undefined, "unsupported_type"],
  "undefined within": [{ a: undefined }, "unsupported_type"], "a symbol": [Symbol("a"), "unsupported_type"], "a function": [() => 1, "unsupported_type"],
  "a symbol key": [{ [Symbol("a")]: 1 }, "unsupported_type"], "half a surrogate pair": ["\ud800", "lone_surrogate"], "half a pair as a key": [{ "\udfff": 1 }, "lone_surrogate"],
  "a Date": [new Date(0), "unsupported_type"], "a Map": [new Map(), "unsupported_type"], "a Set": [new Set(), "unsupported_type"],
  "bytes": [Buffer.from("a"), "unsupported_type"], "a typed array": [new Float64Array(1), "unsupported_type"], "a regular expression": [/a/, "unsupported_type"],
  "an error": [new Error("a"), "unsupported_type"], "a promise": [Promise.resolve(1), "unsupported_type"], "a generator": [(function* () { yield 1; })(), "unsupported_type"],
  "a boxed text": [Object("rm -rf"), "unsupported_type"], "a boxed number": [Object(1), "unsupported_type"], "an object of a class": [new Money(), "unsupported_type"],
  "an array of a class": [List.from([1]), "unsupported_type"], "a toJSON of its own": [{ toJSON: () => 1 }, "unsupported_type"], "a toJSON of its class": [new Lying(), "unsupported_type"],
  "an array with a toJSON": [Object.assign([1], { toJSON: () => 2 }), "unsupported_type"], "a getter": [{ get a() { looked += 1; return 1; } }, "unsupported_type"],
  "a setter": [Object.defineProperty({}, "a", { set() {}, enumerable: true }), "unsupported_type"], "a getter in an array": [Object.defineProperty([1], 0, { get: () => 1 }), "unsupported_type"],
  "what is hidden": [Object.defineProperty({}, "a", { value: 1 }), "unsupported_type"], "a prototype by literal": [{ __proto__: { a: 1 } }, "unsupported_type"],
  "a prototype that is plain": [Object.create({ a: 1 }), "unsupported_type"], "a proxy of an object": [proxied({ a: 1 }), "unsupported_type"], "a proxy of an array": [proxied([1]), "unsupported_type"],
  "a proxy within": [{ a: [proxied({})] }, "unsupported_type"], "a sparse array": [[1, , 2], "unsupported_type"], "an array that is longer than it is": [new Array(3), "unsupported_type"],
  "an array with a property": [Object.assign([1], { a: 1 }), "unsupported_type"], "a hole that is filled by a property": [Object.assign([1, , 2], { a: 1 }), "unsupported_type"],
  "an array of another realm": [vm.runInNewContext("[1]"), "unsupported_type"], "an object of another realm": [vm.runInNewContext("({a: 1})"), "unsupported_type"],
  "a circle": [circle, "depth_exceeded"], "127 levels": [nest(127), "depth_exceeded"], "one thing many times": [bomb, "size_exceeded"], "too large": ["x".repeat(1 << 20), "size_exceeded"],
  "an array of a million": [Array(2 ** 21).fill(0), "size_exceeded"], "arguments": [(function () { return arguments; })(1), "unsupported_type"],
  "a module": [await import("node:path"), "unsupported_type"],
};

cases("protect-unfreezable", "an argument that is not plain JSON is a denial, and nothing is sent", UNFREEZABLE, async ([value, code]) => {
  await withEdge(async (edge) => {
    const [before, fn] = [looked, recorder()];
    await assert.rejects(call(edge.url, fn, { note: value }), (error) => {
      assert.ok(error instanceof DeniedUnfreezable, String(error));
      assert.equal(error.code, code);
      assert.match(error.message, /parameter `note`|larger/);
      assert.doesNotMatch(error.message, /rm -rf/);
      return true;
    });
    assert.deepEqual([fn.calls, edge.seen, looked], [[], [], before], "nothing of it is called");
  });
});

const NO_PARAMETERS = {
  "a list": [], "a text": "a", "null": null, "undefined": undefined, "a class": new Money(), "a proxy": proxied({}), "a function": () => 1, "a date": new Date(0),
};
cases("protect-unfreezable", "what is no object of named parameters is a denial, and nothing is sent", NO_PARAMETERS, async (given) => {
  await withEdge(async (edge) => {
    const fn = recorder();
    await withClient(edge.url, async (client) => {
      const protectedCall = protect(client, DEFAULTS, fn);
      await assert.rejects(protectedCall(given), { name: "DeniedUnfreezable", code: "unsupported_type" });
      await assert.rejects(protectedCall({}, given), TypeError);
    });
    assert.deepEqual([fn.calls, edge.seen], [[], []]);
  });
});

test("protect-unfreezable", "126 levels, a null prototype and a frozen object are fine", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    for (const value of [nest(126), Object.assign(Object.create(null), { a: 1 }), Object.freeze({ a: Object.freeze([1]) })]) await call(edge.url, fn, { note: value });
    assert.deepEqual(fn.calls.map(({ note }) => note), [nest(126), { a: 1 }, { a: [1] }]);
    assert.deepEqual(edge.sent("authorize").map((asked) => asked.tool_call.parameters), fn.calls);
  });
});

test("protect-freeze", "numbers and texts arrive as they were given", async () => {
  const values = [0, -1, -0, 0.1, 1e-7, 5e-324, 1.7976931348623157e308 / 1e300, 2 ** 53 - 1, -(2 ** 53) + 1, true, null, "é", "😀", "\u2028", "a\0b", "\u007f", "", { "": [{}] }];
  await withEdge(async (edge) => {
    const seen = recorder();
    await call(edge.url, seen, { values });
    assert.deepEqual(seen.calls, [{ values }]);
    assert.ok(Object.is(seen.calls[0].values[2], -0));
    // As the words of a JSON text that every language reads alike.
    assert.match(edge.seen[0].text, /"values":\[0,-1,-0\.0,0\.1,1e-7,5e-324,/);
  });
});

test("protect-freeze", "a key that means something to objects is a parameter like others, and changes no object", async () => {
  await withEdge(async (edge) => {
    const given = JSON.parse('{"__proto__":{"admin":true},"constructor":{"prototype":{"admin":true}},"a":{"__proto__":1}}');
    const seen = recorder();
    await call(edge.url, seen, given, { acceptEdits: true });
    assert.deepEqual(Object.keys(seen.calls[0]), ["__proto__", "constructor", "a"]);
    assert.equal(Object.getPrototypeOf(seen.calls[0]), Object.prototype);
    assert.equal(JSON.stringify(seen.calls[0]), JSON.stringify(given));
    assert.equal({}.admin, undefined);
    const asked = edge.sent("authorize")[0].tool_call;
    assert.equal(actionHash("crm", "update_note", "customer-1", true, asked.parameters), edge.sent("outcome")[0].executed_hash);
  });
});

test("protect-freeze", "what runs is made anew: neither the caller's objects nor another call's", async () => {
  await withEdge(async (edge) => {
    const seen = recorder();
    await withClient(edge.url, async (client) => {
      const protectedCall = protect(client, { ...DEFAULTS, defaults: { tags: ["a"] } }, (parameters) => {
        seen(structuredClone(parameters));
        parameters.tags.push("changed");
        parameters.note.text = "changed";
      });
      const note = { text: "a" };
      await protectedCall({ note });
      await protectedCall({ note });
      assert.deepEqual(note, { text: "a" });
    });
    assert.deepEqual(seen.calls, [{ note: { text: "a" }, tags: ["a"] }, { note: { text: "a" }, tags: ["a"] }]);
  });
});

test("canonicalize", "values beyond plain JSON have no canonical form", () => {
  for (const [value, reason] of Object.values(UNFREEZABLE)) {
    // 127 levels are too many only within an action.
    if (reason === "depth_exceeded" && value !== circle) continue;
    assert.throws(() => canonicalizeValue(value), (error) => error instanceof CanonError && error.reason === reason);
  }
  assert.equal(Buffer.from(canonicalizeValue(-0)).toString(), "0");
  assert.equal(Buffer.from(canonicalizeValue({ b: 1, a: [1e-7, "é"] })).toString(), '{"a":[1e-7,"é"],"b":1}');
  assert.throws(() => canonicalizeValue("x".repeat(10), { maxBytes: 11 }), { reason: "size_exceeded" });
  assert.equal(canonicalizeValue("x".repeat(10), { maxBytes: 12 }).length, 12);
});

// A program whose dependencies have replaced what safety hangs on, after this package was loaded, says what was hashed, sent and run.
const CHANGED_WORLD = `
import assert from "node:assert/strict";
import { actionHash, protect, Client, sourceTrust } from "aegisagent";
import { FakeEdge } from "./fake.mjs";
import { TOKEN } from "./fake.mjs";
const edge = await new FakeEdge().start();
const client = new Client({ url: edge.url, token: TOKEN });
const given = { amount: 1, tags: ["b", "a"], nested: { z: 1, a: 2 }, note: "\\u0001" };
const expected = actionHash("crm", "refund", null, true, given);
const real = { stringify: JSON.stringify, parse: JSON.parse };
const ran = [];
const refund = protect(client, { tool: "crm", action: "refund" }, (parameters) => { ran.push(parameters); return "done"; });
CHANGE
const result = await sourceTrust("trusted_internal_unsigned", () => refund(given));
RESTORE
assert.equal(result, "done");
assert.deepEqual(ran, [{ amount: 1, tags: ["b", "a"], nested: { z: 1, a: 2 }, note: "\\u0001" }]);
assert.deepEqual(real.parse(edge.seen[0].text).tool_call.parameters, ran[0]);
assert.equal(real.parse(edge.seen.at(-1).text).executed_hash, expected);
console.log("the same");
client.close();
await edge.close();
`;
const RESTORE = "Object.assign(JSON, real);";
const REPLACED = {
  "JSON.stringify": ['JSON.stringify = (value, ...rest) => real.stringify(value, ...rest)?.replace(\'"amount":1\', \'"amount":1000\');', RESTORE],
  "JSON.parse": ['JSON.parse = (text, ...rest) => { const value = real.parse(text, ...rest); if (value?.parameters) value.parameters.amount = 1000; return value; };', RESTORE],
  "a toJSON for all": ["Object.prototype.toJSON = function () { return this === given ? { amount: 1000 } : this; };", "delete Object.prototype.toJSON;"],
  "a toJSON for texts": ["String.prototype.toJSON = () => 'swapped';", "delete String.prototype.toJSON;"],
  "Object.keys": ["const keys = Object.keys; Object.keys = (of) => keys(of).filter((name) => name !== 'amount');", "Object.keys = keys;"],
  "Reflect.ownKeys": ["const keys = Reflect.ownKeys; Reflect.ownKeys = (of) => keys(of).filter((name) => name !== 'amount');", "Reflect.ownKeys = keys;"],
  "Array.isArray": ["const isArray = Array.isArray; Array.isArray = (value) => value !== given.tags && isArray(value);", "Array.isArray = isArray;"],
  "String.prototype.charCodeAt": ["const real1 = String.prototype.charCodeAt; String.prototype.charCodeAt = function (at) { const unit = real1.call(this, at); return unit === 49 ? 50 : unit; };", "String.prototype.charCodeAt = real1;"],
  "Array.prototype.sort": ["const sort = Array.prototype.sort; Array.prototype.sort = function () { return this; };", "Array.prototype.sort = sort;"],
  "Array.prototype.join": ["const join = Array.prototype.join; Array.prototype.join = function (...given) { return join.apply(this, given).replace('\"amount\":1', '\"amount\":1000'); };", "Array.prototype.join = join;"],
  "a setter for all": ["Object.defineProperty(Object.prototype, 'amount', { set() {}, get() { return 1000; }, configurable: true });", "delete Object.prototype.amount;"],
  "settings for all": ["Object.assign(Object.prototype, { acceptEdits: true, failOpenReads: true, mutatesState: false, decision: 'allow', approval: {}, dry_run: true, edited_tool_call: {} });",
    "for (const name of ['acceptEdits', 'failOpenReads', 'mutatesState', 'decision', 'approval', 'dry_run', 'edited_tool_call']) delete Object.prototype[name];"],
  "the HTTP library's settings": [
    "Object.assign(Object.prototype, { socketPath: '/nowhere', auth: 'a:b', host: '192.0.2.1', port: 9, path: '/elsewhere', headers: { authorization: 'x' }, agent: false, lookup() { throw 1; }, createConnection() { throw 1; } });",
    "for (const name of ['socketPath', 'auth', 'host', 'port', 'path', 'headers', 'agent', 'lookup', 'createConnection']) delete Object.prototype[name];",
  ],
  "Array.prototype.includes": ["const includes = Array.prototype.includes; Array.prototype.includes = () => true;", "Array.prototype.includes = includes;"],
  "hashes": ["const hash = Object.getPrototypeOf((await import('node:crypto')).createHash('sha256')); const real2 = hash.digest; hash.digest = () => 'ab'.repeat(32);", "hash.digest = real2;"],
  "the HTTP library": ["const http = (await import('node:http')).default; http.request = () => { throw 1; };", ""],
  "the trust context": ["const { AsyncLocalStorage } = await import('node:async_hooks'); const get = AsyncLocalStorage.prototype.getStore; AsyncLocalStorage.prototype.getStore = function () { const store = get.call(this); return store?.label ? { ...store, label: 'malicious_suspected' } : store; };", "AsyncLocalStorage.prototype.getStore = get; assert.equal(real.parse(edge.seen[0].text).context.source_trust, 'trusted_internal_unsigned');"],
  "String.fromCharCode": ["const real3 = String.fromCharCode; String.fromCharCode = () => 'a';", "String.fromCharCode = real3;"],
  "the clock": ["const now = Date.now; Date.now = () => 0; performance.now = () => 0;", "Date.now = now;"],
};

cases(["protect-freeze", "action-hash"], "what is replaced after this package was loaded changes nothing", REPLACED, ([change, restore]) => {
  const program = CHANGED_WORLD.replace("CHANGE", () => change).replace("RESTORE", () => restore);
  const done = spawnSync(process.execPath, ["--input-type=module", "--eval", program], { cwd: import.meta.dirname, encoding: "utf8", timeout: 60_000 });
  assert.deepEqual([done.stdout, done.stderr], ["the same\n", ""]);
});

// The same of a function whose arguments have an order, one of which is passed on.
const CHANGED_ORDER = `
import assert from "node:assert/strict";
import { actionHash, protect, Client } from "aegisagent";
import { FakeEdge, TOKEN } from "./fake.mjs";
const edge = await new FakeEdge().start();
const client = new Client({ url: edge.url, token: TOKEN });
const shop = { name: "shop" };
const expected = { amount: 1, currency: "EUR", tags: ["a", "b"] };
const [ran, params] = [[], ["shop", "amount", "currency", "...tags"]];
const refund = protect(client, { tool: "crm", action: "refund", params, passedOn: ["shop"], defaults: { currency: "EUR" } }, (...given) => { ran[0] = given; return "done"; });
const swapped = (value) => (value === 1 ? 1000 : value);
const isOurs = (list) => list[0] === shop || (list[0] === "a" && list[1] === "b");
const real = OF.METHOD;
OF.METHOD = function (...given) {
  const say = () => Reflect.apply(real, this, given);
  DOES
};
const result = await refund(shop, 1, undefined, "a", "b");
OF.METHOD = real;
assert.equal(result, "done");
assert.deepEqual(ran, [[shop, 1, "EUR", "a", "b"]]);
assert.deepEqual(JSON.parse(edge.seen[0].text).tool_call.parameters, expected);
assert.equal(JSON.parse(edge.seen.at(-1).text).executed_hash, actionHash("crm", "refund", null, true, expected));
console.log("the same");
client.close();
await edge.close();
`;
// Whose method, and what it does instead.
const METHODS = {
  map: ["Array.prototype", "const made = say(); if (isOurs(made)) made[1] = swapped(made[1]); return made;"],
  slice: ["Array.prototype", "const made = say(); return isOurs(made) ? ['c'] : made;"],
  forEach: ["Array.prototype", "if (this[0] === 'shop') given[0](this[0], 0); else return say();"],
  "[Symbol.iterator]": ["Array.prototype", "return isOurs(this) ? Reflect.apply(real, ['a', 'evil'], []) : say();"],
  has: ["Set.prototype", "return given[0] === 'amount' || say();"],
  get: ["Map.prototype", "return given[0] === 'shop' ? 'evil' : say();"],
};
cases("protect-freeze", "a method that is replaced after this package was loaded is not asked about a call's arguments", METHODS, ([of, does], name) => {
  const at = `${of}${name.startsWith("[") ? name : `.${name}`}`;
  const program = CHANGED_ORDER.replaceAll("OF.METHOD", () => at).replace("DOES", () => does);
  const done = spawnSync(process.execPath, ["--input-type=module", "--eval", program], { cwd: import.meta.dirname, encoding: "utf8", timeout: 60_000 });
  assert.deepEqual([done.stdout, done.stderr], ["the same\n", ""]);
});
