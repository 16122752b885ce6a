package aegisagent_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

var words = []string{
	"trusted_internal_signed", "trusted_internal_unsigned", "semi_trusted_customer", "unknown", "untrusted_external", "malicious_suspected",
}

func labels(t *testing.T) []aegisagent.SourceTrust {
	t.Helper()
	found := []aegisagent.SourceTrust{}
	for _, word := range words {
		label, err := aegisagent.ParseSourceTrust(word)
		must(t, err)
		found = append(found, label)
	}
	return found
}

func TestTheOrderIsTheContracts(t *testing.T) {
	proof.Of(t, "trust-order")
	for place, one := range labels(t) {
		equal(t, one.String(), words[place])
		for other, two := range labels(t) {
			equal(t, one.Combine(two).String(), words[max(place, other)])
		}
		for _, none := range []aegisagent.SourceTrust{0, 7, 255} {
			equal(t, one.Combine(none), aegisagent.MaliciousSuspected)
			equal(t, none.Combine(one), aegisagent.MaliciousSuspected)
			equal(t, none.String(), "malicious_suspected")
		}
	}
}

func TestALabelWithinAnotherOnlyTightens(t *testing.T) {
	proof.Of(t, "trust-context")
	background := context.Background()
	equal(t, aegisagent.CurrentTrust(background), aegisagent.Unknown)
	for place, outer := range labels(t) {
		within := aegisagent.WithSourceTrust(background, outer)
		equal(t, aegisagent.CurrentTrust(within), outer)
		for other, inner := range labels(t) {
			equal(t, aegisagent.CurrentTrust(aegisagent.WithSourceTrust(within, inner)).String(), words[max(place, other)])
			equal(t, aegisagent.CurrentTrust(within), outer)
		}
	}
	equal(t, aegisagent.CurrentTrust(aegisagent.WithSourceTrust(background, 0)), aegisagent.MaliciousSuspected)
}

func TestAMisspeltLabelIsAnErrorWhereTheAuthorWroteItAndUnknownWhereAServerDid(t *testing.T) {
	proof.Of(t, "trust-context")
	for _, word := range []string{"untrusted_extrenal", "UNKNOWN", "", "unknown "} {
		_, err := aegisagent.ParseSourceTrust(word)
		equal(t, isConfigError(err), true)
		edge := newFakeEdge(t)
		edge.replace["authorize"] = changed(map[string]any{"root_trust_level": word})
		protected := protect(t, clientTo(t, edge.URL), usual, (&recorder{}).run)
		_, err = protected(aegisagent.WithSourceTrust(context.Background(), aegisagent.TrustedInternalSigned), note{})
		must(t, err)
		_, err = protected(aegisagent.WithSourceTrust(context.Background(), aegisagent.UntrustedExternal), note{})
		deniedAs(t, err, aegisagent.DeniedUnverified, "trust_loosened")
	}
}

func TestARunIDIsOneThatAServerTakes(t *testing.T) {
	proof.Of(t, "trust-context")
	for _, bad := range []string{"", strings.Repeat("x", 257), "a\nb", "\xff", "a\u202eb"} {
		ctx, err := aegisagent.WithRun(context.Background(), bad)
		equal(t, isConfigError(err) && ctx == nil, true)
		ctx, err = aegisagent.OnBehalfOf(context.Background(), aegisagent.User{ID: bad})
		equal(t, isConfigError(err) && ctx == nil, true)
	}
	_, err := aegisagent.OnBehalfOf(context.Background(), aegisagent.User{ID: "u", Role: "a\nb"})
	equal(t, isConfigError(err), true)
	_, err = aegisagent.WithRun(context.Background(), strings.Repeat("é", 256))
	must(t, err)
}

func working(t *testing.T, label aegisagent.SourceTrust, run, user string) context.Context {
	t.Helper()
	ctx, err := aegisagent.WithRun(aegisagent.WithSourceTrust(context.Background(), label), run)
	must(t, err)
	ctx, err = aegisagent.OnBehalfOf(ctx, aegisagent.User{ID: user, Role: "role"})
	must(t, err)
	return ctx
}

func seenIn(ctx context.Context) string {
	return fmt.Sprintf("%s %s %v", aegisagent.CurrentTrust(ctx), aegisagent.CurrentRun(ctx), aegisagent.CurrentUser(ctx))
}

func TestALabelRunAndUserFollowGoroutinesThatAreStartedThroughTheHelpers(t *testing.T) {
	proof.Of(t, "trust-threads")
	ctx, cancel := context.WithCancel(working(t, aegisagent.UntrustedExternal, "r", "u"))
	expected, found := seenIn(ctx), make(chan string, 3)
	equal(t, expected, "untrusted_external r {u role}")
	cancel()
	aegisagent.Go(ctx, func(ctx context.Context) {
		if ctx.Err() == nil {
			found <- seenIn(ctx)
		}
	})
	equal(t, <-found, expected)
	go func() { found <- seenIn(ctx) }()
	equal(t, <-found, expected)
	carried := aegisagent.Carry(ctx, context.Background())
	equal(t, seenIn(carried), expected)
	must(t, carried.Err())
	go func() { found <- seenIn(context.Background()) }()
	// A goroutine that begins anew knows nothing, which never is a better label than unknown.
	equal(t, <-found, "unknown  { }")
}

func TestACarriedLabelNeverLoosensWhereItComes(t *testing.T) {
	proof.Of(t, "trust-threads")
	for place, from := range labels(t) {
		for other, into := range labels(t) {
			carried := aegisagent.Carry(working(t, from, "r", "u"), working(t, into, "s", "v"))
			equal(t, seenIn(carried), words[max(place, other)]+" r {u role}")
			kept := aegisagent.Carry(context.Background(), working(t, into, "s", "v"))
			equal(t, seenIn(kept), words[other]+" s {v role}")
		}
	}
}

func TestACallSaysItsLabelRunAndUserAndEchoesTheToken(t *testing.T) {
	proof.Of(t, "trust-token", "trust-context")
	edge, ran, settings := newFakeEdge(t), &recorder{}, usual
	client := clientTo(t, edge.URL)
	ctx := working(t, aegisagent.SemiTrustedCustomer, "r", "u")
	settings.Channel, settings.ContainsSensitiveData = "c", true
	call := func(ctx context.Context, settings aegisagent.Settings) {
		_, err := protect(t, client, settings, ran.run)(ctx, note{})
		must(t, err)
	}
	call(ctx, settings)
	edge.replace["authorize"] = changed(map[string]any{"root_trust_level": "untrusted_external", "trust_token": "strict"})
	call(ctx, usual)
	edge.replace = map[string]func(answer) answer{}
	call(ctx, usual)
	call(ctx, usual)
	other, err := aegisagent.WithRun(context.Background(), "other")
	must(t, err)
	call(other, usual)
	call(context.Background(), usual)
	call(context.Background(), usual)
	asked, traces := edge.sent("authorize"), []any{}
	equal(t, asked[0]["context"], any(map[string]any{"source_trust": "semi_trusted_customer", "contains_sensitive_data": true, "channel": "c"}))
	equal(t, asked[0]["user"], any(map[string]any{"id": "u", "role": "role"}))
	for _, one := range asked {
		traces = append(traces, one["trace"])
	}
	equal(t, traces, []any{
		map[string]any{"run_id": "r"}, map[string]any{"run_id": "r", "trust_token": "token"}, map[string]any{"run_id": "r", "trust_token": "strict"},
		map[string]any{"run_id": "r", "trust_token": "strict"}, map[string]any{"run_id": "other"}, map[string]any{}, map[string]any{"trust_token": "token"},
	})
	equal(t, asked[6]["context"].(map[string]any)["source_trust"], any("unknown"))
	if _, hasUser := asked[6]["user"]; hasUser {
		t.Fatal(asked[6])
	}
	for _, absent := range []string{"nonce", "timestamp", "callback", "dry_run"} {
		if _, isThere := asked[0][absent]; isThere {
			t.Fatal(absent)
		}
	}
}

func TestTheMemoryOfRunsIsBoundedAndForgetsTheLeastRecentlyUsed(t *testing.T) {
	proof.Of(t, "trust-token")
	var tokens aegisagent.RunTokens
	tokens.Keep("used", aegisagent.Unknown, "old")
	for number := range 10_050 {
		tokens.Keep(fmt.Sprint(number), aegisagent.Unknown, "t")
		if number%5000 == 0 {
			tokens.Keep("used", aegisagent.SemiTrustedCustomer, "looser")
		}
	}
	equal(t, []string{tokens.Get("0"), tokens.Get("10049"), tokens.Get("used")}, []string{"", "t", "old"})
}
