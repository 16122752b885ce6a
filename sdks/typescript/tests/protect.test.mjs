// `protect`, with an honest server: what is hashed is what runs, once, and what came of it is reported.

import assert from "node:assert/strict";
import { Readable } from "node:stream";
import { inspect } from "node:util";

import { actionHash, Client, ConfigError, DeniedByApprover, LazyResult, protect, withSignal } from "aegisagent";

import { call, DEFAULTS, recorder, withClient } from "./calling.mjs";
import { raw, TOKEN, withEdge } from "./fake.mjs";
import { cases, test } from "./feature.mjs";

const hashOf = (parameters, resource = "customer-1") => actionHash("crm", "update_note", resource, true, parameters);

test("protect-allow", "an allowed action runs and is reported", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    assert.equal(await call(edge.url, fn, { note: "hello", amount: 1 }), "done");
    assert.deepEqual(fn.calls, [{ note: "hello", amount: 1 }]);
    const [asked] = edge.sent("authorize");
    assert.deepEqual(asked.tool_call, { tool: "crm", action: "update_note", resource: "customer-1", mutates_state: true, parameters: { note: "hello", amount: 1 } });
    assert.deepEqual(Object.keys(asked).sort(), ["agent", "canon_version", "context", "request_id", "tool_call", "trace"]);
    const [{ request_id: key, ...report }, ...others] = edge.sent("outcome");
    assert.deepEqual([report, others], [{ status: "ok", executed_hash: hashOf({ note: "hello", amount: 1 }) }, []]);
    assert.match(key, /^[0-9a-f-]{36}$/);
    assert.notEqual(key, edge.sent("authorize")[0].request_id, "each request has a key of its own");
  });
});

test("protect-freeze", "what runs is what was asked for, whatever becomes of the arguments", async () => {
  await withEdge(async (edge) => {
    const note = { text: ["a"] };
    const fn = recorder();
    edge.decision = "require_approval";
    edge.statuses = [404, "PENDING", "APPROVED"];
    edge.before.authorize = () => note.text.push("b");
    edge.before.consume = () => {
      note.text = "c";
    };
    await call(edge.url, fn, { note });
    assert.deepEqual(fn.calls, [{ note: { text: ["a"] } }]);
    assert.deepEqual(edge.sent("consume").map((one) => one.claimed_action_hash), [hashOf({ note: { text: ["a"] } })]);
  });
});

test("protect-freeze", "what is sent is the text that was hashed, byte for byte", async () => {
  await withEdge(async (edge) => {
    await call(edge.url, recorder(), { z: [1, -0], a: "é\u2028" });
    assert.ok(edge.seen[0].text.endsWith('"tool_call":{"tool":"crm","action":"update_note","resource":"customer-1","mutates_state":true,"parameters":{"z":[1,-0.0],"a":"é\u2028"}}}'));
  });
});

test("protect-freeze", "settings that change after they were given change nothing", async () => {
  await withEdge(async (edge) => {
    const settings = { ...DEFAULTS, params: ["note", "rest"], passedOn: ["rest"] };
    await withClient(edge.url, async (client) => {
      const protectedCall = protect(client, settings, (note) => note);
      Object.assign(settings, { tool: "shell", acceptEdits: true, mutatesState: false });
      settings.params.reverse();
      settings.passedOn.push("note");
      assert.equal(await protectedCall("a"), "a");
    });
    assert.deepEqual(edge.sent("authorize")[0].tool_call, { tool: "crm", action: "update_note", resource: "customer-1", mutates_state: true, parameters: { note: "a" } });
  });
});

test("protect-binding", "named, positional, gathered and default arguments come out alike", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const inOrder = protect(client, { ...DEFAULTS, params: ["first", "second", "...rest"], defaults: { second: 3 } }, (first, second, ...rest) => [first, second, rest]);
      const named = protect(client, { ...DEFAULTS, defaults: { second: 3, rest: [] } }, ({ first, second, rest }) => [first, second, rest]);
      const found = [await inOrder(1), await inOrder(1, undefined), await inOrder(1, 3), await named({ first: 1 }), await named({ second: undefined, first: 1 }), await named({ rest: [], second: 3, first: 1 })];
      assert.deepEqual(found, Array(6).fill([1, 3, []]));
      assert.deepEqual([await inOrder(1, 2, 7, 8), await named({ first: 1, second: 2, rest: [7, 8] })], Array(2).fill([1, 2, [7, 8]]));
      await assert.rejects(protect(client, { ...DEFAULTS, params: ["first"] }, (first) => first)(1, 2), TypeError);
      await assert.rejects(protect(client, { ...DEFAULTS, params: ["first", "second"] }, (first, second) => second)(undefined, 2), { code: "unsupported_type" });
      assert.equal(await protect(client, { ...DEFAULTS, params: ["first", "second"] }, (first, second = "left out") => second)(1), "left out");
      assert.deepEqual(await protect(client, DEFAULTS, (parameters) => parameters)(), {});
    });
    const hashes = edge.sent("outcome").map((outcome) => outcome.executed_hash);
    assert.equal(new Set(hashes.slice(0, 6)).size, 1);
    assert.equal(hashes[6], hashes[7]);
  });
});

test("protect-binding", "a default is the same at every call, whoever changes it", async () => {
  await withEdge(async (edge) => {
    const defaults = { seen: [] };
    await withClient(edge.url, async (client) => {
      const protectedCall = protect(client, { ...DEFAULTS, defaults }, ({ seen }) => {
        seen.push("by the function");
        return seen.length;
      });
      assert.equal(await protectedCall({}), 1);
      defaults.seen.push("from elsewhere");
      assert.equal(await protectedCall({}), 1);
    });
    assert.deepEqual(edge.sent("authorize").map((asked) => asked.tool_call.parameters), [{ seen: [] }, { seen: [] }]);
  });
});

test("protect-outcome", "an error of the function is the caller's, whatever was thrown, and an error", async () => {
  for (const mine of [new RangeError("mine"), "a text", undefined, null, { then: 1 }]) {
    for (const fn of [() => { throw mine; }, () => Promise.reject(mine)]) {
      await withEdge(async (edge) => {
        const outcome = await call(edge.url, fn).then(() => "no error", (error) => ({ error }));
        assert.equal(outcome.error, mine);
        assert.deepEqual(edge.sent("outcome").map(({ status }) => status), ["error"]);
      });
    }
  }
});

test("protect-outcome", "an outcome that cannot be reported changes no result, and neither does who is warned of it", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    for (const bad of [[500, {}], [200, "garbage"], [409, { error: { code: "x", message: "y" } }]]) {
      edge.replace.outcome = bad;
      await withClient(edge.url, async (client, warnings) => {
        assert.equal(await protect(client, DEFAULTS, fn)({ note: "a" }), "done");
        assert.match(warnings.join(), /is not reported/);
      });
      assert.equal(await call(edge.url, fn, undefined, {}, { onWarning: () => { throw new Error("of the log"); } }), "done");
    }
    assert.equal(fn.calls.length, 6);
  });
});

test("protect-outcome", "an output is reported only where that was asked for and it is JSON", async () => {
  await withEdge(async (edge) => {
    await call(edge.url, () => ({ rows: 1 }));
    await call(edge.url, () => ({ rows: 1 }), undefined, { reportOutput: true });
    await call(edge.url, () => ({ rows: 1n }), undefined, { reportOutput: true });
    await call(edge.url, () => null, undefined, { reportOutput: true });
    await call(edge.url, () => undefined, undefined, { reportOutput: true });
    assert.deepEqual(edge.sent("outcome").map((one) => ("output" in one ? one.output : "none")), ["none", { rows: 1 }, "none", null, "none"]);
  });
});

const LAZY = {
  "a generator": () => (function* () { yield 1; })(), "an asynchronous generator": () => (async function* () { yield 1; })(), "an iterator": () => [1][Symbol.iterator](),
  "a map's entries": () => new Map().entries(), "a stream": () => Readable.from(["a"]), "a web stream": () => new ReadableStream(), "a promise of a generator": async () => (function* () { yield 1; })(),
};
cases("protect-outcome", "a result that does its work later is not handed out", LAZY, async (fn) => {
  await withEdge(async (edge) => {
    await assert.rejects(call(edge.url, fn), LazyResult);
    assert.deepEqual(edge.sent("outcome").map(({ status }) => status), ["ambiguous"]);
  });
});

const later = () => Promise.reject(new Error("later"));
const WITHIN = {
  "an array": (one) => [1, one], "arrays": (one) => [[[[one]]]], "an object": (one) => ({ rows: one }), "an object without a prototype": (one) => Object.assign(Object.create(null), { one }),
  "a symbol": (one) => ({ [Symbol("rows")]: one }), "what is not enumerable": (one) => Object.defineProperty({}, "rows", { value: one }), "a map": (one) => new Map([["rows", one]]),
  "a map's keys": (one) => new Map([[one, 1]]), "a set": (one) => new Set([one]), "all of them": (one) => ({ rows: [new Map([["a", new Set([{ one }])]])] }),
  "far below": (one) => Array.from({ length: 20_000 }).reduce((held) => [held], one),
};
cases("protect-outcome", "a result that holds what does its work later is not handed out", WITHIN, async (holding) => {
  for (const [name, made] of Object.entries({ ...LAZY, "a promise": later, "a promise of a generator": later, "a thenable": () => ({ then: () => undefined }) })) {
    await withEdge(async (edge) => {
      await assert.rejects(call(edge.url, () => holding(made())), LazyResult, name);
      assert.deepEqual(edge.sent("outcome").map(({ status }) => status), ["ambiguous"], name);
    });
  }
});

test("protect-outcome", "a generator in a result is closed", async () => {
  await withEdge(async (edge) => {
    let isClosed = false;
    const generator = (function* () { try { yield 1; yield 2; } finally { isClosed = true; } })();
    generator.next();
    await assert.rejects(call(edge.url, () => ({ rows: [generator] })), LazyResult);
    assert.ok(isClosed);
  });
});

const endless = () => new Proxy({}, { get: (_, name) => (name === "rows" ? endless() : undefined), ownKeys: () => ["rows"], getOwnPropertyDescriptor: () => ({ value: endless(), configurable: true }) });
const inItself = { rows: [] };
inItself.rows.push(inItself, new Map([[inItself, inItself]]));
const NO_LATER = {
  "what stands in itself": inItself, "no end of proxies": { rows: endless() }, "what cannot be looked at": [new Proxy({}, { get() { throw new Error("no"); }, has() { throw new Error("no"); }, getPrototypeOf() { throw new Error("no"); } })],
  "a prototype that cannot be": Object.create(new Proxy({}, { getPrototypeOf() { throw new Error("no"); } })), "an accessor": { get rows() { throw new Error("no"); } }, "many rows": Array.from({ length: 200_000 }, (_, id) => ({ id })),
  "far below": Array.from({ length: 20_000 }).reduce((held) => [held], 1), "a great empty array": new Array(2 ** 32 - 1), "an array's like": { next: 1, then: 2 },
};
cases("protect-outcome", "a result without such is handed out as it is, whatever it holds", NO_LATER, async (result) => {
  await withEdge(async (edge) => {
    // Not by deepEqual, which would look at it.
    assert.ok((await call(edge.url, () => result)) === result);
    assert.deepEqual(edge.sent("outcome").map(({ status }) => status), ["ok"]);
  });
});

test("protect-outcome", "an awaitable is waited for before anything is reported", async () => {
  await withEdge(async (edge) => {
    let done = false;
    const thenable = { then: (resolve) => setTimeout(() => { done = true; resolve("later"); }, 50) };
    edge.before.outcome = () => assert.equal(done, true);
    assert.equal(await call(edge.url, () => thenable), "later");
    assert.deepEqual(await call(edge.url, () => [[1, new Set([1])]].at(0).slice(0, 1)), [1]);
    assert.equal(edge.sent("outcome").length, 2);
    const broken = { get then() { throw new RangeError("mine"); } };
    await assert.rejects(call(edge.url, () => broken), RangeError);
    assert.deepEqual(edge.sent("outcome").map(({ status }) => status), ["ok", "ok", "error"]);
  });
});

test("protect-approval", "an approved action is consumed and runs", async () => {
  await withEdge(async (edge) => {
    const told = [];
    edge.decision = "require_approval";
    edge.statuses = [404, 404, "PENDING", "APPROVED"];
    assert.equal(await call(edge.url, recorder(), undefined, { onPending: (pending) => told.push(pending) }), "done");
    assert.deepEqual(edge.seen.map(({ name }) => name), ["authorize", "approval", "approval", "approval", "approval", "consume", "outcome"]);
    assert.deepEqual([told[0].approver_group, told[0].action_hash], ["release", hashOf({ note: "a" })]);
  });
});

test("protect-approval", "whoever is told of a pending approval cannot make it another one", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    const tell = (pending) => Object.assign(pending, { approval_id: "another" });
    assert.equal(await call(edge.url, recorder(), undefined, { onPending: tell }), "done");
    assert.ok(edge.seen.every(({ path }) => !path.includes("another")));
  });
});

test("protect-approval", "whoever is told of a pending approval is not waited for, and a failure there is a warning", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    await withClient(edge.url, async (client, warnings) => {
      const tell = async () => { throw new Error("no chat"); };
      assert.equal(await protect(client, { ...DEFAULTS, onPending: tell }, recorder())({ note: "a" }), "done");
      assert.match(warnings.join(), /onPending failed/);
      const thrown = () => { throw new Error("no chat"); };
      assert.equal(await protect(client, { ...DEFAULTS, onPending: thrown }, recorder())({ note: "a" }), "done");
      assert.equal(warnings.length, 2);
      assert.doesNotMatch(warnings.join(), /no chat/);
      const never = () => new Promise(() => undefined);
      assert.equal(await protect(client, { ...DEFAULTS, onPending: never }, recorder())({ note: "a" }), "done");
    });
  });
});

cases("protect-approval", "an approval that ended otherwise is a denial", { REJECTED: "approval_rejected", EXPIRED: "approval_expired", CONSUMED: "approval_consumed" }, async (code, status) => {
  await withEdge(async (edge) => {
    const fn = recorder();
    edge.decision = "require_approval";
    edge.statuses = ["PENDING", status];
    await assert.rejects(call(edge.url, fn), (denied) => denied instanceof DeniedByApprover && denied.code === code && denied.decisionId !== null && denied.approvalId !== null);
    assert.deepEqual([fn.calls, edge.sent("consume")], [[], []]);
  });
});

test("protect-approval", "nobody who decides in time is a denial", async () => {
  for (const approvalTimeoutS of [0, 0.6]) {
    await withEdge(async (edge) => {
      const fn = recorder();
      edge.decision = "require_approval";
      edge.statuses = ["PENDING"];
      await assert.rejects(call(edge.url, fn, undefined, { approvalTimeoutS }), { name: "DeniedByApprover", code: "approval_timeout" });
      assert.deepEqual(fn.calls, []);
    });
  }
});

const editOf = (changes) => ({ tool: "crm", action: "update_note", resource: "customer-1", mutates_state: true, parameters: { note: "b", amount: 2 }, ...changes });

test("protect-edit", "an edited action runs as it was edited, if the caller opted in", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    edge.decision = "require_approval";
    edge.edited = editOf();
    await call(edge.url, fn, { note: "a", amount: 1 }, { acceptEdits: true });
    assert.deepEqual(fn.calls, [{ note: "b", amount: 2 }]);
    assert.deepEqual(edge.sent("consume").map((one) => one.claimed_action_hash), [hashOf({ note: "b", amount: 2 })]);
    assert.deepEqual(edge.sent("outcome").map((one) => one.executed_hash), [hashOf({ note: "b", amount: 2 })]);
    await assert.rejects(call(edge.url, fn, { note: "a", amount: 1 }), { name: "DeniedByApprover", code: "approval_edited" });
    assert.deepEqual([fn.calls.length, edge.sent("consume").length], [1, 1]);
  });
});

const UNFIT = {
  "another tool": editOf({ tool: "shell" }), "another action": editOf({ action: "delete" }), "another mutates_state": editOf({ mutates_state: false }), "another resource": editOf({ resource: "customer-2" }),
  "fewer parameters": editOf({ parameters: { note: "b" } }), "more parameters": editOf({ parameters: { note: "b", amount: 2, force: true } }), "no parameters": editOf({ parameters: {} }),
  "another name": editOf({ parameters: { note: "b", force: 2 } }), "a name of every object": editOf({ parameters: { note: "b", toString: 2 } }),
};
cases("protect-edit", "an edit that this function cannot run is a denial and consumes nothing", UNFIT, async (edited) => {
  await withEdge(async (edge) => {
    const fn = recorder();
    edge.decision = "require_approval";
    edge.edited = edited;
    await assert.rejects(call(edge.url, fn, { note: "a", amount: 1 }, { acceptEdits: true }), { name: "DeniedByApprover", code: "approval_edited" });
    assert.deepEqual([fn.calls, edge.sent("consume")], [[], []]);
  });
});

test("protect-edit", "an edit that another language can write and this one cannot is read rightly, and does not run", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    edge.decision = "require_approval";
    edge.replace.approval = ([status, body]) => {
      const hash = "b0ae74ac65f9c9c8ad2e4a47b2f1e1c9bbd6a0a1b4c0f17c6f0bd4ef1c2a3d4e";
      return [status, JSON.stringify({ ...body, is_edited: true, action_hash: hash, edited_tool_call: editOf({ parameters: { note: "NUMBER", amount: 2 } }) }).replace('"NUMBER"', "1e20")];
    };
    await assert.rejects(call(edge.url, fn, { note: "a", amount: 1 }, { acceptEdits: true }), { code: "bad_reply" });
    const { createHash } = await import("node:crypto");
    const form = '{"action":"update_note","mutates_state":true,"parameters":{"amount":2,"note":100000000000000000000},"resource":"customer-1","tool":"crm"}';
    const right = createHash("sha256").update(form).digest("hex");
    edge.replace.approval = ([status, body]) => [
      status, JSON.stringify({ ...body, is_edited: true, action_hash: right, edited_tool_call: editOf({ parameters: { note: "NUMBER", amount: 2 } }) }).replace('"NUMBER"', "1e20"),
    ];
    await assert.rejects(call(edge.url, fn, { note: "a", amount: 1 }, { acceptEdits: true }), { code: "approval_edited" });
    assert.deepEqual([fn.calls, edge.sent("consume")], [[], []]);
  });
});

test("protect-edit", "an edit of gathered arguments must still fit", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.edited = editOf({ parameters: { rest: 7 } });
    await withClient(edge.url, async (client) => {
      const protectedCall = protect(client, { ...DEFAULTS, params: ["...rest"], acceptEdits: true }, (...rest) => rest);
      await assert.rejects(protectedCall(1), { code: "approval_edited" });
      edge.edited = editOf({ parameters: { rest: [7, 8] } });
      assert.deepEqual(await protectedCall(1), [7, 8]);
    });
    assert.equal(edge.sent("consume").length, 1);
  });
});

test("protect-edit", "a resource that follows from the parameters follows the edit", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    const how = { acceptEdits: true, resource: (parameters) => {
      const named = `customer-${parameters.amount}`;
      parameters.amount = 1000;
      return named;
    } };
    edge.decision = "require_approval";
    edge.edited = editOf({ resource: "customer-2" });
    await call(edge.url, fn, { note: "a", amount: 1 }, how);
    assert.deepEqual(fn.calls, [{ note: "b", amount: 2 }]);
    edge.edited = editOf({ resource: "customer-3" });
    await assert.rejects(call(edge.url, fn, { note: "a", amount: 1 }, how), { code: "approval_edited" });
  });
});

test("protect-edit", "an edit from whose parameters the resource cannot be told is a denial", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    edge.decision = "require_approval";
    for (const [resource, amount] of [[(parameters) => `customer-${parameters.amount.toFixed(0)}`, "a secret"], [(parameters) => (parameters.amount === 1 ? "customer-1" : 7), 2]]) {
      edge.edited = editOf({ parameters: { note: "b", amount } });
      const asked = call(edge.url, fn, { note: "a", amount: 1 }, { acceptEdits: true, resource });
      await assert.rejects(asked, (error) => error instanceof DeniedByApprover && error.code === "approval_edited" && /cannot be told/.test(error.message));
    }
    assert.deepEqual([fn.calls, edge.sent("consume"), edge.sent("outcome")], [[], [], []]);
  });
});

test("protect-unfreezable", "a resource is a text or nothing", async () => {
  await withEdge(async (edge) => {
    for (const resource of [() => 1, () => undefined, () => "\ud800", () => Promise.resolve("a"), () => ({})]) {
      await assert.rejects(call(edge.url, recorder(), undefined, { resource }), { name: "DeniedUnfreezable" });
    }
    const fn = recorder();
    for (const mine of [new RangeError("hunter2"), "hunter2", undefined, new ConfigError("hunter2"), new DeniedByApprover("hunter_2", "hunter2")]) {
      const denied = await call(edge.url, fn, undefined, { resource: () => { throw mine; } }).catch((error) => error);
      assert.deepEqual([denied.name, denied.code, denied.cause, fn.calls], ["DeniedUnfreezable", "unsupported_type", undefined, []]);
      assert.doesNotMatch(inspect(denied, { depth: Infinity, showHidden: true }), /hunter/);
    }
    await call(edge.url, recorder(), undefined, { resource: () => null });
    assert.deepEqual(edge.sent("authorize").map((asked) => asked.tool_call.resource), [null]);
  });
});

test("protect-allow", "what is passed on is neither sent nor copied", async () => {
  await withEdge(async (edge) => {
    const db = new Map();
    await withClient(edge.url, async (client) => {
      const named = protect(client, { ...DEFAULTS, passedOn: ["db", "missing"] }, (parameters) => parameters);
      const found = await named({ db, note: "a" });
      assert.equal(found.db, db);
      assert.deepEqual(Object.keys(found), ["note", "db"]);
      const inOrder = protect(client, { ...DEFAULTS, params: ["db", "note", "options"], passedOn: new Set(["db", "options"]) }, (...given) => given);
      assert.deepEqual(await inOrder(db, "a"), [db, "a", undefined]);
    });
    assert.deepEqual(edge.sent("authorize").map((asked) => asked.tool_call.parameters), [{ note: "a" }, { note: "a" }]);
  });
});

test("protect-allow", "a method is protected for each object, if its object is passed on by name", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      class Shop {
        constructor(name) {
          this.name = name;
        }
      }
      Shop.prototype.refund = protect(client, { ...DEFAULTS, passedOn: ["this"] }, function ({ amount }) { return [this.name, amount]; });
      Shop.prototype.steal = protect(client, DEFAULTS, function () { return this; });
      assert.deepEqual([await new Shop("a").refund({ amount: 1 }), await new Shop("b").refund({ amount: 2 })], [["a", 1], ["b", 2]]);
      assert.equal(await new Shop("a").steal({ this: 1 }), undefined);
    });
    assert.deepEqual(edge.sent("authorize").map((asked) => asked.tool_call.parameters), [{ amount: 1 }, { amount: 2 }, { this: 1 }]);
  });
});

const fine = ({ x }) => x;
const REFUSED = {
  "a generator": [function* () { yield 1; }, {}], "an asynchronous generator": [async function* () { yield 1; }, {}], "a class": [class {}, {}], "no function": [{}, {}], "nothing": [undefined, {}],
  "several arguments without names": [(a, b) => b, {}], "more arguments than names": [(a, b) => b, { params: ["a"] }], "a name twice": [(a, b) => b, { params: ["a", "a"] }],
  "no name": [(a) => a, { params: [""] }], "two that gather": [(...a) => a, { params: ["...a", "...b"] }], "one that gathers first": [(...a) => a, { params: ["...a", "b"] }],
  "params of no texts": [(a) => a, { params: [1] }], "params as a text": [(a) => a, { params: "a" }], "`this` as a parameter": [(a) => a, { params: ["this"] }], "an unknown passedOn": [(a) => a, { params: ["a"], passedOn: ["b"] }],
  "a passedOn as a text": [fine, { passedOn: "db" }], "a default that is no JSON": [fine, { defaults: { x: new Date() } }], "a default of undefined": [fine, { defaults: { x: undefined } }],
  "defaults as a list": [fine, { defaults: [1] }], "a default of what is passed on": [fine, { defaults: { x: 1 }, passedOn: ["x"] }], "a default of no parameter": [(a) => a, { params: ["a"], defaults: { b: 1 } }],
  "no tool": [fine, { tool: "" }], "no action": [fine, { action: undefined }], "an action of half a pair": [fine, { action: "\ud800" }], "a resource that is a number": [fine, { resource: 1 }],
  "failing open alone": [fine, { failOpenReads: true }], "failing open at high risk": [fine, { failOpenReads: true, mutatesState: false }],
  "failing open at medium risk": [fine, { failOpenReads: true, mutatesState: false, risk: "medium" }], "failing open with a write": [fine, { failOpenReads: true, risk: "low" }],
  "failing open with sensitive data": [fine, { failOpenReads: true, mutatesState: false, risk: "low", containsSensitiveData: true }], "acceptEdits as a text": [fine, { acceptEdits: "no" }],
  "mutatesState as 0": [fine, { mutatesState: 0 }], "mutatesState as null": [fine, { mutatesState: null }], "an unknown risk": [fine, { risk: "none" }], "a timeout of NaN": [fine, { approvalTimeoutS: NaN }],
  "a negative timeout": [fine, { approvalTimeoutS: -1 }], "a timeout as a text": [fine, { approvalTimeoutS: "1" }], "an endless unreachableS": [fine, { unreachableS: Infinity }],
  "onPending that is none": [fine, { onPending: "tell" }], "a channel of two lines": [fine, { channel: "a\nb" }], "sensitive data as null": [fine, { containsSensitiveData: null }],
  "a setting that is misspelt": [fine, { containSensitiveData: true }], "a setting of another language": [fine, { mutates_state: false }], "a getter": [fine, { get acceptEdits() { return true; } }],
};
cases("protect-config", "what cannot be safe is refused when it is set up", REFUSED, ([fn, how]) => {
  const client = new Client({ url: "http://127.0.0.1:1", token: TOKEN });
  const settings = Object.defineProperties({ tool: "crm", action: "a" }, Object.getOwnPropertyDescriptors(how));
  assert.throws(() => protect(client, settings, fn), ConfigError);
});

test("protect-config", "only a client is asked", () => {
  const real = new Client({ url: "http://127.0.0.1:1", token: TOKEN });
  for (const client of [null, {}, Object.create(real), new Proxy(real, {}), Object.create(Client.prototype), { cleared: async (action, options, run) => run({ action, decisionId: null }) }]) {
    assert.throws(() => protect(client, { tool: "crm", action: "a" }, fine), ConfigError);
  }
});

test("protect-config", "a protected function looks like the function and gives no way around", () => {
  const client = new Client({ url: "http://127.0.0.1:1", token: TOKEN });
  const secretly = function refund(parameters) {
    return parameters;
  };
  secretly.property = secretly;
  const guarded = protect(client, { tool: "crm", action: "a" }, secretly);
  assert.deepEqual([guarded.name, guarded.length], ["refund", 1]);
  assert.deepEqual(Reflect.ownKeys(guarded).filter((name) => guarded[name] === secretly), []);
  assert.deepEqual(Reflect.ownKeys(guarded).sort(), ["length", "name"]);
  assert.doesNotMatch(String(guarded), /return parameters/);
});

cases("e2e-cancel", "a call that is broken off before it runs does not run", { authorize: 0, approval: 0, consume: 1 }, async (consumed, where) => {
  await withEdge(async (edge) => {
    const [fn, controller] = [recorder(), new AbortController()];
    edge.decision = "require_approval";
    edge.replace[where] = raw(() => {
      controller.abort(new RangeError("enough"));
    });
    await assert.rejects(withSignal(controller.signal, () => call(edge.url, fn)), RangeError);
    assert.deepEqual([fn.calls, edge.sent("outcome"), edge.sent("consume").length], [[], [], consumed]);
  });
});

test("e2e-cancel", "a call that was broken off before it began sends nothing", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    await assert.rejects(withSignal(AbortSignal.abort(), () => call(edge.url, fn)), { name: "AbortError" });
    assert.deepEqual([fn.calls, edge.seen], [[], []]);
  });
});

test("e2e-cancel", "a pause between two looks ends at once", async () => {
  await withEdge(async (edge) => {
    const controller = new AbortController();
    edge.decision = "require_approval";
    edge.statuses = ["PENDING"];
    let looks = 0;
    edge.before.approval = () => {
      looks += 1;
      if (looks === 2) setTimeout(() => controller.abort(), 50);
    };
    await assert.rejects(withSignal(controller.signal, () => call(edge.url, recorder())), { name: "AbortError" });
    assert.equal(looks, 2);
  });
});

test(["e2e-cancel", "protect-outcome"], "what was broken off while it ran is ambiguous", async () => {
  await withEdge(async (edge) => {
    const controller = new AbortController();
    const fn = () => new Promise((resolve, reject) => {
      controller.signal.addEventListener("abort", () => reject(controller.signal.reason));
      controller.abort(new RangeError("enough"));
    });
    await assert.rejects(withSignal(controller.signal, () => call(edge.url, fn)), RangeError);
    await assert.rejects(call(edge.url, () => { throw new DOMException("by itself", "AbortError"); }), { name: "AbortError" });
    assert.deepEqual(edge.sent("outcome").map(({ status }) => status), ["ambiguous", "ambiguous"]);
  });
});
