// No credential and no argument in a log, in what is printed of an object, in an error or in what an error carries.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { inspect } from "node:util";
import v8 from "node:v8";

import { AegisError, Client, ConfigError, Denied, DeniedUnavailable, DeniedUnfreezable, Secret, ToolCall } from "aegisagent";

import { call, recorder, withClient } from "./calling.mjs";
import { FakeEdge, raw, TOKEN, withEdge } from "./fake.mjs";
import { cases, test } from "./feature.mjs";

const SECRET_ARGUMENT = "hunter2-and-the-rest";

function chain(error) {
  const seen = [];
  for (let one = error; one instanceof Error && !seen.includes(one); one = one.cause) seen.push(one);
  return seen;
}

/** All that an error report shows, hidden properties too. */
const shownBy = (error) => chain(error).map((one) => [String(one), one.stack, JSON.stringify(one), inspect(one, { showHidden: true, depth: 10 })].join("\n")).join("\n");

const escaped = JSON.stringify({ error: { code: "c", message: TOKEN } }).replace(TOKEN[0], `\\u${TOKEN.charCodeAt(0).toString(16).padStart(4, "0")}`);
const ANSWERS = {
  "500": [500, { error: { code: "internal", message: `Bearer ${TOKEN}` } }], "an echo as a code": [400, { error: { code: TOKEN, message: TOKEN } }],
  "an echo as a reason": ([, body]) => [200, { ...body, decision: "deny", reason: `no\n${TOKEN}` }], "garbage": [200, TOKEN], "an echo in escapes": [400, escaped],
  "an echo as an id": ([, body]) => [200, { ...body, decision: "deny", decision_id: `${TOKEN}\n` }], "a redirect": [302, { to: TOKEN }, { location: `http://127.0.0.1:1/${TOKEN}` }],
  "an echo as a key": ([, body]) => [200, { ...body, [TOKEN]: 1 }], "broken off": raw((response, socket) => socket.end("HTTP/1.1 200 OK\r\n")),
  "an echo in an approval": ([, body]) => [200, { ...body, decision: "require_approval", approval: { approver_group: TOKEN } }],
};

cases("no-secrets", "no secret in an error, whatever comes", ANSWERS, async (answer) => {
  await withEdge(async (edge) => {
    edge.replace.authorize = answer;
    const fn = recorder();
    const denied = await call(edge.url, fn, { password: SECRET_ARGUMENT }, {}, { timeoutS: 10 }).catch((error) => error);
    assert.ok(denied instanceof Denied, denied);
    assert.deepEqual(fn.calls, []);
    for (const secret of [TOKEN, SECRET_ARGUMENT]) assert.ok(!shownBy(denied).includes(secret));
    assert.equal(edge.seen[0].headers.authorization, `Bearer ${TOKEN}`);
  });
});

test("no-secrets", "an error carries no error of the HTTP library", async () => {
  const edge = await new FakeEdge().start();
  const { url } = edge;
  await edge.close();
  const denied = await call(url, recorder()).catch((error) => error);
  assert.ok(denied instanceof DeniedUnavailable);
  assert.ok(chain(denied).length > 1 && chain(denied).every((one) => one instanceof AegisError));
});

test("no-secrets", "an error about an argument names the parameter and what is wrong with it, and nothing of it", async () => {
  await withEdge(async (edge) => {
    const bad = [{ [SECRET_ARGUMENT]: NaN }, [SECRET_ARGUMENT, () => 1], { [SECRET_ARGUMENT]: { [Symbol(SECRET_ARGUMENT)]: 1 } }, `${SECRET_ARGUMENT}\ud800`, { get [SECRET_ARGUMENT]() { return 1; } },
      Object(SECRET_ARGUMENT), { [`${SECRET_ARGUMENT}\ud800`]: 1 }, BigInt(7)];
    for (const password of bad) {
      const denied = await call(edge.url, recorder(), { password }).catch((error) => error);
      assert.ok(denied instanceof DeniedUnfreezable);
      assert.match(denied.message, /password/);
      assert.ok(!shownBy(denied).includes(SECRET_ARGUMENT));
    }
  });
});

test("no-secrets", "clients and secrets show nothing, and are not copied or serialised", () => {
  const secret = new Secret(` ${TOKEN}\n`);
  for (const thing of [secret, new Client({ url: "http://127.0.0.1:1", token: secret }), new Client({ url: "http://127.0.0.1:1", token: () => TOKEN })]) {
    const shown = [String(thing), `${thing}`, inspect(thing), inspect({ thing }, { showHidden: true, depth: 20, getters: true }), JSON.stringify(Object.getOwnPropertyDescriptors(thing)),
      JSON.stringify({ ...thing, toJSON: undefined }), JSON.stringify(Object.assign({}, thing, { toJSON: undefined }))];
    for (const text of shown) assert.ok(!text.includes(TOKEN), text);
    for (const copying of [(one) => JSON.stringify(one), (one) => JSON.stringify([{ one }]), structuredClone, v8.serialize]) assert.throws(() => copying(thing));
  }
  assert.ok(secret.equals(new Secret(TOKEN)));
  assert.ok(!secret.equals(new Secret(`${TOKEN}x`)) && !secret.equals(TOKEN) && secret !== TOKEN);
  assert.equal(secret.reveal(), TOKEN);
  assert.equal(secret.redact(`Bearer ${TOKEN}.`), "Bearer ***.");
  assert.throws(() => { secret.reveal = () => "another"; }, TypeError);
});

test("no-secrets", "a registration shows no token, a decision no trust token, an action no arguments", async () => {
  await withEdge(async (edge) => {
    const issued = `issued-${"x".repeat(40)}`;
    edge.replace.other = [201, { id: "i", agent_key: "k", agent_token: issued, expires_at: "2026-01-01T00:00:00Z" }];
    await withClient(edge.url, async (client) => {
      const registration = await client.register({ agent_key: "k", name: "K", environment: "test", risk_tier: "low" });
      assert.equal(registration.agent_token.reveal(), issued);
      assert.ok(!inspect(registration).includes(issued));
      assert.throws(() => JSON.stringify(registration), TypeError);
      const action = new ToolCall("crm", "a", null, true, { password: SECRET_ARGUMENT });
      const decision = await client.authorize(action);
      assert.ok(!inspect(decision).includes("trust_token") && inspect(decision).includes(decision.decision_id));
      assert.deepEqual([JSON.stringify({ decision }).includes("trust_token"), JSON.parse(JSON.stringify(decision)).decision_id], [false, decision.decision_id]);
      assert.ok(!inspect({ action }).includes(SECRET_ARGUMENT));
    });
  });
});

test("no-secrets", "what is no credential is refused without being shown", () => {
  for (const bad of ["", " ", "a b", "a\nb", "é", "x".repeat(5000), "a\0", "a\u007f", null, 7, {}]) {
    assert.throws(() => new Secret(bad), (error) => error instanceof ConfigError && (typeof bad !== "string" || bad.trim() === "" || !error.message.includes(bad)));
  }
});

/** What a program writes whose HTTP library is at its most talkative. */
async function talkative(program, url) {
  const environment = { ...process.env, NODE_DEBUG: "http,https,http2,net,tls,stream,timer,fs,module", EDGE: url };
  const child = spawn(process.execPath, ["--trace-warnings", "--input-type=module", "--eval", program], { cwd: import.meta.dirname, env: environment, timeout: 60_000 });
  const parts = [];
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (part) => parts.push(part));
  await new Promise((done) => child.on("close", done));
  return Buffer.concat(parts).toString();
}

const TALKING = `
import { Client, protect } from "aegisagent";
const client = new Client({ url: process.env.EDGE, token: process.env.HIDDEN.split("").reverse().join("") });
const work = protect(client, { tool: "crm", action: "a", failOpenReads: true, mutatesState: false, risk: "low" }, () => ({ rows: "hunter2-and-the-rest" }));
try {
  await work({ password: "hunter2-" + "and-the-rest" });
  await work({ password: "hunter2-" + "and-the-rest" });
} catch (error) {
  console.error(error);
}
console.error(client);
client.close();
console.log("done");
`;

cases("no-secrets", "no secret in a log of the HTTP library, at its most talkative, nor in a warning", {
  allow: (honest) => honest, deny: ([, body]) => [200, { ...body, decision: "deny" }], error: [500, { error: { code: "internal", message: "m" } }], garbage: [200, "garbage"],
}, async (answer) => {
  await withEdge(async (edge) => {
    edge.replace = { authorize: answer, outcome: [500, {}] };
    const hidden = TOKEN.split("").reverse().join("");
    const said = await talkative(TALKING.replace("process.env.HIDDEN", JSON.stringify(hidden)), edge.url);
    assert.match(said, /done\n/);
    assert.match(said, /HTTP \d+: /);
    assert.equal(edge.seen[0].headers.authorization, `Bearer ${TOKEN}`);
    for (const secret of [TOKEN, SECRET_ARGUMENT]) assert.ok(!said.includes(secret), said.split("\n").filter((line) => line.includes(secret)).join("\n").slice(0, 2000));
  });
});

test("no-secrets", "a message of the server's is shown on one line, and not at any length", async () => {
  await withEdge(async (edge) => {
    edge.replace.authorize = ([, body]) => [200, { ...body, decision: "deny", reason: `no\n\u202e\u001b[31m${"é".repeat(1000)}` }];
    const denied = await call(edge.url, recorder()).catch((error) => error);
    assert.equal(denied.reason, `no   [31m${"é".repeat(291)}…`);
    edge.replace.authorize = [418, { error: { code: "a code", message: "m" } }];
    assert.equal((await call(edge.url, recorder()).catch((error) => error)).code, "http_418");
    edge.replace.authorize = [418, { error: { code: "short_and_stout", message: `a\r\nb${"x".repeat(400)}` } }];
    assert.match((await call(edge.url, recorder()).catch((error) => error)).reason, /^a {2}bx{296}…$/);
  });
});

test("no-secrets", "an error has the name of its kind", async () => {
  const errors = Object.entries(await import("aegisagent")).filter(([, value]) => typeof value === "function" && value.prototype instanceof AegisError);
  assert.ok(errors.length >= 12);
  for (const [name, kind] of errors) assert.equal(new kind("code", "reason").name, name);
});
