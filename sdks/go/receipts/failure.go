// Package receipts verifies receipts offline (docs/specs/receipt.md): an implementation of its own, which shares nothing with the
// server's.
package receipts

import "fmt"

// What fails may be hostile, and this goes into reports and logs.
const longestShown = 200

// Failure is the first rule that is broken, and what the receipt says it is, where that can be read. The codes are part of the format.
type Failure struct {
	Code    string  `json:"code"`
	Message string  `json:"message"`
	EventID *string `json:"event_id"`
	Lane    *string `json:"lane"`
	Seq     *int64  `json:"seq"`
}

// VerifyError says that a receipt does not verify.
type VerifyError struct {
	Failure Failure
}

func (e *VerifyError) Error() string { return e.Failure.Code + ": " + e.Failure.Message }

// BadInput says that the input is not an export, whatever its receipts say.
type BadInput struct {
	Message string
}

func (e *BadInput) Error() string { return e.Message }

func badInput(format string, arguments ...any) error {
	return &BadInput{fmt.Sprintf(format, arguments...)}
}

func failed(code, format string, arguments ...any) *VerifyError {
	return &VerifyError{Failure{Code: code, Message: fmt.Sprintf(format, arguments...)}}
}

// about adds what a body claims to be.
func (e *VerifyError) about(body map[string]any) *VerifyError {
	if e.Failure.EventID == nil {
		e.Failure.EventID = shown(body, "event_id")
	}
	if e.Failure.Lane == nil {
		e.Failure.Lane = shown(body, "lane")
	}
	if seq, isInteger := integer(body["seq"]); isInteger && e.Failure.Seq == nil {
		e.Failure.Seq = &seq
	}
	return e
}

func shown(body map[string]any, key string) *string {
	value, isText := body[key].(string)
	if !isText {
		return nil
	}
	if characters := []rune(value); len(characters) > longestShown {
		value = string(characters[:longestShown])
	}
	return &value
}

// integer reads a whole number as aegisagent.ParseStrict gives it.
func integer(value any) (int64, bool) {
	switch number := value.(type) {
	case int:
		return int64(number), true
	case int64:
		return number, true
	}
	return 0, false
}
