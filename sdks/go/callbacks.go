package aegisagent

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Callbacks about approvals: whether one is the server's (docs/specs/callback.md).

const (
	// What the server takes at least: with a shorter or empty one, anybody could sign.
	leastCallbackSecret = 32
	// Two while a secret is changed; room for more, and no room for work without end.
	mostSignatures    = 8
	callbackTolerance = 5 * time.Minute
)

var (
	callbackTime      = regexp.MustCompile(`^[0-9]{1,12}$`)
	callbackSignature = regexp.MustCompile(`^v1=[0-9a-f]{64}$`)
)

// CallbackOptions is how a callback is verified.
type CallbackOptions struct {
	// Tolerance is how old it may be, or how far ahead of our clock: five minutes where it is 0.
	Tolerance time.Duration
	// Now is the time to go by: the clock's where it is zero.
	Now time.Time
}

// VerifyCallback is true for a callback that a holder of the secret signed not longer than the tolerance ago. timestamp and signature are the
// headers AegisAgent-Timestamp and AegisAgent-Signature as they came, empty for one that did not; body is what came, before any parser. It
// fails where the secret is one that the server would not take.
//
// What is true of a callback is that something changed: ask [Client.Approval], and act on its answer alone.
func VerifyCallback(secret []byte, timestamp, signature string, body []byte, options CallbackOptions) (bool, error) {
	if len(secret) < leastCallbackSecret {
		return false, misconfigured("the secret of callbacks has %d bytes at least", leastCallbackSecret)
	}
	if options.Tolerance < 0 {
		return false, misconfigured("Tolerance is not negative")
	}
	if !callbackTime.MatchString(timestamp) {
		return false, nil
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || !isFresh(time.Unix(seconds, 0), options) {
		return false, nil
	}
	signatures := strings.SplitN(signature, ",", mostSignatures+1)
	if len(signatures) > mostSignatures {
		return false, nil
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(timestamp + "."))
	mac.Write(body)
	right := []byte("v1=" + hex.EncodeToString(mac.Sum(nil)))
	isRight := false
	for _, one := range signatures {
		one = strings.Trim(one, " \t")
		if !callbackSignature.MatchString(one) {
			return false, nil
		}
		// Each is compared, in constant time.
		isRight = hmac.Equal([]byte(one), right) || isRight
	}
	return isRight, nil
}

func isFresh(signed time.Time, options CallbackOptions) bool {
	now, tolerance := options.Now, options.Tolerance
	if now.IsZero() {
		now = time.Now()
	}
	if tolerance == 0 {
		tolerance = callbackTolerance
	}
	return now.Sub(signed).Abs() <= tolerance
}
