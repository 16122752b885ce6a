/**
 * An export, line by line: published events with receipt and proof, bare bodies, or the older form without `schema`.
 *
 * Streams, so memory follows the number of lanes, not of lines. Stops at the first receipt that fails, and names it.
 */

import { Buffer } from "node:buffer";

import { isTreeObject, parseTree } from "../canon.js";
import type { Tree, TreeObject } from "../door.js";
import { CanonError } from "../errors.js";
import { type Failure, VerifyError } from "./failure.js";
import type { Roots } from "./keys.js";
import { linesOf } from "./lines.js";
import { Commits } from "./proof.js";
import { about, BadInput, checkBare, checkEvent, hashOf, MAX_LINE_BYTES, member, type VerifiedReceipt } from "./wire.js";

const MAX_LANES = 1_000_000;

/**
 * What an export proves. `valid`: chained, and signed under a pinned key. `self-consistent`: chained; no key was pinned, so whoever made the
 * export could have made all of it.
 */
export type Verdict = "valid" | "self-consistent" | "invalid";

/** How much of a lane an export holds. Over 1, `starts_at` says that the link to what came before cannot be seen. */
export interface LaneSpan {
  starts_at: number;
  last_seq: number;
  closed: boolean;
  gaps: number;
}

/** The result, as `aegis-verify-receipts --json` prints it. The counts are of receipts that hold, up to the first that does not. */
export interface ExportReport {
  verdict: Verdict;
  receipts: number;
  older_form: number;
  proofs: number;
  events: number;
  lanes: Record<string, LaneSpan>;
  failure: ({ line: number } & Failure) | null;
}

/** What an export is read from: its bytes or text, or a stream of parts of them. */
export type ExportSource = Uint8Array | string | AsyncIterable<Uint8Array | string> | Iterable<Uint8Array>;

/** Verifies an export. Lanes may be interleaved and may start in the middle; within a lane nothing may be missing. */
export async function verifyExport(source: ExportSource, roots: Roots | null = null): Promise<ExportReport> {
  const check = new Check(roots);
  let number = 0;
  for await (const line of linesOf(source)) {
    number += 1;
    if (line.length === 0) continue;
    try {
      check.line(objectOf(line, number));
    } catch (error) {
      if (!(error instanceof VerifyError)) throw error;
      return check.report({ line: number, ...error.failure });
    }
    if (check.lanes > MAX_LANES) throw new BadInput(`it names more than ${MAX_LANES} lanes; split it`);
  }
  if (check.receipts === 0) throw new BadInput("it holds no receipt");
  return check.report(null);
}

function objectOf(line: Buffer, number: number): TreeObject {
  let value: Tree;
  try {
    value = parseTree(line, MAX_LINE_BYTES);
  } catch (error) {
    if (!(error instanceof CanonError)) throw error;
    throw new BadInput(`line ${number}: not strict JSON: ${error.reason}; give one JSON object per line`);
  }
  if (!isTreeObject(value)) throw new BadInput(`line ${number}: it is not a JSON object; give one JSON object per line`);
  return value;
}

class Check {
  receipts = 0;
  #olderForm = 0;
  #proofs = 0;
  #events = 0;
  readonly #spans = new Map<string, LaneSpan>();
  readonly #heads = new Map<string, VerifiedReceipt>();
  readonly #older = new OlderChain();
  readonly #commits: Commits;
  readonly #mustBeSigned: boolean;

  constructor(roots: Roots | null) {
    this.#commits = new Commits(roots);
    this.#mustBeSigned = roots !== null;
  }

  get lanes(): number {
    return Math.max(this.#spans.size, this.#older.tenants);
  }

  report(failure: ExportReport["failure"]): ExportReport {
    const verdict = failure !== null ? "invalid" : this.#mustBeSigned ? "valid" : "self-consistent";
    const lanes = Object.create(null) as Record<string, LaneSpan>;
    for (const name of [...this.#spans.keys()].sort()) lanes[name] = this.#spans.get(name) as LaneSpan;
    return { verdict, receipts: this.receipts, older_form: this.#olderForm, proofs: this.#proofs, events: this.#events, lanes, failure };
  }

  line(line: TreeObject): void {
    if (isTreeObject(member(line, "receipt"))) {
      this.#follow(checkEvent(line, this.#commits, this.#mustBeSigned));
      this.#proofs += 1;
      this.#events += 1;
    } else if (member(line, "schema") !== undefined) {
      this.#follow(checkBare(line, this.#commits, this.#mustBeSigned));
      this.#proofs += member(line, "proof") === undefined ? 0 : 1;
    } else {
      about(line, () => {
        this.#older.check(line, this.#mustBeSigned);
      });
      this.#olderForm += 1;
    }
    this.receipts += 1;
  }

  #follow(receipt: VerifiedReceipt): void {
    const broken = breakOf(receipt, this.#heads.get(receipt.lane));
    if (broken !== null) {
      throw new VerifyError({ code: broken[0], message: broken[1], event_id: receipt.event_id, lane: receipt.lane, seq: receipt.seq });
    }
    this.#heads.set(receipt.lane, receipt);
    const span = this.#spans.get(receipt.lane) ?? { starts_at: receipt.seq, last_seq: receipt.seq, closed: false, gaps: 0 };
    span.last_seq = receipt.seq;
    span.closed = receipt.phase === "close";
    span.gaps += receipt.phase === "gap" ? 1 : 0;
    this.#spans.set(receipt.lane, span);
  }
}

/** Which rule of its lane a receipt breaks, after the one before it in the export; null for none. */
function breakOf(receipt: VerifiedReceipt, head: VerifiedReceipt | undefined): [string, string] | null {
  const isFirst = receipt.seq === 1;
  if (isFirst !== (receipt.prev_receipt_hash === "") || isFirst !== (receipt.phase === "open")) {
    return ["lane_rule", "seq 1, no previous receipt and phase open go together"];
  }
  if (head === undefined) return null;
  if (receipt.seq === head.seq && receipt.receipt_hash === head.receipt_hash) return ["repeated_seq", `seq ${receipt.seq} stands twice in the export`];
  if (receipt.seq <= head.seq) return ["forked_seq", `the lane has another receipt with seq ${receipt.seq}, or had a later one before it`];
  if (head.phase === "close") return ["lane_rule", `the lane was closed at seq ${head.seq}`];
  if (receipt.seq > head.seq + 1) return ["missing_seq", `receipts with seq ${head.seq + 1} to ${receipt.seq - 1} are missing before it`];
  if (receipt.prev_receipt_hash !== head.receipt_hash) return ["broken_link", `it does not link to the receipt with seq ${head.seq}`];
  if (receipt.ts < head.ts) return ["time_reversed", `its ts is earlier than that of seq ${head.seq}`];
  return null;
}

/** Bodies without `schema`: each links to the one before, in the file or of its tenant. */
class OlderChain {
  #last: string | null = null;
  readonly #lastOf = new Map<string, string>();

  get tenants(): number {
    return this.#lastOf.size;
  }

  check(line: TreeObject, mustBeSigned: boolean): void {
    if (mustBeSigned) throw VerifyError.of("unsigned", "the older form carries no signature, and a key is pinned; verify it without one");
    const claimed = member(line, "receipt_hash");
    if (typeof claimed !== "string") throw VerifyError.of("missing_receipt", "it has neither a receipt nor a receipt_hash");
    if (hashOf(line, (key) => key === "receipt_hash") !== claimed) throw VerifyError.of("hash_mismatch", "receipt_hash is not the hash of the rest");
    const previous = member(line, "prev_receipt_hash") ?? "";
    if (typeof previous !== "string") throw VerifyError.of("malformed", "its prev_receipt_hash is not a string");
    const named = member(line, "tenant_id");
    const tenant = typeof named === "string" ? named : "";
    const before = this.#lastOf.get(tenant);
    // The first line of the file may stand anywhere in its chain; a tenant's first may begin one.
    const isLinked = this.#last === null || previous === this.#last || previous === before || (before === undefined && previous === "");
    if (!isLinked) throw VerifyError.of("broken_link", "it does not link to the receipt before it");
    this.#last = claimed;
    this.#lastOf.set(tenant, claimed);
  }
}
