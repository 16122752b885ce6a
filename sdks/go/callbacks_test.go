package aegisagent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// Callbacks: what the server signed is taken, what anybody else made is not.

const (
	callbackSecret = "0123456789abcdef0123456789abcdef"
	anotherSecret  = "fedcba9876543210fedcba9876543210"
	// Of docs/specs/callback.md, and of the server's own test.
	callbackNow  = 1_800_000_000
	callbackBody = `{"a":1}`
	rightOne     = "v1=d40e555bc2c1dae21953757b24b165a171698880732ac310a5c8cf0ab751abf2"
)

var wrongOne = "v1=" + strings.Repeat("0", 64)

type callback struct {
	secret, timestamp, signature, body string
	now                                int64
	tolerance                          time.Duration
}

func sound() callback {
	return callback{secret: callbackSecret, timestamp: strconv.Itoa(callbackNow), signature: rightOne, body: callbackBody, now: callbackNow}
}

func (c callback) verify(t *testing.T) bool {
	t.Helper()
	options := aegisagent.CallbackOptions{Now: time.Unix(c.now, 0), Tolerance: c.tolerance}
	isRight, err := aegisagent.VerifyCallback([]byte(c.secret), c.timestamp, c.signature, []byte(c.body), options)
	must(t, err)
	return isRight
}

func TestTheSpecificationsVectorIsRight(t *testing.T) {
	proof.Of(t, "callbacks")
	text, err := os.ReadFile("../../docs/specs/callback.md")
	must(t, err)
	for _, part := range []string{rightOne, callbackSecret, strconv.Itoa(callbackNow), callbackBody} {
		if !strings.Contains(string(text), part) {
			t.Fatal("the specification has another vector than", part)
		}
	}
	equal(t, sound().verify(t), true)
}

func TestWhileASecretIsChangedOneOfItsSignaturesIsEnough(t *testing.T) {
	proof.Of(t, "callbacks")
	for _, both := range []string{rightOne + "," + wrongOne, wrongOne + "," + rightOne, wrongOne + ", " + rightOne} {
		given := sound()
		given.signature = both
		equal(t, given.verify(t), true)
	}
}

func TestWhatNobodyWithTheSecretSignedIsRefused(t *testing.T) {
	proof.Of(t, "callbacks")
	now := strconv.Itoa(callbackNow)
	for name, change := range map[string]func(*callback){
		"another secret":         func(c *callback) { c.secret = anotherSecret },
		"another body":           func(c *callback) { c.body = `{"a":2}` },
		"no body":                func(c *callback) { c.body = "" },
		"another time":           func(c *callback) { c.timestamp = strconv.Itoa(callbackNow + 1) },
		"another's signature":    func(c *callback) { c.signature = wrongOne },
		"no signature":           func(c *callback) { c.signature = "" },
		"no time":                func(c *callback) { c.timestamp = "" },
		"a time with a space":    func(c *callback) { c.timestamp = " " + now },
		"a time with a sign":     func(c *callback) { c.timestamp = "+" + now },
		"a time with a fraction": func(c *callback) { c.timestamp = now + ".0" },
		"a time with a line":     func(c *callback) { c.timestamp = now + "\n" },
		"other digits":           func(c *callback) { c.timestamp = strings.Repeat("٣", 10) },
		"a long time":            func(c *callback) { c.timestamp = strings.Repeat("9", 5000) },
		"no version":             func(c *callback) { c.signature = strings.TrimPrefix(rightOne, "v1=") },
		"capitals":               func(c *callback) { c.signature = strings.ToUpper(rightOne) },
		"a short one":            func(c *callback) { c.signature = rightOne[:len(rightOne)-1] },
		"another version":        func(c *callback) { c.signature = strings.Replace(rightOne, "v1", "v2", 1) },
		"an empty second":        func(c *callback) { c.signature = rightOne + "," },
		"a second that is none":  func(c *callback) { c.signature = rightOne + ",é" },
		"too many":               func(c *callback) { c.signature = strings.Repeat(wrongOne+",", 8) + rightOne },
		"two lines":              func(c *callback) { c.signature = rightOne + "\n" + rightOne },
	} {
		forged := sound()
		change(&forged)
		if forged.verify(t) {
			t.Error("taken:", name)
		}
	}
}

func TestWhatWasCapturedIsNotTakenLater(t *testing.T) {
	proof.Of(t, "callbacks")
	for age, fresh := range map[int64]bool{300: true, 301: false, -300: true, -301: false} {
		given := sound()
		given.now += age
		equal(t, given.verify(t), fresh)
		given.tolerance = time.Second
		equal(t, given.verify(t), false)
	}
	isRight, err := aegisagent.VerifyCallback([]byte(callbackSecret), "1", rightOne, nil, aegisagent.CallbackOptions{})
	must(t, err)
	equal(t, isRight, false)
}

func TestASecretThatAnybodyCouldHaveIsAnError(t *testing.T) {
	proof.Of(t, "callbacks")
	for _, secret := range []string{"", strings.Repeat("x", 31)} {
		isRight, err := aegisagent.VerifyCallback([]byte(secret), strconv.Itoa(callbackNow), rightOne, []byte(callbackBody), aegisagent.CallbackOptions{})
		if isRight || err == nil {
			t.Fatal("a secret of", len(secret), "bytes is taken")
		}
	}
	_, err := aegisagent.VerifyCallback([]byte(callbackSecret), "1", rightOne, nil, aegisagent.CallbackOptions{Tolerance: -1})
	equal(t, err != nil, true)
}

func TestRealACallbackIsRightAndSaysWhatToAskFor(t *testing.T) {
	proof.Of(t, "callbacks")
	on := startProgram(t, "AEGIS_CONTROL_CALLBACK_LOOPBACK=true")
	defer on.close()
	w := newWorld(t, on)
	type received struct {
		header http.Header
		body   []byte
	}
	came := make(chan received, 8)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		came <- received{r.Header.Clone(), body}
	}))
	defer receiver.Close()
	w.call("PUT", "/v1/callbacks/secret", map[string]any{"secret": callbackSecret}, 200)
	w.settings("callback_allow_list", []string{receiver.URL})
	call := aegisagent.ToolCall{Tool: "crm", Action: "refund", MutatesState: true, Parameters: map[string]any{"amount": 5}}
	options := aegisagent.AuthorizeOptions{Fields: aegisagent.JSON{"callback": aegisagent.JSON{"url": receiver.URL}}}
	var decision aegisagent.Decision
	within(t, longEnough, "the edge knows the list", func() bool {
		var err error
		decision, err = w.agentsOwn.Authorize(trusted(t), call, options)
		return err == nil
	})
	within(t, longEnough, "control has the approval", func() bool { return w.has(decision.Approval.ApprovalID) })
	_, err := w.approver.Reject(context.Background(), decision.Approval.ApprovalID, "")
	must(t, err)
	var one received
	select {
	case one = <-came:
	case <-time.After(longEnough):
		t.Fatal("no callback came")
	}
	isRight := func(secret string, body []byte) bool {
		timestamp, signature := one.header.Get("AegisAgent-Timestamp"), one.header.Get("AegisAgent-Signature")
		right, err := aegisagent.VerifyCallback([]byte(secret), timestamp, signature, body, aegisagent.CallbackOptions{})
		must(t, err)
		return right
	}
	equal(t, isRight(callbackSecret, one.body), true)
	equal(t, isRight(anotherSecret, one.body), false)
	equal(t, isRight(callbackSecret, bytes.ReplaceAll(one.body, []byte("REJECTED"), []byte("APPROVED"))), false)
	var said struct {
		ApprovalID string `json:"approval_id"`
	}
	must(t, json.Unmarshal(one.body, &said))
	asked, err := w.agentsOwn.Approval(context.Background(), said.ApprovalID)
	must(t, err)
	equal(t, asked.Status, "REJECTED")
}
