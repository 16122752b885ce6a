// How bytes move: where to, over how many connections, for how long; and nothing from the environment.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { chmodSync, createWriteStream, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { Writable } from "node:stream";
import { inspect } from "node:util";

import { ApiError, Client, ConfigError, DeniedUnavailable, DeniedUnverified, protect, Unreachable } from "aegisagent";

import { call, DEFAULTS, recorder, withClient } from "./calling.mjs";
import { selfSigned } from "./certificates.mjs";
import { FakeEdge, raw, TOKEN, withEdge } from "./fake.mjs";
import { cases, test } from "./feature.mjs";
import { PACKAGE } from "./where.mjs";

async function withFolder(work) {
  const folder = mkdtempSync(path.join(os.tmpdir(), "aegis-sdk-"));
  try {
    return await work(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Runs a program in a process of its own, with these variables more. */
async function runWith(environment, program, args = []) {
  const child = spawn(process.execPath, [...args, "--input-type=module", "--eval", program], { cwd: import.meta.dirname, env: { ...process.env, ...environment }, timeout: 60_000 });
  let [out, errors] = ["", ""];
  child.stdout.on("data", (part) => { out += part; });
  child.stderr.on("data", (part) => { errors += part; });
  const status = await new Promise((done) => child.on("close", done));
  return { status, out, errors };
}

const CALLS = `
import { Client, protect } from "aegisagent";
const client = new Client({ url: process.env.EDGE, token: ${JSON.stringify(TOKEN)}, timeoutS: 5 });
try {
  console.log(await protect(client, { tool: "crm", action: "a" }, () => "done")({ password: "hunter2-and-the-rest" }));
} catch (error) {
  console.log(error.code);
}
client.close();
`;

test("transport", "the environment is asked for nothing", async () => {
  await withEdge(async (edge) => {
    await withEdge(async (other) => {
      const proxies = Object.fromEntries(["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"].flatMap((name) => [[name, other.url], [name.toLowerCase(), other.url]]));
      const { status, out } = await runWith({ ...proxies, NO_PROXY: "", NODE_USE_ENV_PROXY: "1", EDGE: edge.url }, CALLS);
      assert.deepEqual([status, out, other.seen], [0, "done\n", []]);
      assert.equal(edge.seen[0].headers.authorization, `Bearer ${TOKEN}`);
      assert.equal(edge.seen[0].headers["accept-encoding"], "identity");
    });
  });
});

test("transport", "only the certificates that were named are believed, whatever the environment says", async () => {
  const [own, another] = [selfSigned(), selfSigned()];
  const seen = [];
  const server = https.createServer(own, (request, response) => {
    seen.push(request.url);
    response.end("{}");
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const url = `https://127.0.0.1:${server.address().port}`;
  await withFolder(async (folder) => {
    const [file, wrong] = [path.join(folder, "own.pem"), path.join(folder, "another.pem")];
    writeFileSync(file, own.cert);
    writeFileSync(wrong, another.cert);
    await withClient(url, async (client) => assert.deepEqual(await client.receipt("a"), {}), { caFile: file });
    assert.equal(seen.length, 1);
    for (const settings of [{}, { caFile: wrong }]) {
      await withClient(url, async (client) => await assert.rejects(client.receipt("a"), (error) => error instanceof Unreachable && error.code === "unreachable" && !error.sent), settings);
    }
    const loose = { NODE_EXTRA_CA_CERTS: file, SSL_CERT_FILE: file, NODE_TLS_REJECT_UNAUTHORIZED: "0", EDGE: url };
    assert.equal((await runWith(loose, CALLS, ["--use-openssl-ca"])).out, "unreachable\n");
    assert.equal(seen.length, 1, "nothing was sent to it");
    assert.throws(() => new Client({ url, token: TOKEN, caFile: path.join(folder, "missing") }), ConfigError);
  });
  server.closeAllConnections();
  server.close();
});

const POLLUTED = {
  hostname: '"127.0.0.2"', host: '"127.0.0.2"', socketPath: '"/nowhere"', path: '"/elsewhere"', lookup: '(name, how, then) => typeof then === "function" && then(null, [{ address: "127.0.0.2", family: 4 }])',
  createConnection: '() => { throw new Error() }', localAddress: '"127.0.0.9"', localPort: "1", family: "6", protocol: '"ftp:"', defaultPort: "1", port: "1", auth: '"a:b"',
  headers: '{ "x-more": "1", host: "elsewhere" }', uniqueHeaders: '["a"]', setHost: "false", timeout: "1", method: '"PUT"', maxHeaderSize: "1", insecureHTTPParser: "true",
  fd: "0", handle: "{}", servername: '"elsewhere.example"', session: "Buffer.alloc(3)", cert: '"a"', pfx: '"a"', ciphers: '"NULL"', maxVersion: '"TLSv1.1"',
  secureProtocol: '"TLSv1_1_method"', rejectUnauthorized: "false", checkServerIdentity: "() => undefined", socket: "{}", secureContext: "{}", pskCallback: "() => null",
};

// Those that Node's own events do not stumble over.
const PLAIN = ["hostname", "host", "socketPath", "path", "createConnection", "localAddress", "auth", "headers"];

cases("transport", "what hangs on every object leads no request elsewhere and adds nothing to it", { "plain http": false, "TLS": true }, async (isSecure) => {
  const [own, another, host] = [selfSigned(), selfSigned(), isSecure ? "127.0.0.1" : "localhost"];
  const seen = [];
  const answer = (request, response) => {
    seen.push([request.socket.remoteAddress, request.method, request.url, request.headers.host, request.headers.authorization, request.headers["x-more"]]);
    response.end("{}");
  };
  const pollution = Object.entries(POLLUTED).filter(([key]) => isSecure || PLAIN.includes(key));
  const server = isSecure ? https.createServer(own, answer) : http.createServer(answer);
  const liar = https.createServer(another, answer);
  for (const one of [server, liar]) await new Promise((done) => one.listen(0, "127.0.0.1", done));
  await withFolder(async (folder) => {
    const [file, wrong] = [path.join(folder, "own.pem"), path.join(folder, "another.pem")];
    writeFileSync(file, own.cert);
    writeFileSync(wrong, another.cert);
    const [url, lie] = [server, liar].map((one) => `http${isSecure ? "s" : ""}://${host}:${one.address().port}`);
    const program = `
import { readFileSync } from "node:fs";
import tls from "node:tls";
import { Client } from "aegisagent";
const settings = { token: ${JSON.stringify(TOKEN)}, timeoutS: 1, caFile: ${JSON.stringify(file)} };
const polluted = { ${pollution.map(([key, value]) => `${key}: ${value}`).join(", ")} };
async function ask(url, key, value) {
  const before = key.startsWith("late ") ? new Client({ ...settings, url }) : null;
  const name = key.replace("late ", "");
  Object.defineProperty(Object.prototype, name, { value, configurable: true, writable: true, enumerable: false });
  try {
    const client = before ?? new Client({ ...settings, url });
    await client.receipt("a");
    client.close();
    return "ok";
  } catch (error) {
    return error.code ?? error.message;
  } finally {
    delete Object.prototype[name];
  }
}
const answers = {};
for (const [key, value] of Object.entries(polluted)) for (const when of ["", "late "]) answers[when + key] = await ask(${JSON.stringify(url)}, when + key, value);
if (${isSecure}) {
  const secureContext = tls.createSecureContext({ ca: readFileSync(${JSON.stringify(wrong)}) });
  for (const [key, value] of Object.entries({ secureContext, ca: readFileSync(${JSON.stringify(wrong)}), rejectUnauthorized: false })) {
    for (const when of ["", "late "]) answers[when + "lie " + key] = await ask(${JSON.stringify(lie)}, when + key, value);
  }
}
console.log(JSON.stringify(answers));
`;
    const { out, errors } = await runWith({}, program);
    for (const one of [server, liar]) {
      one.closeAllConnections();
      one.close();
    }
    const answers = JSON.parse(out || "{}");
    assert.notEqual(out, "", errors);
    assert.deepEqual(Object.entries(answers).filter(([key, value]) => value !== (key.includes("lie ") ? "unreachable" : "ok")), [], errors);
    const count = 2 * pollution.length;
    const expected = ["127.0.0.1", "GET", "/v1/receipts/a", new URL(url).host, `Bearer ${TOKEN}`, undefined];
    assert.deepEqual(seen, Array(count).fill(expected));
  });
});

cases("transport", "a redirect is not followed and carries the token nowhere", { 301: 301, 302: 302, 303: 303, 307: 307, 308: 308 }, async (status) => {
  await withEdge(async (edge) => {
    await withEdge(async (other) => {
      const fn = recorder();
      edge.replace.authorize = [status, "{}", { location: `${other.url}/v1/authorize` }];
      await assert.rejects(call(edge.url, fn), (denied) => denied instanceof DeniedUnverified && /redirect/.test(denied.message));
      assert.deepEqual([other.seen, fn.calls], [[], []]);
    });
  });
});

test("transport", "a cookie is not kept, and connections are", async () => {
  await withEdge(async (edge) => {
    edge.replace.authorize = ([status, body]) => [status, body, { "set-cookie": "id=1; Path=/" }];
    await withClient(edge.url, async (client) => {
      const protectedCall = protect(client, DEFAULTS, recorder());
      for (let number = 0; number < 5; number += 1) await protectedCall({ note: "a" });
    });
    assert.ok(edge.seen.every(({ headers }) => headers.cookie === undefined));
    assert.equal(new Set(edge.seen.map(({ port }) => port)).size, 1);
  });
});

test("transport", "of many calls at once 16 are on their way, the others wait, and all come", async () => {
  await withEdge(async (edge) => {
    let [open, most] = [0, 0];
    edge.replace.other = raw(async (response) => {
      open += 1;
      most = Math.max(most, open);
      // None is answered before so many are there; a further one would have come by then.
      while (most < 16) await new Promise((done) => setTimeout(done, 5));
      await new Promise((done) => setTimeout(done, 20));
      open -= 1;
      response.end("{}");
    });
    await withClient(edge.url, async (client) => await Promise.all(Array.from({ length: 100 }, (_, number) => client.receipt(String(number)))));
    assert.equal(most, 16);
    assert.equal(new Set(edge.seen.map(({ port }) => port)).size, 16);
  });
});

test("transport", "a call that waits for its turn until its end was not sent", async () => {
  await withEdge(async (edge) => {
    edge.replace.other = raw(() => undefined);
    const client = new Client({ url: edge.url, token: TOKEN, timeoutS: 0.3 });
    // An export has more time than other calls.
    const exports = Promise.allSettled(Array.from({ length: 16 }, () => client.exportReceipts(() => undefined)));
    while (edge.seen.length < 16) await new Promise((done) => setTimeout(done, 5));
    await assert.rejects(client.consume("id", "ab".repeat(32)), (error) => error instanceof Unreachable && error.code === "unreachable" && !error.sent);
    client.close();
    assert.deepEqual((await exports).map(({ reason }) => reason.code), Array(16).fill("no_answer"));
    assert.deepEqual(edge.sent("consume"), []);
  });
});

test("transport", "an idle connection is closed before the server does", async () => {
  const closed = [];
  const server = net.createServer((socket) => {
    socket.on("data", () => socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"));
    socket.on("close", () => closed.push("by the client"));
    socket.on("error", () => undefined);
    // The server itself would keep it three times as long.
    socket.setTimeout(15_000, () => {
      closed.push("by the server");
      socket.destroy();
    });
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  await withClient(`http://127.0.0.1:${server.address().port}`, async (client) => {
    await client.receipt("a");
    assert.deepEqual(closed, []);
    while (closed.length === 0) await new Promise((done) => setTimeout(done, 50));
    assert.deepEqual(closed, ["by the client"]);
    await client.receipt("a");
  });
  server.close();
});

test("transport", "an answer may take longer than an idle connection is kept", async () => {
  await withEdge(async (edge) => {
    edge.replace.other = raw(async (response) => {
      await new Promise((done) => setTimeout(done, 6000));
      response.end("{}");
    });
    await withClient(edge.url, async (client) => assert.deepEqual(await client.receipt("a"), {}));
    assert.equal(edge.seen.length, 1);
  });
});

test("transport", "a client that is idle keeps no program from its end", async () => {
  await withEdge(async (edge) => {
    const { status, out } = await runWith({ EDGE: edge.url }, CALLS.replace("client.close();", 'process.on("exit", () => console.log("end"));'));
    assert.deepEqual([status, out], [0, "done\nend\n"]);
  });
});

const BAD_URLS = [
  "", "edge", "ftp://edge", "http://edge.example", "http://10.0.0.1:8484", "http://127.0.0.1.example", "http://u:p@127.0.0.1", "http://u@127.0.0.1", "https://edge/?a=1", "https://edge/#a", "https://edge/path",
  "http://[::2]:1", "http://localhost.example", "http:127.0.0.1", "http://127.0.0.1\\@evil.example", "http://127.0.0.1:99999", " http://127.0.0.1", "http://127.0.0.1\n", "https://", "http://0.0.0.0:1", null, 3, {},
];
test("transport", "a base URL that shows the token to others is refused", () => {
  for (const url of BAD_URLS) assert.throws(() => new Client({ url, token: TOKEN }), ConfigError, String(url));
  for (const url of ["http://127.0.0.1:8484", "http://localhost:1/", "http://[::1]:1", "https://edge.example", "https://10.0.0.1:1"]) {
    assert.equal(new Client({ url, token: TOKEN }).baseUrl, url.replace(/\/$/, ""));
  }
  assert.equal(new Client({ url: "http://edge.example:8484", token: TOKEN, allowPlainHttp: true }).baseUrl, "http://edge.example:8484");
  assert.throws(() => new Client({ url: "http://edge.example", token: TOKEN, allowPlainHttp: 1 }), ConfigError);
});

test("transport", "an id leads nowhere else", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      for (const bad of ["", ".", "..", null, undefined, 7, ["a"], "\ud800"]) await assert.rejects(client.receipt(bad), ConfigError);
      await client.receipt("../agents/a?b=c#d é!'()*%2f");
      edge.replace.other = [200, []];
      await client.receipts({ agentId: "a&limit=1", runId: "r" });
    });
    assert.deepEqual(edge.seen.map(({ path: at }) => at), [
      "/v1/receipts/..%2Fagents%2Fa%3Fb%3Dc%23d%20%C3%A9%21%27%28%29%2A%252f", "/v1/receipts?agent_id=a%26limit%3D1&run_id=r&limit=50&offset=0",
    ]);
  });
});

test("transport", "a token that changes is asked for each time, also by a function that is awaited", async () => {
  await withEdge(async (edge) => {
    const tokens = ["a", "b", "c", "d", "e", "f"].map((letter) => letter.repeat(32));
    for (const token of [() => tokens.shift(), async () => tokens.shift()]) {
      await withClient(edge.url, async (client) => {
        await client.receipt("a");
        await client.receipt("b");
      }, { token });
    }
    assert.equal(new Set(edge.seen.map(({ headers }) => headers.authorization)).size, 4);
    await withClient(edge.url, async (client) => {
      const fn = recorder();
      await assert.rejects(protect(client, DEFAULTS, fn)({ note: "a" }), ConfigError);
      assert.deepEqual(fn.calls, []);
    }, { token: () => "no credential" });
    for (const [token, kind] of [[() => new Promise(() => undefined), DeniedUnavailable], [() => Promise.reject(new RangeError("mine")), DeniedUnavailable], [() => { throw new RangeError("mine"); }, DeniedUnavailable], [() => undefined, DeniedUnavailable]]) {
      const fn = recorder();
      for (const how of [{}, { mutatesState: false, risk: "low", failOpenReads: true }]) {
        await assert.rejects(call(edge.url, fn, undefined, how, { token, timeoutS: 0.2 }), (error) => error instanceof kind && error.code === "no_credential" && !/mine/.test(inspect(error)));
      }
      assert.deepEqual(fn.calls, []);
    }
    assert.equal(edge.seen.length, 4);
  });
});

test("transport", "an export is written as it comes, asked for once, and one that breaks off is an error", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const gathered = () => {
        const parts = [];
        return { parts, sink: (part) => parts.push(Buffer.from(part).toString()) };
      };
      edge.replace.other = [200, "{}\n{}\n"];
      const whole = gathered();
      await client.exportReceipts(whole.sink);
      assert.equal(whole.parts.join(""), "{}\n{}\n");
      edge.replace.other = raw((response, socket) => {
        socket.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n");
        socket.destroySoon();
      });
      const half = gathered();
      await assert.rejects(client.exportReceipts(half.sink), Unreachable);
      assert.equal(half.parts.join(""), "{}\n", "what came is written");
      edge.replace.other = [403, { error: { code: "wrong_role", message: "m" } }];
      const none = gathered();
      await assert.rejects(client.exportReceipts(none.sink), (error) => error instanceof ApiError && error.code === "wrong_role");
      edge.replace.other = [503, { error: { code: "control_busy", message: "m" } }];
      await assert.rejects(client.exportReceipts(none.sink), ApiError);
      assert.deepEqual(none.parts, []);
      assert.equal(edge.seen.length, 4, "each was asked for once");
      edge.replace.other = [200, "{}\n"];
      const full = createWriteStream("/dev/full");
      await assert.rejects(client.exportReceipts(full), { code: "ENOSPC" });
      await assert.rejects(client.exportReceipts(new Writable({ write: (part, encoding, done) => done(new RangeError("mine")) })), RangeError);
      await assert.rejects(client.exportReceipts(() => Promise.reject(new RangeError("mine"))), RangeError);
    });
  });
});

test("client-config", "url and token come from the environment where none is given", async () => {
  const program = `
import { Client } from "aegisagent";
try {
  const client = new Client();
  await client.receipt("a");
  client.close();
  console.log("asked");
} catch (error) {
  console.log(error.name);
}`;
  await withEdge(async (edge) => {
    await withFolder(async (folder) => {
      const file = path.join(folder, "token");
      writeFileSync(file, `${TOKEN}\n`);
      chmodSync(file, 0o600);
      const ask = async (environment) => (await runWith({ AEGISAGENT_URL: edge.url, ...environment }, program)).out;
      assert.equal(await ask({ AEGISAGENT_TOKEN_FILE: file }), "asked\n");
      assert.equal(await ask({ AEGISAGENT_TOKEN: TOKEN }), "asked\n");
      assert.deepEqual(edge.seen.map(({ headers }) => headers.authorization), Array(2).fill(`Bearer ${TOKEN}`));
      const bad = [{ AEGISAGENT_TOKEN: TOKEN, AEGISAGENT_TOKEN_FILE: file }, { AEGISAGENT_TOKEN_FILE: path.join(folder, "missing") }, {}, { AEGISAGENT_TOKEN: "two words" }, { AEGISAGENT_TOKEN: TOKEN, AEGISAGENT_URL: "http://edge.example" }];
      for (const environment of bad) assert.equal(await ask(environment), "ConfigError\n");
      assert.equal(edge.seen.length, 2);
    });
  });
});

test("client-config", "a timeout is a timeout, labels are what a server takes, and a setting is one that is known", () => {
  const bad = [
    { timeoutS: 0 }, { timeoutS: -1 }, { timeoutS: 10_000 }, { timeoutS: NaN }, { timeoutS: "1" }, { agent: "" }, { agent: "\ud800" }, { environment: "a\nb" }, { tenant: "A" }, { tenant: "a\r\nx-evil: 1" }, { token: 7 },
    { token: {} }, { onWarning: "x" }, { timeout: 1 }, { base_url: "http://127.0.0.1:1" }, { caFile: "/nowhere/ca.pem" },
  ];
  for (const settings of bad) assert.throws(() => new Client({ url: "https://127.0.0.1:1", token: TOKEN, ...settings }), ConfigError, JSON.stringify(settings));
});

test("client-config", "agent, environment and tenant are sent", async () => {
  await withEdge(async (edge) => {
    await call(edge.url, recorder(), undefined, {}, { agent: "bot", environment: "production", tenant: "acme" });
    assert.deepEqual(edge.sent("authorize")[0].agent, { id: "bot", environment: "production" });
    assert.equal(edge.seen[0].headers["x-aegis-tenant-id"], "acme");
    const { version } = JSON.parse(readFileSync(path.join(PACKAGE, "package.json"), "utf8"));
    assert.equal(edge.seen[0].headers["user-agent"], `aegisagent-typescript/${version}`);
  });
});

test("transport", "a client that is closed asks nobody", async () => {
  await withEdge(async (edge) => {
    const fn = recorder();
    const client = new Client({ url: edge.url, token: TOKEN });
    const protectedCall = protect(client, DEFAULTS, fn);
    client.close();
    const read = protect(client, { ...DEFAULTS, mutatesState: false, risk: "low", failOpenReads: true }, fn);
    for (const one of [protectedCall, read]) await assert.rejects(one({ note: "a" }), (error) => error instanceof DeniedUnavailable && error.code === "client_closed");
    assert.deepEqual([fn.calls, edge.seen], [[], []]);
  });
});

test("transport", "a server that is not there yet is found when it is", async () => {
  const edge = await new FakeEdge().start();
  const { url } = edge;
  await edge.close();
  const later = new FakeEdge();
  await withClient(url, async (client) => {
    const asked = client.receipt("a");
    await later.start(url);
    assert.deepEqual(await asked, {});
  });
  await later.close();
});
