// Answers that no server of ours gives. Each is a typed denial, and the function does not run.

import assert from "node:assert/strict";
import { inspect } from "node:util";

import { actionHash, Denied, DeniedByApprover, DeniedByPolicy, DeniedUnavailable, DeniedUnverified, protect, sourceTrust, ToolCall } from "aegisagent";

import { call, DEFAULTS, recorder, withClient } from "./calling.mjs";
import { drip, raw, withEdge } from "./fake.mjs";
import { cases, test } from "./feature.mjs";
import { nobody } from "./loopback.mjs";

const OTHER = actionHash("crm", "update_note", "customer-1", true, { note: "swapped" });
const WHERE = ["authorize", "approval", "consume"];

const changed = (fields) => ([status, body]) => [status, { ...body, ...fields }];
const within = (name, fields) => ([status, body]) => [status, { ...body, [name]: { ...body[name], ...fields } }];
const without = (name) => ([status, body]) => [status, Object.fromEntries(Object.entries(body).filter(([key]) => key !== name))];
const textsOf = (edge, what) => edge.seen.filter(({ name }) => name === what).map(({ text }) => text);
const error = (status, code, message = "m") => [status, { error: { code, message } }];

const GARBAGE = {
  "no JSON": [200, "<html>allow</html>"], "empty": [200, ""], "null": [200, "null"], "a list": [200, "[]"], "a word": [200, '"allow"'],
  "a key twice": [200, '{"decision":"deny","decision":"allow"}'], "not UTF-8": [200, Buffer.from([0xff, 0xfe, 0x7b, 0x7d])], "an empty object": [200, {}],
  "__proto__": ([, body]) => [200, `{"__proto__":${JSON.stringify(body)}}`], "201": ([, body]) => [201, body], "204": [204, ""],
  "a redirect": [307, {}, { location: "http://127.0.0.1:1/v1/authorize" }], "encoded": [200, Buffer.from([0x1f, 0x8b]), { "content-encoding": "gzip" }],
  "a good answer that says it is encoded": ([status, body]) => [status, body, { "content-encoding": "gzip" }],
  "a number where a text is": changed({ decision_id: 1, approval_id: 1, status: 1 }), "oversized": [200, " ".repeat((8 << 20) + 1)],
};
const SERVER_ERRORS = {
  "500": error(500, "internal"), "500 with a page": [500, "<html>"], "502": [502, "bad gateway"], "503": error(503, "busy"), "504": [504, "<html>"], "429": error(429, "rate_limited"),
  "401": error(401, "invalid_token"), "403": error(403, "wrong_role"), "404": error(404, "unknown_route"), "408": error(408, "body_too_slow"),
  "409": error(409, "replay_nonce_reused"), "418": [418, { error: "teapot" }],
};
const BROKEN = {
  "broken off": raw((response, socket) => {
    socket.write('HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"decision": "allow"');
    socket.destroySoon();
  }),
  "broken off in a chunk": raw((response, socket) => {
    socket.write('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n');
    socket.destroySoon();
  }),
  "no HTTP": raw((response, socket) => {
    socket.end("allow\r\n\r\n");
  }),
  "an upgrade": raw((response, socket) => {
    socket.write("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n");
  }),
  "a head without end": raw((response, socket) => {
    socket.end(`HTTP/1.1 200 OK\r\nx: ${"x".repeat(1 << 17)}`);
  }),
  "slow": raw(() => undefined),
  "dripped head": raw(async (response, socket) => {
    await drip(socket, `HTTP/1.1 200 OK\r\nx-header: ${"x".repeat(200)}`);
  }),
  "dripped body": raw(async (response, socket) => {
    socket.write("HTTP/1.1 200 OK\r\n\r\n");
    await drip(socket, " ".repeat(200));
  }),
};

const APPROVAL = { approval_id: "i", status: "PENDING", approver_group: "g", expires_at: "x", action_hash: OTHER };
const AUTHORIZE = {
  "an unknown decision": [changed({ decision: "maybe" }), "unknown_decision"], "a decision in capitals": [changed({ decision: "ALLOW" }), "unknown_decision"],
  "a decision that is true": [changed({ decision: true }), "bad_reply"], "no decision": [without("decision"), "bad_reply"],
  "another action's hash": [changed({ action_hash: OTHER }), "action_hash_mismatch"], "a hash in capitals": [changed({ action_hash: "AB".repeat(32) }), "bad_reply"],
  "no hash": [without("action_hash"), "bad_reply"], "a dry run": [changed({ dry_run: true }), "bad_reply"],
  "another canonical form": [within("receipt", { canon_version: "aegis-jcs-2" }), "bad_reply"], "no receipt": [within("receipt", { receipt_hash: null }), "receipt_missing"],
  "a receipt that is none": [within("receipt", { receipt_hash: "x" }), "bad_reply"], "an allow with an approval": [changed({ approval: APPROVAL }), "bad_reply"],
  "an approval that is missing": [changed({ decision: "require_approval" }), "bad_reply"],
  "a label that was loosened": [changed({ root_trust_level: "trusted_internal_signed" }), "trust_loosened"],
  "a score with a fraction": [([status, body]) => [status, JSON.stringify(body).replace('"risk_score":40', '"risk_score":40.0')], "bad_reply"],
  "an id that leads elsewhere": [changed({ decision_id: "../../x" }), "bad_reply"], "no word on an approval": [without("approval"), "bad_reply"],
};
const POLL = {
  "another action's hash": [changed({ action_hash: OTHER }), "bad_reply"], "another original": [changed({ original_action_hash: OTHER }), "bad_reply"],
  "an unknown status": [changed({ status: "YES" }), "unknown_status"], "a status in lower case": [changed({ status: "approved" }), "unknown_status"],
  "another approval": [changed({ approval_id: "other" }), "action_hash_mismatch"], "no status": [without("status"), "bad_reply"],
  "another action": [within("tool_call", { parameters: { note: "swapped" } }), "bad_reply"], "edited, and not": [changed({ is_edited: true }), "bad_reply"],
  "no word on an edit": [without("edited_tool_call"), "bad_reply"], "no word on whether it is edited": [without("is_edited"), "bad_reply"],
  "another action, hashed rightly": [
    ([, body]) => [200, { ...body, action_hash: OTHER, original_action_hash: OTHER, tool_call: { ...body.tool_call, parameters: { note: "swapped" } } }], "action_hash_mismatch",
  ],
};
const CONSUME = {
  "another action's hash": [changed({ action_hash: OTHER }), "action_hash_mismatch"], "another approval": [changed({ approval_id: "x" }), "action_hash_mismatch"],
  "another status": [changed({ status: "pending" }), "action_hash_mismatch"], "no hash": [without("action_hash"), "bad_reply"],
};

async function assertDenied(edge, kinds, code = null, settings = {}) {
  const fn = recorder();
  const denied = await call(edge.url, fn, { note: "a" }, { unreachableS: 0.2 }, { timeoutS: 20, ...settings }).catch((error) => error);
  assert.ok(kinds.some((kind) => denied instanceof kind), String(denied?.stack));
  if (code !== null) assert.equal(denied.code, code);
  assert.deepEqual([fn.calls, edge.sent("outcome")], [[], []]);
  return denied;
}

/** Every answer at every place. */
const everywhere = (table) =>
  Object.fromEntries(WHERE.flatMap((where) => Object.entries(table).map(([name, answer]) => [`${where}: ${name}`, { where, answer }])));

cases("hostile-hash", "a decision that is not right is a denial", AUTHORIZE, async ([change, code]) => {
  await withEdge(async (edge) => {
    edge.replace.authorize = change;
    await assertDenied(edge, [DeniedUnverified], code);
  });
});

test("hostile-hash", "an approval for another action is a denial", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.replace.authorize = within("approval", { action_hash: OTHER });
    await assertDenied(edge, [DeniedUnverified], "action_hash_mismatch");
    edge.replace.authorize = within("approval", { expires_at: "tomorrow" });
    const denied = await assertDenied(edge, [DeniedUnverified], "bad_reply");
    assert.ok(denied.approvalId && denied.decisionId);
  });
});

cases("hostile-hash", "an approval that is not right is a denial", POLL, async ([change, code]) => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.replace.approval = change;
    await assertDenied(edge, [DeniedUnverified], code);
    assert.deepEqual(edge.sent("consume"), []);
  });
});

cases("hostile-hash", "a consume that is not right is a denial", CONSUME, async ([change, code]) => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.replace.consume = change;
    await assertDenied(edge, [DeniedUnverified], code);
  });
});

cases("hostile-garbage", "garbage is a denial wherever it comes, and is not asked for again", everywhere(GARBAGE), async ({ where, answer }, label) => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.replace[where] = answer;
    // Another status is an answer of some server's; what has the right one and cannot be read is of none.
    const [kind, code] = { "201": [DeniedUnavailable, "http_201"], "204": [DeniedUnavailable, "http_204"] }[label.split(": ")[1]] ?? [DeniedUnverified, "bad_reply"];
    await assertDenied(edge, [kind], code, { timeoutS: 30 });
    assert.equal(edge.sent(where).length, 1);
  });
});

test("hostile-garbage", "an answer without end is not gathered", async () => {
  await withEdge(async (edge) => {
    edge.replace.authorize = raw(async (response, socket) => {
      socket.write("HTTP/1.1 200 OK\r\n\r\n");
      while (!socket.destroyed) if (!socket.write(Buffer.alloc(1 << 16, 0x20))) await new Promise((done) => socket.once("drain", done).once("close", done));
    });
    const denied = await assertDenied(edge, [DeniedUnverified], "bad_reply", { timeoutS: 60 });
    assert.match(denied.message, /more than/);
  });
});

cases("hostile-500", "a server error is a denial wherever it comes", everywhere(SERVER_ERRORS), async ({ where, answer }) => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.replace[where] = answer;
    const [status, body] = answer;
    // Of a consume alone a conflict is the server's word on it.
    const kind = where === "consume" && status === 409 ? DeniedByPolicy : DeniedUnavailable;
    await assertDenied(edge, [kind], body.error?.code ?? `http_${status}`);
    // A consume is repeated word for word.
    const texts = textsOf(edge, "consume");
    assert.ok(texts.length <= (answer[0] === 429 || answer[0] === 503 ? 3 : 1) && new Set(texts).size <= 1);
  });
});

cases("hostile-slow", "a slow or broken answer is a denial wherever it comes", everywhere(BROKEN), async ({ where, answer }) => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.replace[where] = answer;
    // What comes before it is honest, and must be there by then on a busy machine too.
    const denied = await assertDenied(edge, [DeniedUnavailable], null, { timeoutS: where === "authorize" ? 0.5 : 2 });
    if (where !== "consume") return;
    assert.equal(denied.code, "consume_ambiguous");
    const texts = textsOf(edge, "consume");
    assert.ok(texts.length >= 1 && texts.length <= 3 && new Set(texts).size === 1, "whether it was consumed is not known: the very same is asked again");
  });
});

test("hostile-slow", "nobody listening is a denial", async () => {
  const fn = recorder();
  await assert.rejects(call(await nobody(), fn), (denied) => denied instanceof DeniedUnavailable && denied.code === "unreachable" && denied.cause.sent === false);
  assert.deepEqual(fn.calls, []);
});

test("retries", "an authorize call is repeated word for word, and only so often", async () => {
  await withEdge(async (edge) => {
    edge.replace.authorize = error(503, "busy");
    await assertDenied(edge, [DeniedUnavailable], "busy");
    const texts = edge.seen.map(({ text }) => text);
    assert.equal(texts.length, 3);
    assert.equal(new Set(texts).size, 1);
    assert.match(JSON.parse(texts[0]).request_id, /^[0-9a-f-]{36}$/);
  });
});

test("retries", "a consume that no server could do yet is repeated under its one key", async () => {
  const keys = new Set();
  for (const code of ["control_busy", "receipt_unavailable", "receipt_pending", "control_unreachable", "store_unavailable"]) {
    await withEdge(async (edge) => {
      edge.decision = "require_approval";
      edge.replace.consume = error(503, code);
      await assertDenied(edge, [DeniedUnavailable], code);
      const texts = textsOf(edge, "consume");
      assert.deepEqual([texts.length, new Set(texts).size], [3, 1]);
      keys.add(JSON.parse(texts[0]).request_id);
    });
  }
  assert.equal(keys.size, 5, "each call has a key of its own");
});

/** The server has done what it was asked, and its answer does not come: so often, then honest ones. */
function cutOff(times) {
  let left = times;
  return (honest) => {
    if (left === 0) return honest;
    left -= 1;
    return BROKEN["broken off"];
  };
}

for (const times of [1, 2]) {
  test("lost-answer", `a consume whose answer is cut off ${times} times runs the function exactly once`, async () => {
    await withEdge(async (edge) => {
      edge.decision = "require_approval";
      edge.replace.consume = cutOff(times);
      const fn = recorder();
      assert.equal(await call(edge.url, fn), "done");
      assert.equal(fn.calls.length, 1);
      const texts = textsOf(edge, "consume");
      assert.deepEqual([texts.length, new Set(texts).size], [times + 1, 1]);
    });
  });
}

test("lost-answer", "a consume that somebody else made meanwhile runs nothing", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    const lost = cutOff(1);
    edge.replace.consume = (honest) => {
      for (const approvalId of edge.consumed.keys()) edge.consumed.set(approvalId, "another's");
      return lost(honest);
    };
    await assertDenied(edge, [DeniedByApprover], "approval_consumed");
  });
});

test("lost-answer", "a key is in no error", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.replace.consume = cutOff(3);
    const denied = await assertDenied(edge, [DeniedUnavailable], "consume_ambiguous");
    const { request_id: key } = edge.sent("consume")[0];
    assert.ok(!inspect(denied, { depth: Infinity, showHidden: true }).includes(key) && !`${denied.stack}${denied.cause.stack}`.includes(key));
  });
});

test("lost-answer", "the end of an approval is counted by the server's clock", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.statuses = [404, "PENDING", "APPROVED"];
    // By our clock it has ended before it was asked for.
    edge.replace.authorize = within("approval", { expires_at: "2020-01-01T00:00:00Z", expires_in: 900 });
    const fn = recorder();
    assert.equal(await call(edge.url, fn), "done");
    assert.equal(fn.calls.length, 1);
  });
});

test("lost-answer", "seconds that are none are a denial", async () => {
  for (const bad of [-1, 1.5, "900", true]) {
    await withEdge(async (edge) => {
      edge.decision = "require_approval";
      edge.replace.authorize = within("approval", { expires_in: bad });
      await assertDenied(edge, [DeniedUnverified], "bad_reply");
    });
  }
});

test("hostile-garbage", "texts of any length are a denial, at once", async () => {
  await withEdge(async (edge) => {
    for (const reason of [`${"a".repeat(1 << 20)}!`, `${"a_".repeat(1 << 19)}!`, "_".repeat(1 << 20), "a_".repeat(1 << 19)]) {
      edge.replace.authorize = changed({ decision: "deny", reason });
      const denied = await assertDenied(edge, [DeniedByPolicy], "policy_denied");
      assert.ok(denied.message.length < 400);
    }
    edge.replace.authorize = changed({ decision: "deny", reason: "some_code_2" });
    await assertDenied(edge, [DeniedByPolicy], "some_code_2");
    for (const reason of ["two words_here", "Some_code", "nocode", "___", "é_é", ""]) {
      edge.replace.authorize = changed({ decision: "deny", reason });
      await assertDenied(edge, [DeniedByPolicy], "policy_denied");
    }
  });
});

test("hostile-garbage", "a trust token that no server takes back is a denial, and is not kept", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const fn = recorder();
      const protectedCall = protect(client, DEFAULTS, fn);
      edge.replace.authorize = changed({ trust_token: "x".repeat(4097) });
      await assert.rejects(protectedCall({ note: "a" }), { name: "DeniedUnverified", code: "bad_reply" });
      assert.equal(fn.calls.length, 0);
      edge.replace.authorize = changed({ trust_token: "x".repeat(4096) });
      await protectedCall({ note: "a" });
      await protectedCall({ note: "a" });
      assert.deepEqual(edge.sent("authorize").map(({ trace }) => trace.trust_token?.length), [undefined, undefined, 4096]);
    });
  });
});

test("retries", "an empty request id is none", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      for (const id of ["", "one"]) await client.authorize(new ToolCall("crm", "a", null, true, {}), { request_id: id });
      assert.deepEqual(edge.sent("authorize").map((body) => body.request_id), [undefined, "one"]);
    });
  });
});

test("retries", "two calls are two requests", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    await withClient(edge.url, async (client) => {
      const protectedCall = protect(client, DEFAULTS, fn);
      await Promise.all([protectedCall({ note: "a" }), protectedCall({ note: "a" })]);
    });
    const [one, other] = edge.sent("authorize");
    assert.notEqual(one.request_id, other.request_id);
    assert.equal(fn.calls.length, 2);
  });
});

test("lost-answer", "an outcome whose answer was lost is reported again as the same", async () => {
  for (const [answer, times] of [[cutOff(1), 2], [BROKEN["broken off"], 3], [SERVER_ERRORS["500"], 1], [SERVER_ERRORS["503"], 3]]) {
    await withEdge(async (edge) => {
      edge.replace.outcome = answer;
      const fn = recorder();
      assert.equal(await call(edge.url, fn), "done");
      const texts = textsOf(edge, "outcome");
      assert.deepEqual([texts.length, new Set(texts).size, fn.calls.length], [times, 1, 1]);
      assert.ok(edge.reported.size <= 1, "one report, however often it was sent");
    });
  }
});

test("retries", "a pause is at least what the server asks for, and a deadline ends it", async () => {
  await withEdge(async (edge) => {
    edge.replace.authorize = [429, { error: { code: "rate_limited", message: "m" } }, { "retry-after": "2" }];
    await assertDenied(edge, [DeniedUnavailable], "rate_limited", { timeoutS: 1 });
    assert.equal(edge.sent("authorize").length, 1, "the pause would end after the deadline");
  });
});

const READ = { mutatesState: false, risk: "low", failOpenReads: true };

test("fail-open", "a read fails open only by name, and only where no server answers", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    for (const answer of [SERVER_ERRORS["500"], SERVER_ERRORS["502"], SERVER_ERRORS["503"], SERVER_ERRORS["504"], BROKEN["broken off"]]) {
      edge.replace.authorize = answer;
      await withClient(edge.url, async (client, warnings) => {
        assert.equal(await protect(client, { ...DEFAULTS, ...READ }, fn)({ note: "a" }), "done");
        assert.match(warnings.join(), /without a decision/);
      });
      await assert.rejects(call(edge.url, fn, undefined, { ...READ, failOpenReads: false }), DeniedUnavailable);
    }
    assert.equal(fn.calls.length, 5);
    assert.deepEqual(edge.sent("outcome"), []);
    const never = [SERVER_ERRORS["401"], SERVER_ERRORS["403"], SERVER_ERRORS["409"], SERVER_ERRORS["429"], GARBAGE["no JSON"], changed({ action_hash: OTHER }),
      changed({ decision: "maybe" }), changed({ decision: "deny" }), GARBAGE["a redirect"]];
    for (const answer of never) {
      edge.replace.authorize = answer;
      await assert.rejects(call(edge.url, fn, undefined, READ), Denied);
    }
    assert.equal(fn.calls.length, 5);
  });
  const fn = recorder();
  assert.equal(await call(await nobody(), fn, undefined, READ), "done");
});

test("fail-open", "nothing fails open for tainted work or a contained agent, nor once it was authorized", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    edge.replace.authorize = SERVER_ERRORS["503"];
    for (const label of ["untrusted_external", "malicious_suspected"]) {
      await assert.rejects(sourceTrust(label, () => call(edge.url, fn, undefined, READ)), DeniedUnavailable);
    }
    await withClient(edge.url, async (client) => {
      const read = protect(client, { ...DEFAULTS, ...READ }, fn);
      for (const reason of ["agent_frozen", "agent_quarantined", "agent_revoked"]) {
        edge.replace.authorize = changed({ decision: "deny", reason });
        await assert.rejects(read({ note: "a" }), (denied) => denied instanceof DeniedByPolicy && denied.code === reason);
        edge.replace.authorize = SERVER_ERRORS["503"];
        await assert.rejects(read({ note: "a" }), DeniedUnavailable);
      }
      assert.deepEqual(fn.calls, []);
      edge.replace.authorize = (honest) => honest;
      await read({ note: "a" });
      edge.replace.authorize = SERVER_ERRORS["503"];
      await read({ note: "b" });
      assert.equal(fn.calls.length, 2, "an agent that was heard to be free");
    });
    edge.replace = { approval: SERVER_ERRORS["500"] };
    edge.decision = "require_approval";
    await assert.rejects(call(edge.url, fn, undefined, READ), DeniedUnavailable);
    assert.equal(fn.calls.length, 2);
  });
});

test("edge-killed", "an edge that is gone while an approval is waited for is a denial", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.statuses = ["PENDING"];
    edge.before.approval = () => {
      edge.close();
    };
    const denied = await assertDenied(edge, [DeniedUnavailable], null, { timeoutS: 5 });
    assert.ok(denied.approvalId);
  });
});

test("edge-killed", "an edge that is away for a moment costs no approval", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.statuses = ["PENDING", "APPROVED"];
    let failing = 3;
    edge.replace.approval = (honest) => (failing-- > 0 ? SERVER_ERRORS["503"] : honest);
    assert.equal(await call(edge.url, recorder()), "done");
  });
});
