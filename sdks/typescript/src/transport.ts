/**
 * Moves one request and its answer, within a deadline for all of it. Bounded in size, follows no redirect, keeps no cookie, and asks the
 * environment for nothing: no proxy, no `.netrc`, no certificates, no weaker TLS.
 *
 * Errors of the HTTP library are not passed on: they may hold what was sent.
 */

import { Buffer } from "node:buffer";
import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import net from "node:net";
import tls from "node:tls";

import { ConfigError, BadReply, RequestFailed, Unreachable } from "./errors.js";
import { MAX_REPLY_BYTES, type Reply, type Request, type Sending } from "./exchange.js";
import { clearTimer, isOneOf, monotonic, setTimer } from "./natives.js";
import { reasonOf } from "./pause.js";
import type { Secret } from "./secret.js";
import { VERSION } from "./version.js";

/** Where an export goes: a stream, or a function that is awaited for each part. */
export type Sink = NodeJS.WritableStream | ((part: Uint8Array) => unknown);

const { request: plainRequest } = http;
const { request: secureRequest } = https;
const { checkServerIdentity } = tls;

// Node reads options through their prototype: what is not said here could be said by whoever can write to `Object.prototype`, and lead elsewhere.
const UNSET: Readonly<Record<string, undefined>> = unset([
  // Where to, and from where.
  "socketPath", "lookup", "createConnection", "localAddress", "localPort", "family", "hints", "autoSelectFamily", "autoSelectFamilyAttemptTimeout", "blockList",
  "handle", "fd", "socket", "signal", "onread",
  // What is sent.
  "protocol", "_defaultAgent", "defaultPort", "auth", "headers", "uniqueHeaders", "maxHeaderSize", "joinDuplicateHeaders",
  // Whom to believe. A session would spare the certificate.
  "servername", "secureContext", "session", "pskCallback", "cert", "key", "pfx", "passphrase", "crl", "sigalgs", "ecdhCurve", "dhparam", "secureProtocol",
  "secureOptions", "maxVersion", "clientCertEngine", "privateKeyEngine", "privateKeyIdentifier", "requestOCSP", "enableTrace", "allowPartialTrustChain",
]);

const USER_AGENT = `aegisagent-typescript/${VERSION}`;
const CONNECT_S = 5;
// Below the server's own 15 s, so that an idle connection is not reused in the moment in which it is closed there.
const IDLE_MS = 5_000;
// Further calls wait for their turn.
const MAX_CONNECTIONS = 16;
const BASE_URL = /^(https?):\/\/([^/?#@\\\s]+)\/?$/i;
// Connections that stood once, and are used again.
const READY = new WeakSet<net.Socket>();
// What a timer takes, ms.
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** The base URL without a slash at its end. Plain HTTP beyond this machine would show the token to everybody between. */
export function checkedBaseUrl(baseUrl: unknown, allowPlainHttp: boolean): URL {
  const isShape = typeof baseUrl === "string" && BASE_URL.test(baseUrl) && URL.canParse(baseUrl);
  if (!isShape) throw new ConfigError("the base URL must be http(s)://host[:port], without user, path, query and fragment");
  const url = new URL(baseUrl);
  if (url.protocol === "http:" && !allowPlainHttp && !isLoopback(url.hostname)) {
    throw new ConfigError("plain http beyond this machine shows the token to whoever listens: use https, or say allowPlainHttp: true");
  }
  return url;
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "[::1]" || (net.isIPv4(host) && host.startsWith("127."));
}

/** Sends, and lets others run meanwhile. */
export class Transport {
  readonly #url: URL;
  readonly #tenant: string | null;
  readonly #agent: http.Agent;
  #isClosed = false;

  constructor(url: URL, tenant: string | null, caFile: string | null) {
    this.#url = url;
    this.#tenant = tenant;
    const options = {
      ...UNSET, keepAlive: true, maxSockets: MAX_CONNECTIONS, maxTotalSockets: MAX_CONNECTIONS, maxFreeSockets: MAX_CONNECTIONS, timeout: IDLE_MS,
      keepAliveMsecs: 1000, scheduling: "lifo" as const, noDelay: true,
    };
    // Said one by one, because each has a variable or an option of Node's that would loosen it.
    const trusted = {
      ca: certificates(caFile), rejectUnauthorized: true, minVersion: "TLSv1.2" as const, ALPNProtocols: ["http/1.1"], checkServerIdentity, maxCachedSessions: 0,
    };
    this.#agent = url.protocol === "https:" ? new https.Agent({ ...options, ...trusted }) : new http.Agent(options);
  }

  /** Closes all connections. Nothing is sent any more. */
  close(): void {
    this.#isClosed = true;
    this.#agent.destroy();
  }

  /** One attempt; Unreachable or BadReply where it gets no whole answer, the signal's reason where the work is broken off. */
  async send(request: Request<unknown>, deadline: number, sending: Pick<Sending, "secret" | "signal" | "sink">): Promise<Reply> {
    sending.signal?.throwIfAborted();
    if (this.#isClosed) throw new RequestFailed("client_closed", "the client is closed", false);
    return await new Attempt(this.#open(request), request, sending.signal, sending.sink).reply(deadline, (out) => {
      this.#head(out, request, sending.secret);
    });
  }

  #open(request: Request<unknown>): http.ClientRequest | null {
    const make = this.#url.protocol === "https:" ? secureRequest : plainRequest;
    try {
      const host = this.#url.hostname.replace(/^\[|\]$/g, "");
      const port = this.#url.port || (this.#url.protocol === "https:" ? 443 : 80);
      // No headers here: these options go into Node's own debug log, the headers do not.
      return make({
        ...UNSET, agent: this.#agent, hostname: host, host, port, method: request.method, path: request.path, setHost: true, timeout: undefined,
        insecureHTTPParser: false,
      });
    } catch {
      return null;
    }
  }

  #head(out: http.ClientRequest, request: Request<unknown>, secret: Secret): void {
    out.setHeader("Accept", "application/json");
    out.setHeader("Accept-Encoding", "identity");
    out.setHeader("User-Agent", USER_AGENT);
    out.setHeader("Authorization", `Bearer ${secret.reveal()}`);
    if (this.#tenant !== null) out.setHeader("X-Aegis-Tenant-ID", this.#tenant);
    if (request.body === undefined) return;
    out.setHeader("Content-Type", "application/json");
    out.setHeader("Content-Length", request.body.length);
  }
}

function unset(names: readonly string[]): Readonly<Record<string, undefined>> {
  return Object.freeze(Object.fromEntries(names.map((name) => [name, undefined])));
}

function certificates(caFile: string | null): string[] {
  if (caFile === null) return [...tls.rootCertificates];
  try {
    return [readFileSync(caFile, "utf8")];
  } catch {
    throw new ConfigError("the file of caFile cannot be read");
  }
}

function unreachable(): Unreachable {
  return new Unreachable("unreachable", "there is no connection to the server", false);
}

function noAnswer(): Unreachable {
  return new Unreachable("no_answer", "the server did not answer in time, or broke off");
}

/** The first of everything that can end an attempt ends it. */
class Attempt {
  readonly #timers: NodeJS.Timeout[] = [];
  #isConnected = false;
  #hasAnswer = false;
  #isSettled = false;

  constructor(
    private readonly out: http.ClientRequest | null,
    private readonly request: Request<unknown>,
    private readonly signal: AbortSignal | null,
    private readonly sink: Sink | undefined,
  ) {}

  async reply(deadline: number, head: (out: http.ClientRequest) => void): Promise<Reply> {
    const out = this.out;
    if (out === null) throw unreachable();
    return await new Promise<Reply>((resolve, reject) => {
      const settle = (end: () => void): void => {
        if (this.#isSettled) return;
        this.#isSettled = true;
        for (const timer of this.#timers) clearTimer(timer);
        this.signal?.removeEventListener("abort", onAbort);
        end();
      };
      const fail = (error: unknown): void => {
        settle(() => {
          reject(error);
          out.destroy();
        });
      };
      const onAbort = (): void => {
        fail(reasonOf(this.signal));
      };
      this.signal?.addEventListener("abort", onAbort, { once: true });
      this.#after(deadline - monotonic(), () => {
        fail(this.#failure());
      });
      out.on("error", () => {
        fail(this.#failure());
      });
      out.on("close", () => {
        // Where there is an answer, reading it tells how it ended.
        if (!this.#hasAnswer) fail(this.#failure());
      });
      out.on("socket", (socket) => {
        this.#watch(socket, fail);
      });
      out.on("response", (response) => {
        this.#collect(response).then(
          (reply) => {
            settle(() => {
              resolve(reply);
            });
          },
          fail,
        );
      });
      head(out);
      out.end(this.request.body);
    });
  }

  #after(seconds: number, then: () => void): NodeJS.Timeout {
    const timer = setTimer(then, Math.min(Math.max(seconds * 1000, 0), LONGEST_TIMER_MS));
    this.#timers.push(timer);
    return timer;
  }

  #failure(): RequestFailed {
    return this.#isConnected ? noAnswer() : unreachable();
  }

  /** Until the connection stands nothing is sent: a TLS connection stands when the certificate was believed. */
  #watch(socket: net.Socket, fail: (error: unknown) => void): void {
    if (READY.has(socket)) {
      this.#isConnected = true;
      return;
    }
    const timer = this.#after(CONNECT_S, () => {
      fail(this.#failure());
    });
    socket.once(socket instanceof tls.TLSSocket ? "secureConnect" : "connect", () => {
      READY.add(socket);
      this.#isConnected = true;
      clearTimer(timer);
    });
  }

  async #collect(response: http.IncomingMessage): Promise<Reply> {
    // An answer can come only where something was sent.
    this.#isConnected = true;
    this.#hasAnswer = true;
    const encoding = response.headers["content-encoding"] ?? "identity";
    if (encoding.toLowerCase() !== "identity") throw new BadReply("an encoded answer, although none was asked for");
    const status = response.statusCode ?? 0;
    const sink = this.sink !== undefined && isOneOf(status, this.request.expect) ? this.sink : null;
    const parts: Buffer[] = [];
    let size = 0;
    for await (const part of unbroken(response)) {
      if (sink !== null) {
        await written(sink, part);
        continue;
      }
      size += part.length;
      if (size > MAX_REPLY_BYTES) throw new BadReply(`an answer of more than ${MAX_REPLY_BYTES} bytes`);
      parts.push(part);
    }
    if (!response.complete) throw noAnswer();
    return { status, headers: response.headers as Record<string, string | undefined>, body: Buffer.concat(parts) };
  }
}

/** The parts of an answer; whatever breaks it off is `no_answer`. */
async function* unbroken(response: http.IncomingMessage): AsyncGenerator<Buffer> {
  const parts = response[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  for (;;) {
    let next: IteratorResult<Buffer>;
    try {
      next = await parts.next();
    } catch {
      throw noAnswer();
    }
    if (next.done === true) return;
    yield next.value;
  }
}

/** An error here is the file's, not the server's, and comes through as it is. */
async function written(sink: Sink, part: Buffer): Promise<void> {
  if (typeof sink === "function") {
    await sink(part);
    return;
  }
  await new Promise<void>((resolve, reject) => {
    const ignore = (): void => undefined;
    sink.on("error", ignore);
    sink.write(part, (error) => {
      // An error is told here and as an event; the event may come later.
      if (error) {
        reject(error);
      } else {
        sink.removeListener("error", ignore);
        resolve();
      }
    });
  });
}
