package receipts

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"io"

	aegisagent "github.com/aegisagent/aegisagent-go"
)

// An export, line by line: published events with receipt and proof, bare bodies, or the older form without `schema`. It streams, so memory
// follows the number of lanes, not of lines. It stops at the first receipt that fails, and names it.

const (
	// A receipt has at most 60 KiB, its event as much.
	maxLineBytes = 1 << 20
	maxLanes     = 1_000_000
)

// Verdict is what an export proves.
type Verdict string

const (
	// Valid: chained, and signed under a pinned key.
	Valid Verdict = "valid"
	// SelfConsistent: chained; no key was pinned, so whoever made the export could have made all of it.
	SelfConsistent Verdict = "self-consistent"
	// Invalid: the report names the first receipt that fails.
	Invalid Verdict = "invalid"
)

// LaneSpan is how much of a lane an export holds. Over 1, StartsAt says that the link to what came before cannot be seen.
type LaneSpan struct {
	StartsAt int64 `json:"starts_at"`
	LastSeq  int64 `json:"last_seq"`
	Closed   bool  `json:"closed"`
	Gaps     int64 `json:"gaps"`
}

// LineFailure is a failure with the line where it stands.
type LineFailure struct {
	Line int64 `json:"line"`
	Failure
}

// Report is the result. Its JSON is what `aegis-verify-receipts --json` prints. The counts are of receipts that hold, up to the first that
// does not.
type Report struct {
	Verdict   Verdict              `json:"verdict"`
	Receipts  int64                `json:"receipts"`
	OlderForm int64                `json:"older_form"`
	Proofs    int64                `json:"proofs"`
	Events    int64                `json:"events"`
	Lanes     map[string]*LaneSpan `json:"lanes"`
	Failure   *LineFailure         `json:"failure"`
}

// VerifyExport verifies an export. roots may be nil: then no key is pinned. Lanes may be interleaved and may start in the middle; within a
// lane nothing may be missing. A [*BadInput] where it is no export; otherwise the report says what is wrong.
func VerifyExport(lines io.Reader, roots *Roots) (Report, error) {
	checked := newCheck(roots)
	buffered := bufio.NewReaderSize(lines, maxLineBytes+1)
	for number := int64(1); ; number++ {
		line, err := buffered.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) || len(line) > maxLineBytes {
			return Report{}, badInput("line %d: it is longer than %d bytes", number, maxLineBytes)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return Report{}, err
		}
		if text := bytes.Trim(line, " \t\n\f\r"); len(text) > 0 {
			members, wrong := object(text, number)
			if wrong != nil {
				return Report{}, wrong
			}
			if failure := checked.line(members); failure != nil {
				checked.report.Verdict, checked.report.Failure = Invalid, &LineFailure{number, failure.Failure}
				return checked.report, nil
			}
			if max(len(checked.report.Lanes), len(checked.older.lastOf)) > maxLanes {
				return Report{}, badInput("it names more than %d lanes; split it", maxLanes)
			}
		}
		if err != nil {
			break
		}
	}
	if checked.report.Receipts == 0 {
		return Report{}, badInput("it holds no receipt")
	}
	return checked.report, nil
}

func object(text []byte, number int64) (map[string]any, error) {
	value, err := aegisagent.ParseStrict(text, maxLineBytes)
	if err != nil {
		return nil, badInput("line %d: not strict JSON: %v; give one JSON object per line", number, err)
	}
	members, isObject := value.(map[string]any)
	if !isObject {
		return nil, badInput("line %d: it is not a JSON object; give one JSON object per line", number)
	}
	return members, nil
}

type check struct {
	report Report
	older  olderChain
	known  *commits
	heads  map[string]VerifiedReceipt
}

func newCheck(roots *Roots) *check {
	made := &check{
		report: Report{Verdict: SelfConsistent, Lanes: map[string]*LaneSpan{}}, known: newCommits(roots), heads: map[string]VerifiedReceipt{},
	}
	made.older.lastOf = map[string]string{}
	if roots != nil {
		made.report.Verdict = Valid
	}
	return made
}

func (c *check) line(line map[string]any) *VerifyError {
	_, isEvent := line["receipt"].(map[string]any)
	_, isBare := line["schema"]
	_, hasProof := line["proof"]
	switch {
	case isEvent:
		receipt, wrong := checkEvent(line, c.known)
		if wrong == nil {
			wrong = c.follow(receipt)
		}
		if wrong != nil {
			return wrong
		}
		c.report.Events++
		c.report.Proofs++
	case isBare:
		receipt, wrong := checkBare(line, c.known)
		if wrong == nil {
			wrong = c.follow(receipt)
		}
		if wrong != nil {
			return wrong
		}
		if hasProof {
			c.report.Proofs++
		}
	default:
		if wrong := c.older.check(line, c.known.roots != nil); wrong != nil {
			return wrong.about(line)
		}
		c.report.OlderForm++
	}
	c.report.Receipts++
	return nil
}

func (c *check) follow(receipt VerifiedReceipt) *VerifyError {
	head, hasHead := c.heads[receipt.Lane]
	if broken := breakOf(receipt, head, hasHead); broken != nil {
		broken.Failure.EventID, broken.Failure.Lane, broken.Failure.Seq = &receipt.EventID, &receipt.Lane, &receipt.Seq
		return broken
	}
	c.heads[receipt.Lane] = receipt
	span := c.report.Lanes[receipt.Lane]
	if span == nil {
		span = &LaneSpan{StartsAt: receipt.Seq}
		c.report.Lanes[receipt.Lane] = span
	}
	span.LastSeq, span.Closed = receipt.Seq, receipt.Phase == "close"
	if receipt.Phase == "gap" {
		span.Gaps++
	}
	return nil
}

// breakOf says which rule of its lane a receipt breaks, after the one before it in the export.
func breakOf(receipt, head VerifiedReceipt, hasHead bool) *VerifyError {
	isFirst := receipt.Seq == 1
	if isFirst != (receipt.PrevReceiptHash == "") || isFirst != (receipt.Phase == "open") {
		return failed("lane_rule", "seq 1, no previous receipt and phase open go together")
	}
	switch {
	case !hasHead:
		return nil
	case receipt.Seq == head.Seq && receipt.ReceiptHash == head.ReceiptHash:
		return failed("repeated_seq", "seq %d stands twice in the export", receipt.Seq)
	case receipt.Seq <= head.Seq:
		return failed("forked_seq", "the lane has another receipt with seq %d, or had a later one before it", receipt.Seq)
	case head.Phase == "close":
		return failed("lane_rule", "the lane was closed at seq %d", head.Seq)
	case receipt.Seq > head.Seq+1:
		return failed("missing_seq", "receipts with seq %d to %d are missing before it", head.Seq+1, receipt.Seq-1)
	case receipt.PrevReceiptHash != head.ReceiptHash:
		return failed("broken_link", "it does not link to the receipt with seq %d", head.Seq)
	case receipt.TS < head.TS:
		return failed("time_reversed", "its ts is earlier than that of seq %d", head.Seq)
	}
	return nil
}

// olderChain is of bodies without `schema`: each links to the one before, in the file or of its tenant.
type olderChain struct {
	last   *string
	lastOf map[string]string
}

func (o *olderChain) check(line map[string]any, mustBeSigned bool) *VerifyError {
	if mustBeSigned {
		return failed("unsigned", "the older form carries no signature, and a key is pinned; verify it without one")
	}
	claimed, isText := line["receipt_hash"].(string)
	if !isText {
		return failed("missing_receipt", "it has neither a receipt nor a receipt_hash")
	}
	found, wrong := hashOf(line, "receipt_hash")
	if wrong != nil {
		return wrong
	}
	if hex.EncodeToString(found[:]) != claimed {
		return failed("hash_mismatch", "receipt_hash is not the hash of the rest")
	}
	previous, isText := line["prev_receipt_hash"].(string)
	if !isText && line["prev_receipt_hash"] != nil {
		return failed("malformed", "its prev_receipt_hash is not a string")
	}
	tenant, _ := line["tenant_id"].(string)
	before, hasBefore := o.lastOf[tenant]
	// The first line of the file may stand anywhere in its chain; a tenant's first may begin one.
	isLinked := o.last == nil || previous == *o.last || (hasBefore && previous == before) || (!hasBefore && previous == "")
	if !isLinked {
		return failed("broken_link", "it does not link to the receipt before it")
	}
	o.last, o.lastOf[tenant] = &claimed, claimed
	return nil
}
