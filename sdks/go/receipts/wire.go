package receipts

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"reflect"
	"slices"
	"strings"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/rfc3339"
)

// One receipt alone: its hash, the digest of its event, the facts that both name, and its proof. No link: that needs the lane.

const schema = "aegis-receipt-1"

// What is added to an event after sealing.
var added = []string{"receipt", "proof", "receipt_hash", "verified", "bus_ts", "late"}

// The facts that stand both in the event and in the body: consumers read the event, evidence is the body.
var shared = []string{
	"action", "action_hash", "agent_id", "approval_id", "approver", "decision", "event_id", "lane", "matched_policies", "mutates_state",
	"policy_digest", "ref_event_id", "resource", "run_id", "seq", "source_trust", "tenant_id", "tool", "trace_id", "ts", "user_id",
}

// VerifiedReceipt is a receipt whose own parts agree, as far as they were there to check. TS is in microseconds since the epoch.
type VerifiedReceipt struct {
	TenantID, EventID, Lane string
	Seq                     int64
	Phase                   string
	TS                      int64
	ReceiptHash             string
	PrevReceiptHash         string
	KeyID                   string
	// Signed: under a key that is pinned.
	Signed bool
}

// VerifyEvent verifies a published event, as Client.Receipt or a line of an export has it; a [*VerifyError] if it does not hold. roots may
// be nil: then no key is pinned, and whoever made the event could have made all of it.
//
// Read a text with aegisagent.ParseStrict: a lenient reader can be shown another event than the one that was sealed.
func VerifyEvent(event any, roots *Roots) (VerifiedReceipt, error) {
	members, isObject := event.(map[string]any)
	if !isObject {
		return VerifiedReceipt{}, failed("malformed", "it is not a JSON object")
	}
	receipt, wrong := checkEvent(members, newCommits(roots))
	if wrong != nil {
		return VerifiedReceipt{}, wrong
	}
	return receipt, nil
}

func checkEvent(event map[string]any, known *commits) (VerifiedReceipt, *VerifyError) {
	body, isObject := event["receipt"].(map[string]any)
	if !isObject {
		return VerifiedReceipt{}, failed("missing_receipt", "it has no receipt").about(event)
	}
	receipt, receiptHash, wrong := readBody(body, known.roots != nil, "receipt_hash")
	if wrong == nil {
		wrong = checkColumns(event, body, receipt)
	}
	if wrong == nil {
		proof, isObject := event["proof"].(map[string]any)
		if isObject {
			wrong = known.check(proof, receiptHash, receipt.KeyID)
		} else {
			wrong = failed("missing_proof", "it has no proof")
		}
	}
	if wrong != nil {
		return VerifiedReceipt{}, wrong.about(body)
	}
	return receipt, nil
}

// checkBare verifies a bare body with its receipt_hash, and its proof if it has one. There is no event to digest.
func checkBare(line map[string]any, known *commits) (VerifiedReceipt, *VerifyError) {
	receipt, receiptHash, wrong := readBody(line, known.roots != nil, "receipt_hash", "proof")
	if wrong == nil {
		value, hasProof := line["proof"]
		proof, isObject := value.(map[string]any)
		switch {
		case isObject:
			wrong = known.check(proof, receiptHash, receipt.KeyID)
		case hasProof:
			wrong = failed("malformed", "its proof is not an object")
		case known.roots != nil:
			wrong = failed("missing_proof", "it has no proof, and a key is pinned")
		}
	}
	if wrong != nil {
		return VerifiedReceipt{}, wrong.about(line)
	}
	return receipt, nil
}

// hashOf is SHA-256 of the canonical form of an object less some members.
func hashOf(members map[string]any, beside ...string) (hash, *VerifyError) {
	rest := make(map[string]any, len(members))
	for key, value := range members {
		if !slices.Contains(beside, key) {
			rest[key] = value
		}
	}
	canonical, err := aegisagent.CanonicalizeValue(rest, math.MaxInt)
	if err != nil {
		return hash{}, failed("malformed", "it has no canonical form")
	}
	return sha256.Sum256(canonical), nil
}

func checkColumns(event, body map[string]any, receipt VerifiedReceipt) *VerifyError {
	if event["receipt_hash"] != any(receipt.ReceiptHash) {
		return failed("hash_mismatch", "the event's receipt_hash is not its receipt's")
	}
	beside := slices.Clone(added)
	for key, value := range event {
		if value == nil {
			beside = append(beside, key)
		}
	}
	digest, wrong := hashOf(event, beside...)
	if wrong != nil {
		return wrong
	}
	if claimed, isHash := hashOfHex(body["event_digest"]); !isHash || claimed != digest {
		return failed("digest_mismatch", "event_digest is not the digest of the event's columns")
	}
	for _, key := range shared {
		// Equal as JSON: 1 is neither true nor 1.0, and to both sides absent and null are one.
		if !reflect.DeepEqual(event[key], body[key]) {
			return failed("column_mismatch", "event and receipt name different values of %s", key)
		}
	}
	return nil
}

func readBody(body map[string]any, isSigned bool, beside ...string) (VerifiedReceipt, hash, *VerifyError) {
	var wrong *VerifyError
	text := func(key string) string {
		value, isText := body[key].(string)
		if !isText && wrong == nil {
			wrong = failed("malformed", "its %s is not a string", key)
		}
		return value
	}
	none := VerifiedReceipt{}
	if named := text("schema"); wrong == nil && named != schema {
		wrong = failed("unknown_schema", "its schema is not %s", schema)
	}
	if wrong != nil {
		return none, hash{}, wrong
	}
	receiptHash, wrong := hashOf(body, beside...)
	if wrong != nil {
		return none, hash{}, wrong
	}
	claimed := text("receipt_hash")
	if wrong == nil && claimed != hex.EncodeToString(receiptHash[:]) {
		wrong = failed("hash_mismatch", "receipt_hash is not the hash of the body")
	}
	seq, isInteger := integer(body["seq"])
	if wrong == nil && (!isInteger || seq < 1) {
		wrong = failed("malformed", "its seq is not a number from 1")
	}
	ts, isTime := rfc3339.Microseconds(text("ts"))
	if wrong == nil && !isTime {
		wrong = failed("malformed", "its ts is not an RFC 3339 time")
	}
	tenantID, lane := text("tenant_id"), text("lane")
	if owner, _, hasDot := strings.Cut(lane, "."); wrong == nil && (!hasDot || owner != tenantID) {
		wrong = failed("column_mismatch", "its lane belongs to another tenant")
	}
	text("event_digest")
	receipt := VerifiedReceipt{
		TenantID: tenantID, EventID: text("event_id"), Lane: lane, Seq: seq, Phase: text("phase"), TS: ts, ReceiptHash: claimed,
		PrevReceiptHash: text("prev_receipt_hash"), KeyID: text("key_id"), Signed: isSigned,
	}
	return receipt, receiptHash, wrong
}
