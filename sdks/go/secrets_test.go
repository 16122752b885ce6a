package aegisagent_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptrace"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// No credential and no argument in a log, a format verb, an error or what an error carries.

const secretArgument = "hunter2-and-the-rest"

// shown is all that programs print of a thing.
func shown(thing any) string {
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%T"} {
		fmt.Fprintf(&out, verb+"\n", thing)
	}
	fmt.Fprintln(&out, thing)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "thing", thing)
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "thing", thing)
	text, err := json.Marshal(thing)
	fmt.Fprintln(&out, string(text), err)
	if err, isError := thing.(error); isError {
		for ; err != nil; err = errors.Unwrap(err) {
			fmt.Fprintf(&out, "%v %+v %#v\n", err, err, err)
		}
	}
	return out.String()
}

func showsNothing(t *testing.T, text string) {
	t.Helper()
	for _, hidden := range []string{token, fmt.Sprintf("%x", token), fmt.Sprintf("%X", token), secretArgument, fmt.Sprintf("%x", secretArgument)} {
		if strings.Contains(text, hidden) {
			t.Fatalf("it shows %q: %s", hidden, text)
		}
	}
}

func TestNoSecretInLogsAndErrors(t *testing.T) {
	proof.Of(t, "no-secrets")
	escaped := `{"error":{"code":"c","message":"` + fmt.Sprintf(`\u%04x`, token[0]) + token[1:] + `"}}`
	for name, said := range map[string]change{
		"allow": nil, "500": instead(answer{status: 500, body: map[string]any{"error": map[string]any{"code": "internal", "message": "Bearer " + token}}}),
		"an echo as a code":   instead(answer{status: 400, body: map[string]any{"error": map[string]any{"code": token, "message": token}}}),
		"an echo as a reason": changed(map[string]any{"decision": "deny", "reason": "no\n" + token}), "garbage": instead(answer{status: 200, body: []byte(token)}),
		"an echo in escapes": instead(answer{status: 400, body: []byte(escaped)}), "an echo as a key": instead(answer{status: 400, body: map[string]any{token: 1}}),
		"an echo as an id": changed(map[string]any{"decision": "deny", "decision_id": token}), "a redirect": instead(answer{status: 302, body: map[string]any{"to": token}}),
		"a redirect to it": instead(answer{status: 302, body: map[string]any{}, headers: map[string]string{"Location": "/" + token}}),
		"broken off":       instead(raw(0, "HTTP/1.1 200 OK\r\n")), "a broken head": instead(raw(0, "HTTP/1.1 200 OK\r\n"+token+"\r\n\r\n")),
		"an echo as a status": instead(raw(0, "HTTP/1.1 "+token+"\r\n\r\n")), "a deny": changed(map[string]any{"decision": "deny", "reason": "because\x1b[31m\u202e"}),
	} {
		edge, log := newFakeEdge(t), logged(t)
		if said != nil {
			edge.replace["authorize"] = said
		}
		client := clientOf(t, aegisagent.Config{BaseURL: edge.URL, Timeout: 10 * time.Second})
		_, err := protect(t, client, usual, func(context.Context, map[string]any) (int, error) { return 1, nil })(
			context.Background(), map[string]any{"password": secretArgument})
		if (err == nil) != (name == "allow") {
			t.Fatal(name, err)
		}
		showsNothing(t, shown(err)+log.String())
		if strings.Contains(name, "echo") && name != "an echo as a status" {
			deniedAs(t, err, aegisagent.DeniedUnverified, "bad_reply")
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x1b\n\u202e") {
			t.Fatalf("%q", err)
		}
		equal(t, edge.seen()[0].headers.Get("Authorization"), "Bearer "+token)
	}
}

func TestAMessageIsShownOnOneLineAndNotForever(t *testing.T) {
	proof.Of(t, "no-secrets")
	edge := newFakeEdge(t)
	edge.always("authorize", answer{status: 400, body: map[string]any{"error": map[string]any{"code": "c_d", "message": strings.Repeat("é\n", 1000)}}})
	denied := deniedAs(t, attack(t, edge, 10*time.Second), aegisagent.DeniedUnavailable, "c_d")
	if length := len([]rune(denied.Reason)); length != 300 || strings.Contains(denied.Reason, "\n") {
		t.Fatal(length, denied.Reason)
	}
}

func TestNoSecretInAnErrorAboutAnArgument(t *testing.T) {
	proof.Of(t, "no-secrets")
	client := mustClient(t)
	protected := protect(t, client, usual, func(context.Context, map[string]any) (int, error) { return 1, nil })
	for _, bad := range []any{
		map[string]any{secretArgument: zero / zero}, []any{secretArgument, struct{ A string }{secretArgument}},
		map[string]any{secretArgument: map[string]string{secretArgument: secretArgument}}, secretArgument + "\xff", []byte(secretArgument),
	} {
		_, err := protected(context.Background(), map[string]any{"password": bad})
		denied := deniedAs(t, err, aegisagent.DeniedUnfreezable, "")
		showsNothing(t, shown(err))
		if !strings.Contains(denied.Reason, "password") {
			t.Fatal(denied)
		}
	}
}

func TestAnErrorCarriesNoErrorOfTheHTTPLibrary(t *testing.T) {
	proof.Of(t, "no-secrets")
	edge, ran := newFakeEdge(t), &recorder{}
	for name, url := range map[string]string{"unreachable": freeURL(t), "broken": edge.URL} {
		edge.always("authorize", raw(0, "x"))
		_, err := protect(t, clientTo(t, url), usual, ran.run)(context.Background(), note{})
		for ; err != nil; err = errors.Unwrap(err) {
			if kind := fmt.Sprintf("%T", err); !strings.HasPrefix(kind, "*aegisagent.") {
				t.Fatal(name, kind)
			}
		}
	}
}

func TestClientsAndSecretsShowNothingAndAreNotSerialised(t *testing.T) {
	proof.Of(t, "no-secrets")
	secret := secretOf(t, token)
	client := clientOf(t, aegisagent.Config{BaseURL: "http://127.0.0.1:1", Token: secret})
	type holder struct {
		Secret  *aegisagent.Secret
		Client  *aegisagent.Client
		private *aegisagent.Secret
		config  aegisagent.Config
	}
	held := holder{secret, client, secret, aegisagent.Config{Token: secret}}
	for _, thing := range []any{
		secret, client, &held, held, []any{secret, client}, map[string]any{"secret": secret}, aegisagent.Config{Token: secret}, &held.config, held.private,
	} {
		showsNothing(t, shown(thing))
	}
	for _, thing := range []any{secret, client, held, struct{ Secret *aegisagent.Secret }{secret}} {
		if text, err := json.Marshal(thing); err == nil {
			t.Fatal(string(text))
		}
		if text, err := xml.Marshal(thing); err == nil {
			t.Fatal(string(text))
		}
		if err := gob.NewEncoder(&bytes.Buffer{}).Encode(thing); err == nil {
			t.Fatalf("%T", thing)
		}
	}
	equal(t, secret.Equal(secretOf(t, token+"\n")) && !secret.Equal(secretOf(t, token+"x")), true)
	equal(t, secret.Reveal(), token)
}

func TestARegistrationShowsNoTokenAndADecisionNoTrustToken(t *testing.T) {
	proof.Of(t, "no-secrets")
	edge := newFakeEdge(t)
	edge.always("other", answer{status: 201, body: map[string]any{"id": "i", "agent_key": "k", "agent_token": token, "expires_at": "2026-01-01T00:00:00Z"}})
	edge.replace["authorize"] = changed(map[string]any{"trust_token": token + "-trust"})
	client := clientOf(t, aegisagent.Config{BaseURL: edge.URL, Token: secretOf(t, "another-credential")})
	registration, err := client.Register(context.Background(), aegisagent.AgentRegistration{AgentKey: "k", Name: "K", Environment: "test", RiskTier: "low"})
	must(t, err)
	equal(t, registration.AgentToken.Reveal(), token)
	call := aegisagent.ToolCall{Tool: "crm", Action: "a", MutatesState: true, Parameters: map[string]any{"password": secretArgument}}
	decision, err := client.Authorize(context.Background(), call, aegisagent.AuthorizeOptions{})
	must(t, err)
	for _, thing := range []any{registration, &registration, decision, call, &call, aegisagent.Approval{ToolCall: call, EditedToolCall: &call}} {
		text := fmt.Sprintf("%v %+v %#v %s %q", thing, thing, thing, thing, thing)
		showsNothing(t, text)
	}
	trust := decision.TrustToken
	equal(t, string(trust), token+"-trust")
	for _, thing := range []any{
		decision, &decision, trust, &trust, []aegisagent.Decision{decision}, map[string]aegisagent.Token{"token": trust},
		struct{ Token aegisagent.Token }{trust},
	} {
		var out strings.Builder
		for _, handler := range []slog.Handler{slog.NewJSONHandler(&out, nil), slog.NewTextHandler(&out, nil)} {
			slog.New(handler).Info("m", "thing", thing)
		}
		_ = json.NewEncoder(&out).Encode(thing)
		_ = xml.NewEncoder(&out).Encode(thing)
		showsNothing(t, out.String()+fmt.Sprintf("%v %+v %#v %s %q %x %d", thing, thing, thing, thing, thing, thing, thing))
	}
	text, err := json.Marshal(decision)
	must(t, err)
	equal(t, strings.Contains(string(text), `"trust_token":"***"`), true)
	equal(t, []string{trust.GoString(), trust.String(), trust.LogValue().String()}, []string{"***", "***", "***"})
}

func TestWhatIsNoCredentialIsRefusedWithoutBeingShown(t *testing.T) {
	proof.Of(t, "no-secrets", "client-config")
	for _, bad := range []string{"", " ", "a b", "a\nb", "é", strings.Repeat("x", 5000), "a\x00", "a\x7f"} {
		_, err := aegisagent.NewSecret(bad)
		if !isConfigError(err) || (strings.TrimSpace(bad) != "" && strings.Contains(err.Error(), bad)) {
			t.Fatalf("%q: %v", bad, err)
		}
	}
	for _, config := range []aegisagent.Config{{Token: &aegisagent.Secret{}}, {Token: mustSecret, TokenFunc: func(context.Context) (*aegisagent.Secret, error) { return nil, nil }}} {
		_, err := aegisagent.New(config)
		equal(t, isConfigError(err), true)
	}
}

func TestATraceInTheCallersContextSeesNothing(t *testing.T) {
	proof.Of(t, "no-secrets")
	edge, ran, seen := newFakeEdge(t), &recorder{}, []string{}
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		WroteHeaderField: func(name string, values []string) { seen = append(seen, name+fmt.Sprint(values)) },
		GetConn:          func(host string) { seen = append(seen, host) },
	})
	_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(ctx, note{})
	must(t, err)
	equal(t, seen, []string{})
}

func TestACredentialsFunctionThatFailsIsADenialWithoutItsError(t *testing.T) {
	proof.Of(t, "no-secrets")
	edge, ran := newFakeEdge(t), &recorder{}
	client := clientOf(t, aegisagent.Config{BaseURL: edge.URL, TokenFunc: func(context.Context) (*aegisagent.Secret, error) {
		return nil, errors.New("vault said " + token)
	}})
	_, err := protect(t, client, usual, ran.run)(context.Background(), note{})
	deniedAs(t, err, aegisagent.DeniedUnavailable, "unreachable")
	showsNothing(t, shown(err))
	_, err = client.Ready(context.Background())
	equal(t, isConfigError(err), true)
	equal(t, len(ran.ran())+len(edge.seen()), 0)
}

func TestACredentialsFunctionThatDoesNotComeBackInTimeIsADenialAndFailsNothingOpen(t *testing.T) {
	proof.Of(t, "no-secrets", "fail-open", "transport")
	edge, ran, ended := newFakeEdge(t), &recorder{}, make(chan struct{})
	defer close(ended)
	secret := secretOf(t, token)
	for name, function := range map[string]func(context.Context) (*aegisagent.Secret, error){
		"for ever": func(context.Context) (*aegisagent.Secret, error) { <-ended; return nil, nil },
		"too late": func(ctx context.Context) (*aegisagent.Secret, error) { <-ctx.Done(); return secret, nil },
		"its error": func(ctx context.Context) (*aegisagent.Secret, error) {
			<-ctx.Done()
			return nil, fmt.Errorf("vault said %s: %w", token, ctx.Err())
		},
		"another failure": func(context.Context) (*aegisagent.Secret, error) {
			return nil, &aegisagent.RequestFailed{Kind: aegisagent.Unreachable, Code: "unreachable", Reason: token}
		},
		"a panic": func(context.Context) (*aegisagent.Secret, error) { panic(token) },
		"an end":  func(context.Context) (*aegisagent.Secret, error) { runtime.Goexit(); return nil, nil },
	} {
		client := clientOf(t, aegisagent.Config{BaseURL: edge.URL, Timeout: 200 * time.Millisecond, TokenFunc: function})
		started := time.Now()
		_, err := protect(t, client, failsOpen(), ran.run)(context.Background(), note{})
		deniedAs(t, fmt.Errorf("%s: %w", name, err), aegisagent.DeniedUnavailable, "unreachable")
		showsNothing(t, shown(err))
		_, err = client.Ready(context.Background())
		equal(t, isConfigError(err), true)
		if took := time.Since(started); took > 10*time.Second {
			t.Fatal(name, took)
		}
	}
	client := clientOf(t, aegisagent.Config{BaseURL: edge.URL, TokenFunc: func(context.Context) (*aegisagent.Secret, error) { <-ended; return nil, nil }})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := protect(t, client, failsOpen(), ran.run)(ctx, note{})
	deniedAs(t, err, aegisagent.DeniedUnavailable, "unreachable")
	equal(t, errors.Is(err, context.DeadlineExceeded), true)
	equal(t, len(ran.ran())+len(edge.seen()), 0)
}

func TestURLAndTokenComeFromTheEnvironmentWhereNoneIsGiven(t *testing.T) {
	proof.Of(t, "client-config")
	edge, file := newFakeEdge(t), t.TempDir()+"/token"
	must(t, os.WriteFile(file, []byte(token+"\n"), 0o600))
	t.Setenv("AEGISAGENT_URL", edge.URL)
	t.Setenv("AEGISAGENT_TOKEN", "")
	t.Setenv("AEGISAGENT_TOKEN_FILE", file)
	client, err := aegisagent.New(aegisagent.Config{})
	must(t, err)
	defer client.Close()
	_, err = client.Receipt(context.Background(), "a")
	must(t, err)
	equal(t, edge.seen()[0].headers.Get("Authorization"), "Bearer "+token)
	t.Setenv("AEGISAGENT_TOKEN", token)
	_, both := aegisagent.New(aegisagent.Config{})
	t.Setenv("AEGISAGENT_TOKEN_FILE", "")
	_, one := aegisagent.New(aegisagent.Config{})
	must(t, one)
	t.Setenv("AEGISAGENT_TOKEN", "")
	_, none := aegisagent.New(aegisagent.Config{})
	t.Setenv("AEGISAGENT_TOKEN_FILE", file+"-missing")
	_, missing := aegisagent.New(aegisagent.Config{})
	equal(t, []bool{isConfigError(both), isConfigError(none), isConfigError(missing)}, []bool{true, true, true})
}

func TestLabelsAndTimesAreWhatAServerTakes(t *testing.T) {
	proof.Of(t, "client-config")
	for _, bad := range []aegisagent.Config{
		{Agent: "\xff"}, {Agent: strings.Repeat("x", 257)}, {Environment: "a\nb"}, {Tenant: "A"}, {Tenant: "a\r\nx-evil: 1"}, {Tenant: "a\n"},
		{Timeout: -1}, {Timeout: 601 * time.Second}, {CAFile: "/etc/hostname"}, {BaseURL: "https://edge", CAFile: "/etc/hostname"}, {BaseURL: "https://edge", CAFile: "/missing"},
	} {
		bad.Token = mustSecret
		if _, err := aegisagent.New(bad); !isConfigError(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
