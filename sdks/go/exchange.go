package aegisagent

import (
	"bytes"
	"context"
	crypto "crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// One call of the API, apart from how bytes move: what is sent, how often, and what an answer must be.

const (
	// Largest answer that is read, bytes: an approval holds two actions of at most 1 MiB each, escaped.
	maxReplyBytes = 8 << 20
	attempts      = 3
	longestPause  = 2 * time.Second
	// How far pauses are spread, so that many callers do not come back at once.
	spread = 0.2
	// A message of the server's goes into errors and logs no longer than this, characters.
	longestShown = 300
	longestCode  = 64
)

// pace is how fast things are tried again.
type pace struct {
	firstPause time.Duration
	firstPoll  time.Duration
	sleep      func(context.Context, time.Duration) error
	// chance is a number from 0 to below 1.
	chance func() float64
}

var usualPace = pace{firstPause: 100 * time.Millisecond, firstPoll: 250 * time.Millisecond, sleep: sleep, chance: rand.Float64}

type retry int

const (
	// The same request may be sent again whatever became of it: a read, or a call with an idempotency key.
	retrySafe retry = iota
	// Only where it is certain that nothing was changed: it was not sent, or the server says so.
	retryUnchanged
	retryNever
)

// request is one call: the path is encoded already; read makes its answer of the JSON that came.
type request[T any] struct {
	method string
	path   string
	body   []byte
	retry  retry
	// Statuses of a good answer; none: 200.
	expect []int
	read   func(any) (T, error)
	// A good answer is no JSON document, and goes here as it comes.
	out io.Writer
}

// reply is what came back.
type reply struct {
	status     int
	retryAfter string
	body       []byte
}

func (r request[T]) expects(status int) bool {
	if r.expect == nil {
		return status == 200
	}
	for _, expected := range r.expect {
		if status == expected {
			return true
		}
	}
	return false
}

// pathOf makes a path of parts that are encoded here, so that no id can lead elsewhere.
func pathOf(parts ...string) (string, error) {
	var path strings.Builder
	for _, part := range parts {
		if part == "" || part == "." || part == ".." {
			return "", misconfigured("an id in a path is empty or leads elsewhere")
		}
		path.WriteString("/" + url.PathEscape(part))
	}
	return path.String(), nil
}

// freshRequestID is the key of one request and its repetitions. It is kept nowhere else: who has it may be told again what only one may be
// told. Where there is no randomness it is empty, and the server refuses the request.
func freshRequestID() string {
	var id [16]byte
	if _, err := crypto.Read(id[:]); err != nil {
		return ""
	}
	return hex.EncodeToString(id[:])
}

func jsonBody(value map[string]any) ([]byte, error) {
	copied, err := exactCopy(value, "", 0, &budget{maxBodyBytes})
	if err != nil {
		return nil, err
	}
	return appendJSON(nil, copied, appendExactDouble), nil
}

// exchange sends a request, again where that is safe, within timeout for all of it; a *RequestFailed where it gets no usable answer.
func exchange[T any](ctx context.Context, client *Client, asked request[T], timeout time.Duration) (T, error) {
	var none T
	deadline := time.Now().Add(timeout)
	pause := client.pace.firstPause
	for attempt := 1; ; attempt++ {
		answer, err := exchangeOnce(ctx, client, asked, deadline)
		var failure *RequestFailed
		if err == nil || !errors.As(err, &failure) {
			return answer, err
		}
		// Never sooner than the server asked for.
		wait := max(client.pace.spreadOut(pause), min(failure.RetryAfter, longestPause))
		if attempt == attempts || !maySendAgain(asked.retry, failure) || time.Until(deadline) <= wait {
			return none, err
		}
		if cause := client.pace.sleep(ctx, wait); cause != nil {
			failure.cause = cause
			return none, failure
		}
		pause = min(2*pause, longestPause)
	}
}

func exchangeOnce[T any](ctx context.Context, client *Client, asked request[T], deadline time.Time) (T, error) {
	var none T
	limited, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	secret, err := client.credential(limited)
	if err != nil {
		if cause := ctx.Err(); cause != nil {
			return none, unreachable(cause)
		}
		return none, err
	}
	answer, err := client.transport.send(ctx, asked.method, asked.path, asked.body, secret, deadline, asked.out)
	if err != nil {
		return none, err
	}
	return readReply(asked, answer, secret)
}

func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p pace) spreadOut(pause time.Duration) time.Duration {
	return time.Duration(float64(pause) * (1 - spread + 2*spread*p.chance()))
}

func maySendAgain(how retry, failure *RequestFailed) bool {
	if how == retryNever || failure.cause != nil {
		return false
	}
	switch failure.Kind {
	case Unreachable:
		return how == retrySafe || !failure.Sent
	case ApiError:
		isUnchanged := failure.Code == "control_busy" || failure.Code == "receipt_unavailable"
		return failure.Status == 429 || (failure.Status == 503 && (how == retrySafe || isUnchanged))
	}
	return false
}

// readReply makes an answer of what came back, or says in which way it is none (SPEC section 5, in its order).
func readReply[T any](asked request[T], answer reply, secret *Secret) (T, error) {
	var none T
	isWritten := asked.out != nil && asked.expects(answer.status)
	if isWritten {
		return asked.read(nil)
	}
	value, err := parse(answer.body, maxReplyBytes)
	if bytes.Contains(answer.body, []byte(secret.Reveal())) || holds(value, secret.Reveal()) {
		return none, badReply("an answer that repeats the credential")
	}
	if answer.status >= 300 && answer.status < 400 {
		return none, badReply("a redirect; give the address that it leads to as the base URL, if you trust it")
	}
	if !asked.expects(answer.status) {
		return none, refusalOf(answer, value, secret)
	}
	if err != nil {
		return none, badReply("an answer that is not strict JSON")
	}
	return asked.read(value)
}

// holds says whether a text stands anywhere in a value, also where the answer wrote it in escapes.
func holds(value any, text string) bool {
	switch given := value.(type) {
	case string:
		return strings.Contains(given, text)
	case []any:
		for _, item := range given {
			if holds(item, text) {
				return true
			}
		}
	case map[string]any:
		for key, item := range given {
			if strings.Contains(key, text) || holds(item, text) {
				return true
			}
		}
	}
	return false
}

func refusalOf(answer reply, value any, secret *Secret) error {
	whole, _ := value.(map[string]any)
	said, _ := whole["error"].(map[string]any)
	code, isText := said["code"].(string)
	message, hasMessage := said["message"].(string)
	// A proxy's page has no code; a code is a word.
	if !isText || !isWord(code) {
		code, hasMessage = "http_"+strconv.Itoa(answer.status), false
	}
	if !hasMessage {
		message = "the answer says no more"
	}
	return &RequestFailed{
		Kind: ApiError, Code: secret.redact(code), Reason: shownText(message, secret), Sent: true, Status: answer.status,
		RetryAfter: askedPause(answer.retryAfter),
	}
}

func isWord(code string) bool {
	for _, c := range []byte(code) {
		if !isDigit(c) && !('a' <= c|0x20 && c|0x20 <= 'z') && c != '_' {
			return false
		}
	}
	return code != "" && len(code) <= longestCode
}

func askedPause(header string) time.Duration {
	seconds, err := strconv.ParseUint(header, 10, 32)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// shownText is a text of the server's as errors and logs may show it: one line, bounded, without our credential.
func shownText(text string, secret *Secret) string {
	line := []rune(secret.redact(text))
	for place, character := range line {
		if !unicode.IsPrint(character) {
			line[place] = ' '
		}
	}
	if len(line) > longestShown {
		line = append(line[:longestShown-1], '…')
	}
	return string(line)
}
