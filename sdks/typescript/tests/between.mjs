// What stands between an SDK and the real program, and changes what is sent: a swap that no honest part of either would make.

import http from "node:http";

import { ownHost } from "./loopback.mjs";

/**
 * `change(path, body)` may change a request's body, and may do something before it is passed on. Answers come back as they are, but for those that
 * `isLost(path)` breaks off: what was asked is done then, and who asked never learns of it. `answered(path, reply)` may put another answer in the
 * place of `[status, body]`, or one that is written by hand.
 */
export async function withBetween(url, change, work, isLost = () => false, answered = () => undefined) {
  const server = http.createServer(async (request, response) => {
    const parts = [];
    for await (const part of request) parts.push(part);
    const text = Buffer.concat(parts).toString("utf8");
    const body = (await change(request.url, text === "" ? null : JSON.parse(text))) ?? (text === "" ? undefined : text);
    const reply = await fetch(`${url}${request.url}`, {
      method: request.method, headers: { authorization: request.headers.authorization, "content-type": "application/json" }, body: typeof body === "object" ? JSON.stringify(body) : body,
    });
    const honest = Buffer.from(await reply.arrayBuffer());
    const answer = answered(request.url, [reply.status, honest]) ?? [reply.status, honest];
    if (typeof answer === "function") {
      await answer(response, request.socket);
      return;
    }
    const [status, value] = answer;
    const data = Buffer.from(Buffer.isBuffer(value) || typeof value === "string" ? value : JSON.stringify(value));
    response.writeHead(status, { "content-type": "application/json", "content-length": data.length });
    if (isLost(request.url)) {
      response.write(data.subarray(0, data.length / 2), () => response.destroy());
      return;
    }
    response.end(data);
  });
  const host = await ownHost();
  await new Promise((done) => server.listen(0, host, done));
  try {
    return await work(`http://${host}:${server.address().port}`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}
