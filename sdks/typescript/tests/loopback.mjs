// Where a test's own servers listen. The test files run beside one another, and a port that one has given up may be given to another: a call to a
// server that was closed would then reach whoever has its port now. So each server has an address of its own, and nobody takes its place.

import net from "node:net";

const LAST = 254;
let count = 0;

/** An address on loopback that no server had, of this process or of one beside it. Where a system knows 127.0.0.1 alone, that. */
export async function ownHost() {
  count += 1;
  const host = [127, 1 + (Math.floor(process.pid / 256) % LAST), process.pid % 256, 1 + (count % LAST)].join(".");
  return (await canListen(host)) ? host : "127.0.0.1";
}

/** The URL of an address at which nobody listens. */
export async function nobody() {
  const host = await ownHost();
  const server = net.createServer();
  await new Promise((done) => server.listen(0, host, done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return `http://${host}:${port}`;
}

async function canListen(host) {
  const server = net.createServer();
  return await new Promise((done) => {
    server.once("error", () => done(false));
    server.listen(0, host, () => server.close(() => done(true)));
  });
}
