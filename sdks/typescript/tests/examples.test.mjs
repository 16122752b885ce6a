// The README as a reader copies it, and the examples, against the real program.

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { after } from "node:test";
import { promisify } from "node:util";

import { Client } from "aegisagent";

import { cases, test } from "./feature.mjs";
import { Aegis, CLEAN_ENVIRONMENT, waitUntil } from "./harness.mjs";
import { PACKAGE } from "./where.mjs";

const run = promisify(execFile);
const BLOCK = /^(?:<!-- example: (\w+) -->\n)?```(\w+)\n(.*?)^```$/gms;

const aegis = await new Aegis().start();
after(async () => {
  await aegis.close();
});

/** A folder in which a reader's files find the installed packages. */
async function withFolder(work) {
  const folder = mkdtempSync(path.join(import.meta.dirname, "reader-"));
  try {
    return await work(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Runs a program as a reader does; it says nothing on standard error. */
async function runIn(folder, program, environment) {
  const file = path.join(folder, `${Math.random()}.mjs`);
  writeFileSync(file, program);
  const { stdout, stderr } = await run(process.execPath, [file], { cwd: folder, env: environment, timeout: 300_000 });
  assert.equal(stderr, "");
  return stdout;
}

const readme = [...readFileSync(path.join(PACKAGE, "README.md"), "utf8").matchAll(BLOCK)].map(([, name, language, text]) => ({ name, language, text }));
const code = Object.fromEntries(readme.filter(({ name }) => name).map(({ name, text }) => [name, text]));

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** Runs a shell's program, and ends what it leaves behind. */
async function shell(program, folder, environment) {
  const child = spawn("sh", ["-eu", "-c", program], { cwd: folder, env: environment, detached: true, stdio: ["ignore", "ignore", "pipe"] });
  let errors = "";
  child.stderr.on("data", (part) => { errors += part; });
  const late = setTimeout(() => process.kill(-child.pid, "SIGKILL"), 300_000);
  const [status] = await once(child, "close");
  clearTimeout(late);
  try {
    process.kill(-child.pid, "SIGKILL");
  } catch {
    // It has left nothing.
  }
  assert.equal(status, 0, errors);
}

test("readme", "the README's lines for the shell run as they are written, from an empty folder on", async () => {
  const [install, start, register, ...others] = readme.filter(({ language }) => language === "sh").map(({ text }) => text);
  assert.deepEqual(others, []);
  const place = mkdtempSync(path.join(os.tmpdir(), "aegis-reader-"));
  try {
    const [programs, checkout, folder] = ["bin", "checkout", "reader"].map((name) => path.join(place, name));
    for (const made of [programs, folder]) mkdirSync(made);
    symlinkSync(path.resolve(process.env.AEGIS_BIN), path.join(programs, "aegis"));
    // A copy: the build begins with an empty one.
    cpSync(PACKAGE, path.join(checkout, "sdks/typescript"), { recursive: true, filter: (from) => !/\/(node_modules|dist|[^/]*\.tgz)$/.test(from) });
    const port = await freePort();
    const environment = {
      ...CLEAN_ENVIRONMENT, ...(process.env.AEGIS_CACHE ? { AEGIS_CACHE: process.env.AEGIS_CACHE } : {}), PATH: `${programs}:${process.env.PATH}`, AEGIS_LISTEN: `127.0.0.1:${port}`,
      npm_config_offline: "true", npm_config_update_notifier: "false",
    };
    const written = (text) => text.replaceAll("CHECKOUT", checkout).replaceAll("8484", String(port));
    await shell(written(install), folder, environment);
    assert.ok(existsSync(path.join(folder, "node_modules/aegisagent/dist/index.js")));
    for (const name of ["register", "call", "approve"]) writeFileSync(path.join(folder, `${name}.mjs`), code[name]);
    writeFileSync(path.join(folder, "ask"), code.ask);
    await shell([
      written(start), "server=$!", "trap 'kill $server; wait $server || true' EXIT", written(register), "node call.mjs > first", "cat ask >> call.mjs", "node call.mjs > second & asks=$!",
      "until node approve.mjs | grep -q 'amount: 5'; do sleep 0.2; done", "wait $asks",
    ].join("\n"), folder, environment);
    const [first, second] = ["first", "second"].map((name) => readFileSync(path.join(folder, name), "utf8"));
    assert.match(first, /^denied \(policy_denied\): .*\n$/);
    assert.match(second, /^denied \(policy_denied\): .*\nrefunded 5 for order-7\n$/);
  } finally {
    rmSync(place, { recursive: true, maxRetries: 10, retryDelay: 100 });
  }
});

test("readme", "the README leads from nothing to a first denied and a first approved call", async () => {
  assert.ok(code.call.split("\n").filter((line) => line !== "").length < 10);
  const environment = { ...CLEAN_ENVIRONMENT, AEGISAGENT_URL: aegis.url, AEGISAGENT_TOKEN_FILE: "./agent.token" };
  const keys = readme.find(({ language, text }) => language === "sh" && text.includes("aegis up")).text.split("\n").filter((line) => line.includes("keys create"));
  assert.equal(keys.length, 2);
  for (const line of keys) {
    const [, name, command] = /^export (\w+)=\$\(aegis (.*)\)$/.exec(line);
    environment[name] = aegis.cli(...command.replace("./aegis-data", aegis.data).split(" ")).trim();
  }
  await withFolder(async (folder) => {
    await runIn(folder, code.register, environment);
    assert.equal(statSync(path.join(folder, "agent.token")).mode & 0o077, 0);
    const approver = new Client({ url: aegis.url, token: environment.APPROVER });
    const approved = waitUntil("somebody asks", async () => (await approver.approvals({ status: "PENDING" })).length > 0).then(() => runIn(folder, code.approve, environment));
    const said = await runIn(folder, code.call + code.ask, environment);
    assert.match(await approved, /amount: 5/);
    approver.close();
    const [first, ...rest] = said.trimEnd().split("\n");
    assert.match(first, /^denied \(policy_denied\): an untrusted source may not change state/);
    assert.deepEqual(rest, ["refunded 5 for order-7"]);
    const admin = JSON.parse(aegis.cli("keys", "create", "--tenant", "acme", "--role", "admin", "--name", "ada", "--data", aegis.data, "--json")).key;
    const auditor = new Client({ url: aegis.url, token: admin });
    const parts = [];
    await auditor.exportReceipts((part) => parts.push(part));
    auditor.close();
    writeFileSync(path.join(folder, "receipts.jsonl"), Buffer.concat(parts));
    for (const name of ["edge.pub", "control.pub"]) copyFileSync(path.join(aegis.data, "keys", name), path.join(folder, name));
    assert.equal(await runIn(folder, code.evidence, environment), "valid null\n");
  });
});

const EXPECTED = {
  "async-tasks.mjs": ["customer-0 has dana@example.test", "ticket 1: policy_denied"],
  "approval.mjs": ["waiting for the group security", "refunded 5"],
  "langchain-tools.mjs": ["c-1 is a customer", "The call was denied: policy_denied"],
  "openai-agents-tools.mjs": ["c-1 has dana@example.test", "The call was denied: policy_denied"],
  "mcp-session.mjs": ["what stands in a.txt", "denied (policy_denied)"],
  "worker-threads.mjs": ["trusted_internal_unsigned: customer-1 is updated", "untrusted_external: customer-2: policy_denied"],
};

cases("examples", "an example does what it says", Object.fromEntries(Object.keys(EXPECTED).map((name) => [name, name])), async (name) => {
  const tenant = await aegis.tenant();
  await tenant.settings({ automatic_freezes_per_hour: 0 });
  await tenant.call("POST", "/v1/mcp/servers", { key: "files", name: "Files", tools: [{ name: "read_file", mutates_state: false, risk: "low" }, { name: "write_file" }] });
  const agent = await tenant.call("POST", "/v1/agents/register", { agent_key: "bot", name: "Bot", environment: "production", risk_tier: "low" });
  const environment = { ...CLEAN_ENVIRONMENT, AEGISAGENT_URL: aegis.url, AEGISAGENT_TOKEN: agent.agent_token };
  const approver = await tenant.key("approver", "rita", ["security"]);
  const approve = async () => {
    const [pending] = await waitUntil("somebody asks", async () => {
      const found = await tenant.call("GET", "/v1/approvals?status=PENDING");
      return found.length > 0 && found;
    });
    await tenant.call("POST", `/v1/approvals/${pending.approval_id}/approve`, {}, approver);
  };
  await withFolder(async (folder) => {
    const deciding = name === "approval.mjs" ? approve() : Promise.resolve();
    const said = await runIn(folder, readFileSync(path.join(PACKAGE, "examples", name), "utf8"), environment);
    await deciding;
    for (const line of EXPECTED[name]) assert.ok(said.includes(line), said);
  });
});

test("examples", "every example is run", () => {
  assert.deepEqual(readdirSync(path.join(PACKAGE, "examples")).sort(), Object.keys(EXPECTED).sort());
});
