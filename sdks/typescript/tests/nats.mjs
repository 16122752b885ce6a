// A real NATS server on loopback, by which a control plane and an edge of its own speak to each other.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";

const BINARY = "/usr/sbin/nats-server";

async function freePort() {
  const server = net.createServer();
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

export async function withNats(work) {
  const folder = mkdtempSync(path.join(os.tmpdir(), "aegis-nats-"));
  const port = await freePort();
  const configuration = path.join(folder, "server.conf");
  writeFileSync(configuration, `listen: "127.0.0.1:${port}"\njetstream { store_dir: "${path.join(folder, "jetstream")}" }\n`);
  const server = spawn(BINARY, ["-c", configuration], { stdio: ["ignore", "ignore", "pipe"] });
  try {
    for await (const line of createInterface({ input: server.stderr })) if (line.includes("Server is ready")) break;
    server.stderr.resume();
    return await work(`nats://127.0.0.1:${port}`);
  } finally {
    if (server.exitCode === null) {
      const ended = once(server, "exit");
      server.kill("SIGKILL");
      await ended;
    }
    rmSync(folder, { recursive: true, force: true });
  }
}
