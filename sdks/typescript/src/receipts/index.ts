/** Offline verification of receipts (docs/specs/receipt.md): an implementation of its own, which shares nothing with the server's. */

export { type ExportReport, type ExportSource, type LaneSpan, type Verdict, verifyExport } from "./export.js";
export { type Failure, VerifyError } from "./failure.js";
export { Roots, VerifyingKey } from "./keys.js";
export { BadInput, type VerifiedReceipt, verifyEvent } from "./wire.js";
