package aegisagent_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
)

const (
	token   = "agent-token-that-nobody-may-see-0123456789"
	corpora = "../../corpus/"
)

type note struct {
	Note   string `json:"note"`
	Amount int    `json:"amount"`
}

var usual = aegisagent.Settings{Tool: "crm", Action: "update_note", Resource: "customer-1"}

func secretOf(t testing.TB, text string) *aegisagent.Secret {
	t.Helper()
	secret, err := aegisagent.NewSecret(text)
	must(t, err)
	return secret
}

func clientOf(t testing.TB, config aegisagent.Config) *aegisagent.Client {
	t.Helper()
	if config.Token == nil && config.TokenFunc == nil {
		config.Token = secretOf(t, token)
	}
	client, err := aegisagent.New(config)
	must(t, err)
	aegisagent.Hasten(client)
	t.Cleanup(client.Close)
	return client
}

func clientTo(t testing.TB, url string) *aegisagent.Client {
	t.Helper()
	return clientOf(t, aegisagent.Config{BaseURL: url})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal(t testing.TB, found, expected any) {
	t.Helper()
	if !reflect.DeepEqual(found, expected) {
		t.Fatalf("found %#v, expected %#v", found, expected)
	}
}

// recorder is a function to protect, which remembers what it was called with.
type recorder struct {
	mutex sync.Mutex
	calls []note
}

func (r *recorder) run(_ context.Context, called note) (string, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.calls = append(r.calls, called)
	return "done", nil
}

func (r *recorder) ran() []note {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return append([]note{}, r.calls...)
}

func protect[P, R any](
	t testing.TB, client *aegisagent.Client, settings aegisagent.Settings, function func(context.Context, P) (R, error),
) func(context.Context, P) (R, error) {
	t.Helper()
	protected, err := aegisagent.Protect(client, settings, function)
	must(t, err)
	return protected
}

// deniedAs holds an error against a kind and, where there is one, a code.
func deniedAs(t testing.TB, err error, kind aegisagent.DeniedKind, code string) *aegisagent.Denied {
	t.Helper()
	var denied *aegisagent.Denied
	if !errors.As(err, &denied) || !errors.Is(err, kind) || (code != "" && denied.Code != code) {
		t.Fatalf("found %v (%T), expected %s %s", err, err, kind, code)
	}
	return denied
}

func isConfigError(err error) bool {
	var config *aegisagent.ConfigError
	return errors.As(err, &config)
}

func refused(t testing.TB, err error, status int, code string) {
	t.Helper()
	var failure *aegisagent.RequestFailed
	if !errors.As(err, &failure) || !errors.Is(err, aegisagent.ApiError) || failure.Status != status || failure.Code != code {
		t.Fatalf("found %v, expected %d %s", err, status, code)
	}
}

// within ends a test that hangs.
func within(t testing.TB, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func errorsIs(err, kind error) bool { return errors.Is(err, kind) }
