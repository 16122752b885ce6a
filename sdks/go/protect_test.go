package aegisagent_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// Protect, with an honest server: what is hashed is what runs, once, and what came of it is reported.

func hashOf(t *testing.T, parameters map[string]any) string {
	t.Helper()
	resource := "customer-1"
	hash, err := aegisagent.ActionHash("crm", "update_note", &resource, true, parameters)
	must(t, err)
	return hash
}

// logged collects what is logged while a test runs.
func logged(t *testing.T) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true})))
	t.Cleanup(func() { slog.SetDefault(before) })
	return &out
}

func TestAnAllowedActionRunsAndIsReported(t *testing.T) {
	proof.Of(t, "protect-allow")
	edge, ran := newFakeEdge(t), &recorder{}
	result, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{"hello", 1})
	must(t, err)
	equal(t, result, "done")
	equal(t, ran.ran(), []note{{"hello", 1}})
	equal(t, edge.sent("authorize")[0]["tool_call"].(map[string]any)["parameters"], any(map[string]any{"note": "hello", "amount": 1}))
	hash := hashOf(t, map[string]any{"note": "hello", "amount": 1})
	equal(t, edge.sent("outcome"), []map[string]any{{"status": "ok", "executed_hash": hash}})
}

func TestTheSentBodyHoldsTheFrozenTextByteForByte(t *testing.T) {
	proof.Of(t, "protect-freeze")
	edge := newFakeEdge(t)
	odd := map[string]any{"é😀": []any{1.0, 1e20, -0.5, 5}, "<&>": "\u2028\x00\u007f"}
	_, err := protect(t, clientTo(t, edge.URL), usual, func(context.Context, map[string]any) (int, error) { return 0, nil })(context.Background(), odd)
	must(t, err)
	resource := "customer-1"
	frozen, err := aegisagent.Freeze("crm", "update_note", &resource, true, odd)
	must(t, err)
	if !bytes.Contains(edge.seen()[0].body, []byte(`"tool_call":`+frozen.Text()+"}")) {
		t.Fatalf("%s", edge.seen()[0].body)
	}
}

type nested struct {
	Text  []string          `json:"text"`
	Named map[string]*int64 `json:"named"`
	Any   any               `json:"any"`
}

func TestWhatRunsIsWhatWasAskedForWhateverBecomesOfTheArguments(t *testing.T) {
	proof.Of(t, "protect-freeze")
	edge := newFakeEdge(t)
	edge.decision, edge.statuses = "require_approval", []string{"404", "PENDING", "APPROVED"}
	number := int64(7)
	given := nested{[]string{"a"}, map[string]*int64{"n": &number}, []any{map[string]any{"k": "v"}}}
	var got nested
	protected := protect(t, clientTo(t, edge.URL), usual, func(_ context.Context, p nested) (int, error) {
		got = p
		return 0, nil
	})
	edge.before["authorize"] = func() { given.Text[0] = "b"; number = 8 }
	edge.before["consume"] = func() {
		given.Named["n"] = nil
		given.Any.([]any)[0].(map[string]any)["k"] = "w"
	}
	_, err := protected(context.Background(), given)
	must(t, err)
	seven := int64(7)
	equal(t, got, nested{[]string{"a"}, map[string]*int64{"n": &seven}, []any{map[string]any{"k": "v"}}})
	if got.Named["n"] == &number {
		t.Fatal("the function got the caller's own number")
	}
	hash := hashOf(t, map[string]any{"text": []any{"a"}, "named": map[string]any{"n": 7}, "any": []any{map[string]any{"k": "v"}}})
	equal(t, edge.sent("consume"), []map[string]any{{"claimed_action_hash": hash}})
}

func TestAStructAndAMapOfTheSameNamesAreOneAction(t *testing.T) {
	proof.Of(t, "protect-binding")
	type reversed struct {
		Amount uint16 `json:"amount"`
		Note   string `json:"note"`
	}
	type words string
	edge := newFakeEdge(t)
	client, ctx := clientTo(t, edge.URL), context.Background()
	_, err := protect(t, client, usual, func(context.Context, note) (int, error) { return 0, nil })(ctx, note{"a", 1})
	must(t, err)
	_, err = protect(t, client, usual, func(context.Context, reversed) (int, error) { return 0, nil })(ctx, reversed{1, "a"})
	must(t, err)
	_, err = protect(t, client, usual, func(context.Context, map[string]any) (int, error) { return 0, nil })(ctx, map[string]any{"note": "a", "amount": 1})
	must(t, err)
	_, err = protect(t, client, usual, func(context.Context, map[words]any) (int, error) { return 0, nil })(ctx, map[words]any{"note": "a", "amount": 1})
	must(t, err)
	// A field that nobody set is its zero value, by name.
	_, err = protect(t, client, usual, func(context.Context, note) (int, error) { return 0, nil })(ctx, note{Note: "a"})
	must(t, err)
	sent := edge.sent("authorize")
	for _, one := range sent[:4] {
		equal(t, one["tool_call"], sent[0]["tool_call"])
	}
	equal(t, sent[4]["tool_call"].(map[string]any)["parameters"], any(map[string]any{"note": "a", "amount": 0}))
}

func TestNumbersAndTextsArriveAsTheyWereGiven(t *testing.T) {
	proof.Of(t, "protect-freeze")
	values := []any{0, -1, 1.0, 0.1, 1e20, 1e-7, 1<<53 - 1, true, nil, "é", "😀", "\u2028", "a\x00b", "", map[string]any{"": []any{map[string]any{}}}}
	edge := newFakeEdge(t)
	got, err := protect(t, clientTo(t, edge.URL), usual, func(_ context.Context, p map[string]any) (any, error) { return p["values"], nil })(
		context.Background(), map[string]any{"values": values})
	must(t, err)
	equal(t, got, any(values))
	equal(t, fmt.Sprintf("%#v", got), fmt.Sprintf("%#v", values))
}

func TestAnErrorOfTheFunctionIsTheCallers(t *testing.T) {
	proof.Of(t, "protect-outcome")
	edge, mine := newFakeEdge(t), errors.New("mine")
	result, err := protect(t, clientTo(t, edge.URL), usual, func(context.Context, note) (string, error) { return "half", mine })(
		context.Background(), note{})
	if err != mine || result != "half" {
		t.Fatal(result, err)
	}
	equal(t, edge.sent("outcome")[0]["status"], any("error"))
}

func TestAPanicIsReportedAndGoesOnAsItCame(t *testing.T) {
	proof.Of(t, "protect-outcome")
	edge := newFakeEdge(t)
	protected := protect(t, clientTo(t, edge.URL), usual, func(context.Context, note) (string, error) { panic("mine") })
	func() {
		defer func() { equal(t, recover(), any("mine")) }()
		_, _ = protected(context.Background(), note{})
	}()
	ends := protect(t, clientTo(t, edge.URL), usual, func(context.Context, note) (string, error) {
		runtime.Goexit()
		return "", nil
	})
	var goroutine sync.WaitGroup
	goroutine.Add(1)
	go func() {
		defer goroutine.Done()
		_, _ = ends(context.Background(), note{})
		t.Error("it came back")
	}()
	goroutine.Wait()
	for _, one := range edge.sent("outcome") {
		equal(t, one["status"], any("ambiguous"))
	}
	equal(t, len(edge.sent("outcome")), 2)
}

func TestAnOutcomeThatCannotBeReportedChangesNoResult(t *testing.T) {
	proof.Of(t, "protect-outcome")
	edge, ran, log := newFakeEdge(t), &recorder{}, logged(t)
	for _, bad := range []answer{{status: 500, body: map[string]any{}}, {status: 200, body: []byte("garbage")}, {status: 409, body: refusal("x_y")}} {
		edge.always("outcome", bad)
		result, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{"a", 1})
		must(t, err)
		equal(t, result, "done")
	}
	equal(t, len(ran.ran()), 3)
	equal(t, strings.Count(log.String(), "is not reported"), 3)
}

func TestAnOutputIsReportedOnlyWhereThatWasAskedForAndItIsJSON(t *testing.T) {
	proof.Of(t, "protect-outcome")
	type rows struct {
		Rows int `json:"rows"`
	}
	edge := newFakeEdge(t)
	client, ctx, reporting := clientTo(t, edge.URL), context.Background(), usual
	reporting.ReportOutput = true
	_, err := protect(t, client, usual, func(context.Context, note) (rows, error) { return rows{1}, nil })(ctx, note{})
	must(t, err)
	_, err = protect(t, client, reporting, func(context.Context, note) (rows, error) { return rows{1}, nil })(ctx, note{})
	must(t, err)
	_, err = protect(t, client, reporting, func(context.Context, note) (any, error) { return errors.New("no JSON"), nil })(ctx, note{})
	must(t, err)
	sent := edge.sent("outcome")
	equal(t, []any{sent[0]["output"], sent[1]["output"], sent[2]["output"]}, []any{nil, map[string]any{"rows": 1}, nil})
}

func TestAResultThatDoesItsWorkLaterIsNotHandedOut(t *testing.T) {
	proof.Of(t, "protect-outcome", "protect-config")
	edge := newFakeEdge(t)
	client := clientTo(t, edge.URL)
	stream := io.NopCloser(strings.NewReader("x"))
	work, endless := func() {}, map[string]any{}
	endless["again"] = []any{endless}
	for _, lazy := range []any{
		func() {}, make(chan int), func(func(int) bool) {}, stream, &stream, cursor{}, &cursor{}, bufio.NewScanner(stream), &http.Response{}, rpc{},
		struct{ Work func() }{}, &struct{ Rows *cursor }{}, struct{ body io.ReadCloser }{stream}, struct{ in struct{ done chan int } }{},
		struct{ Body any }{stream}, []any{1, stream}, map[string]any{"a": []any{map[string]any{"b": work}}}, [1]any{&struct{ Any any }{make(chan int)}},
		map[any]int{&cursor{}: 1}, []any{endless, stream}, struct{ embeddedStream }{embeddedStream{stream}}, &sql.Row{}, error(lazyError{stream}),
	} {
		result, err := protect(t, client, usual, func(context.Context, note) (any, error) { return lazy, nil })(context.Background(), note{})
		var later *aegisagent.LazyResult
		if !errors.As(err, &later) || result != nil {
			t.Fatalf("%T: %v", lazy, err)
		}
	}
	// Beside an error too: what is to come still comes.
	failed := errors.New("in part")
	result, err := protect(t, client, usual, func(context.Context, note) (any, error) { return stream, failed })(context.Background(), note{})
	if !errors.Is(err, failed) || result != nil {
		t.Fatal(result, err)
	}
	for _, one := range edge.sent("outcome") {
		equal(t, one["status"], any("ambiguous"))
	}
	for name, err := range map[string]error{
		"a channel": setUpResult[chan int](client), "a function": setUpResult[func(func(int) bool)](client), "a stream": setUpResult[io.ReadCloser](client),
		"a file": setUpResult[*os.File](client), "rows": setUpResult[*sql.Rows](client), "an iterator": setUpResult[interface{ Next() bool }](client),
		"a cursor": setUpResult[cursor](client), "a stream of RPC": setUpResult[rpc](client), "an answer": setUpResult[*http.Response](client),
		"one that holds a function": setUpResult[struct{ Work func() }](client), "one that hides a channel": setUpResult[struct{ done chan int }](client),
		"a list of streams": setUpResult[[]io.Reader](client), "functions by name": setUpResult[map[string]func()](client),
		"one that points at one": setUpResult[*ofKind[*ofKind[func()]]](client), "a row": setUpResult[*sql.Row](client),
	} {
		if !isConfigError(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// setUpResult tries to protect a function that returns this.
func setUpResult[R any](client *aegisagent.Client) error {
	_, err := aegisagent.Protect(client, usual, func(context.Context, note) (R, error) { var none R; return none, nil })
	return err
}

type (
	cursor         struct{ at int }
	rpc            struct{}
	embeddedStream struct{ Body any }
	lazyError      struct{ Rest any }
	element        struct {
		Value any
		next  *element
	}
	// shared is used by several at once; what it holds is not looked at.
	shared struct {
		mutex sync.Mutex
		Kept  map[string]any
		owner *http.Client
		_     [0]func()
	}
)

func (c *cursor) Next() bool      { c.at++; return false }
func (rpc) Recv() (int, error)    { return 0, io.EOF }
func (lazyError) Error() string   { return "x" }
func (e *element) Next() *element { return e.next }

func TestAResultThatDidItsWorkIsHandedOut(t *testing.T) {
	proof.Of(t, "protect-outcome", "protect-config")
	client, edge := mustClient(t), newFakeEdge(t)
	for name, err := range map[string]error{
		"any": setUpResult[any](client), "an error": setUpResult[error](client), "a time": setUpResult[time.Time](client),
		"a registration": setUpResult[*aegisagent.Registration](client), "a decision": setUpResult[aegisagent.Decision](client),
		"an action": setUpResult[*aegisagent.FrozenAction](client), "a list": setUpResult[*element](client), "a tree": setUpResult[tree](client),
		"what is null in a database": setUpResult[sql.NullString](client), "a number": setUpResult[*big.Int](client), "an address": setUpResult[*url.URL](client),
		"a credential": setUpResult[*aegisagent.Secret](client), "what is shared": setUpResult[*shared](client), "texts": setUpResult[map[string][]byte](client),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	circle := &element{}
	circle.Value = circle
	long := &element{}
	for range 200_000 {
		long = &element{Value: long}
	}
	kept := &shared{Kept: map[string]any{}, owner: http.DefaultClient}
	ended, ends := make(chan struct{}), sync.WaitGroup{}
	ends.Add(1)
	go func() {
		defer ends.Done()
		for count := 0; ; count++ {
			select {
			case <-ended:
				return
			default:
				kept.mutex.Lock()
				kept.Kept["count"] = count
				kept.mutex.Unlock()
			}
		}
	}()
	for _, plain := range []any{
		nil, 1, "x", []any{1, nil}, map[string]any{"a": []any{nil}}, time.Now(), circle, long, kept, &url.URL{}, errors.New("x"), (*element)(nil), [1]any{},
		make([]any, 200_000), []byte("x"), &aegisagent.Registration{}, fmt.Errorf("x: %w", io.EOF), struct{}{}, big.NewInt(1), map[string]any(nil),
	} {
		result, err := protect(t, clientTo(t, edge.URL), usual, func(context.Context, note) (any, error) { return plain, nil })(context.Background(), note{})
		if err != nil || reflect.TypeOf(result) != reflect.TypeOf(plain) {
			t.Fatalf("%T: %v", plain, err)
		}
	}
	close(ended)
	ends.Wait()
	for _, one := range edge.sent("outcome") {
		equal(t, one["status"], any("ok"))
	}
}

func TestAnApprovedActionIsConsumedAndRuns(t *testing.T) {
	proof.Of(t, "protect-approval")
	edge, ran, settings := newFakeEdge(t), &recorder{}, usual
	edge.decision, edge.statuses = "require_approval", []string{"404", "404", "PENDING", "APPROVED"}
	var told aegisagent.ApprovalRef
	settings.OnPending = func(_ context.Context, pending aegisagent.ApprovalRef) { told = pending }
	_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
	must(t, err)
	equal(t, edge.names(), []string{"authorize", "approval", "approval", "approval", "approval", "consume", "outcome"})
	equal(t, told.ApproverGroup, "release")
	equal(t, told.ActionHash, hashOf(t, map[string]any{"note": "a", "amount": 1}))
	equal(t, len(ran.ran()), 1)
}

func TestAnApprovalThatEndedOtherwiseIsADenial(t *testing.T) {
	proof.Of(t, "protect-approval")
	for _, status := range []string{"REJECTED", "EXPIRED", "CONSUMED"} {
		edge, ran := newFakeEdge(t), &recorder{}
		edge.decision, edge.statuses = "require_approval", []string{"PENDING", status}
		_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{"a", 1})
		denied := deniedAs(t, err, aegisagent.DeniedByApprover, "approval_"+strings.ToLower(status))
		if denied.DecisionID == "" || denied.ApprovalID == "" || len(ran.ran())+len(edge.sent("consume")) > 0 {
			t.Fatal(denied, ran.ran())
		}
	}
}

func TestNobodyWhoDecidesInTimeIsADenial(t *testing.T) {
	proof.Of(t, "protect-approval")
	edge, ran, settings := newFakeEdge(t), &recorder{}, usual
	edge.decision, edge.statuses = "require_approval", []string{"PENDING"}
	for _, settings.ApprovalTimeout = range []time.Duration{aegisagent.LookOnce, 300 * time.Millisecond} {
		_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
		deniedAs(t, err, aegisagent.DeniedByApprover, "approval_timeout")
		if settings.ApprovalTimeout == aegisagent.LookOnce {
			equal(t, edge.names(), []string{"authorize", "approval"})
		}
	}
	equal(t, len(ran.ran()), 0)
}

func TestAnEndThatIsNoTimeIsADenial(t *testing.T) {
	proof.Of(t, "protect-approval")
	for _, bad := range []string{"", "soon", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01"} {
		edge, ran := newFakeEdge(t), &recorder{}
		edge.decision = "require_approval"
		edge.replace["authorize"] = func(honest answer) answer {
			honest.body.(map[string]any)["approval"].(map[string]any)["expires_at"] = bad
			return honest
		}
		_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{})
		deniedAs(t, err, aegisagent.DeniedUnverified, "bad_reply")
	}
}

func editOf(changes map[string]any) map[string]any {
	call := map[string]any{
		"tool": "crm", "action": "update_note", "resource": "customer-1", "mutates_state": true,
		"parameters": map[string]any{"note": "b", "amount": 2},
	}
	for name, value := range changes {
		call[name] = value
	}
	return call
}

func TestAnEditedActionRunsAsItWasEditedIfTheCallerOptedIn(t *testing.T) {
	proof.Of(t, "protect-edit")
	edge, ran, settings := newFakeEdge(t), &recorder{}, usual
	edge.decision, edge.edited = "require_approval", editOf(nil)
	_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedByApprover, "approval_edited")
	equal(t, len(ran.ran())+len(edge.sent("consume")), 0)
	settings.AcceptEdits = true
	_, err = protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
	must(t, err)
	equal(t, ran.ran(), []note{{"b", 2}})
	hash := hashOf(t, map[string]any{"note": "b", "amount": 2})
	equal(t, edge.sent("consume"), []map[string]any{{"claimed_action_hash": hash}})
	equal(t, edge.sent("outcome")[0]["executed_hash"], any(hash))
}

func TestAnEditThatThisFunctionCannotRunIsADenialAndConsumesNothing(t *testing.T) {
	proof.Of(t, "protect-edit")
	parameters := func(members map[string]any) map[string]any { return map[string]any{"parameters": members} }
	for name, changes := range map[string]map[string]any{
		"tool": {"tool": "shell"}, "action": {"action": "delete"}, "mutates_state": {"mutates_state": false},
		"resource": {"resource": "customer-2"}, "no resource": {"resource": nil}, "fewer": parameters(map[string]any{"note": "b"}),
		"more": parameters(map[string]any{"note": "b", "amount": 2, "force": true}), "none": parameters(map[string]any{}),
		"another case": parameters(map[string]any{"Note": "b", "amount": 2}), "another type": parameters(map[string]any{"note": 1, "amount": 2}),
		"a double": parameters(map[string]any{"note": "b", "amount": 2.0}), "null": parameters(map[string]any{"note": nil, "amount": 2}),
	} {
		edge, ran, settings := newFakeEdge(t), &recorder{}, usual
		settings.AcceptEdits = true
		edge.decision, edge.edited = "require_approval", editOf(changes)
		_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(context.Background(), note{"a", 1})
		deniedAs(t, err, aegisagent.DeniedByApprover, "approval_edited")
		if len(ran.ran())+len(edge.sent("consume")) > 0 {
			t.Fatal(name)
		}
	}
}

func TestAResourceThatFollowsFromTheParametersFollowsTheEdit(t *testing.T) {
	proof.Of(t, "protect-edit")
	edge, ran, settings := newFakeEdge(t), &recorder{}, usual
	settings.Resource, settings.AcceptEdits = "", true
	settings.ResourceOf = func(parameters map[string]any) string {
		named := fmt.Sprintf("customer-%d", parameters["amount"])
		parameters["amount"] = 1000 // a copy: this changes nothing
		return named
	}
	edge.decision, edge.edited = "require_approval", editOf(map[string]any{"resource": "customer-2"})
	protected := protect(t, clientTo(t, edge.URL), settings, ran.run)
	_, err := protected(context.Background(), note{"a", 1})
	must(t, err)
	equal(t, ran.ran(), []note{{"b", 2}})
	edge.edited = editOf(map[string]any{"resource": "customer-3"})
	_, err = protected(context.Background(), note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedByApprover, "approval_edited")
	edge.edited = nil
	_, err = protected(context.Background(), note{"a", 1})
	must(t, err)
	equal(t, ran.ran()[1:], []note{{"a", 1}})
}

func TestAResourceThatCannotBeToldIsADenial(t *testing.T) {
	proof.Of(t, "protect-edit", "protect-unfreezable")
	edge, ran, settings := newFakeEdge(t), []any{}, usual
	settings.Resource, settings.AcceptEdits = "", true
	settings.ResourceOf = func(parameters map[string]any) string { return parameters["note"].(string) }
	protected := protect(t, clientTo(t, edge.URL), settings, func(_ context.Context, p map[string]any) (int, error) {
		ran = append(ran, p)
		return 0, nil
	})
	for _, parameters := range []map[string]any{{"note": 1}, {}} {
		_, err := protected(context.Background(), parameters)
		deniedAs(t, err, aegisagent.DeniedUnfreezable, "unsupported_type")
	}
	equal(t, len(edge.sent("authorize")), 0)
	edge.decision = "require_approval"
	edge.edited = editOf(map[string]any{"resource": "b", "parameters": map[string]any{"note": 7}})
	_, err := protected(context.Background(), map[string]any{"note": "a"})
	deniedAs(t, err, aegisagent.DeniedByApprover, "approval_edited")
	equal(t, len(ran)+len(edge.sent("consume")), 0)
}

func TestAnEditMustFitAllTheWayDown(t *testing.T) {
	proof.Of(t, "protect-edit")
	type inner struct {
		Name string `json:"name"`
		Size *int   `json:"size"`
	}
	type outer struct {
		List []inner        `json:"list"`
		Pair [2]int8        `json:"pair"`
		Of   map[string]int `json:"of"`
	}
	good := map[string]any{"name": "b", "size": nil}
	for name, parameters := range map[string]map[string]any{
		"as it is": {"list": []any{good}, "pair": []any{1, 2}, "of": map[string]any{"x": 1}},
		"fewer":    {"list": []any{map[string]any{"name": "b"}}, "pair": []any{1, 2}, "of": nil},
		"more":     {"list": []any{map[string]any{"name": "b", "size": 1, "admin": true}}, "pair": []any{1, 2}, "of": nil},
		"case":     {"list": []any{map[string]any{"name": "b", "SIZE": 1}}, "pair": []any{1, 2}, "of": nil},
		"longer":   {"list": []any{good}, "pair": []any{1, 2, 3}, "of": nil}, "shorter": {"list": []any{good}, "pair": []any{1}, "of": nil},
		"too large": {"list": []any{good}, "pair": []any{1, 128}, "of": nil}, "a text": {"list": "x", "pair": []any{1, 2}, "of": nil},
		"a list": {"list": []any{good}, "pair": []any{1, 2}, "of": []any{}}, "null": {"list": []any{nil}, "pair": []any{1, 2}, "of": nil},
		"texts": {"list": []any{good}, "pair": []any{1, 2}, "of": map[string]any{"x": "1"}},
	} {
		edge, ran, settings := newFakeEdge(t), []outer{}, usual
		settings.AcceptEdits = true
		edge.decision, edge.edited = "require_approval", editOf(map[string]any{"parameters": parameters})
		_, err := protect(t, clientTo(t, edge.URL), settings, func(_ context.Context, p outer) (int, error) {
			ran = append(ran, p)
			return 0, nil
		})(context.Background(), outer{})
		if name == "as it is" {
			must(t, err)
			equal(t, ran, []outer{{[]inner{{"b", nil}}, [2]int8{1, 2}, map[string]int{"x": 1}}})
			continue
		}
		deniedAs(t, fmt.Errorf("%s: %w", name, err), aegisagent.DeniedByApprover, "approval_edited")
		equal(t, len(ran)+len(edge.sent("consume")), 0)
	}
}

func TestWhatIsPassedOnIsNeitherSentNorCopied(t *testing.T) {
	proof.Of(t, "protect-allow")
	type key struct{}
	connection, edge := &struct{ used int }{}, newFakeEdge(t)
	ctx := context.WithValue(context.Background(), key{}, connection)
	_, err := protect(t, clientTo(t, edge.URL), usual, func(ctx context.Context, _ struct{}) (int, error) {
		connection.used++
		equal(t, ctx.Value(key{}), any(connection))
		return 0, nil
	})(ctx, struct{}{})
	must(t, err)
	equal(t, connection.used, 1)
	equal(t, edge.sent("authorize")[0]["tool_call"].(map[string]any)["parameters"], any(map[string]any{}))
}

func TestACallThatIsCancelledBeforeItRunsDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-cancel")
	for where, code := range map[string]string{"authorize": "no_answer", "approval": "no_answer", "consume": "consume_ambiguous"} {
		edge, ran, settings := newFakeEdge(t), &recorder{}, usual
		// A read that fails open does not do so for a caller who gave up.
		settings.ReadOnly, settings.Risk, settings.FailOpenReads = true, aegisagent.RiskLow, true
		edge.decision = "require_approval"
		ctx, cancel := context.WithCancel(context.Background())
		edge.before[where] = func() {
			cancel()
			<-edge.ended
		}
		_, err := protect(t, clientTo(t, edge.URL), settings, ran.run)(ctx, note{"a", 1})
		deniedAs(t, err, aegisagent.DeniedUnavailable, code)
		if !errors.Is(err, context.Canceled) || len(ran.ran())+len(edge.sent("outcome")) > 0 || len(edge.sent("consume")) > 1 {
			t.Fatal(where, err, ran.ran())
		}
	}
}

func TestACallThatIsCancelledInTheMomentOfItsAnswerDoesNotRun(t *testing.T) {
	proof.Of(t, "e2e-cancel")
	edge, ran := newFakeEdge(t), &recorder{}
	edge.decision, edge.statuses = "require_approval", []string{"PENDING"}
	ctx, cancel := context.WithCancel(context.Background())
	edge.before["approval"] = cancel
	_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(ctx, note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedUnavailable, "no_answer")
	done, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	_, err = protect(t, clientTo(t, edge.URL), usual, ran.run)(done, note{"a", 1})
	deniedAs(t, err, aegisagent.DeniedUnavailable, "unreachable")
	if !errors.Is(err, context.DeadlineExceeded) || len(ran.ran()) > 0 {
		t.Fatal(err)
	}
}

func TestAFunctionThatIsBrokenOffByItsCallerIsAmbiguousAndStillReported(t *testing.T) {
	proof.Of(t, "e2e-cancel", "protect-outcome")
	edge := newFakeEdge(t)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := protect(t, clientTo(t, edge.URL), usual, func(ctx context.Context, _ note) (int, error) {
		cancel()
		return 0, fmt.Errorf("half done: %w", ctx.Err())
	})(ctx, note{})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	equal(t, edge.sent("outcome")[0]["status"], any("ambiguous"))
}

func TestFrozenActionsShowNoParameters(t *testing.T) {
	proof.Of(t, "no-secrets")
	frozen, err := aegisagent.Freeze("t", "a", nil, true, map[string]any{"password": secretArgument})
	must(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if shown := fmt.Sprintf(verb, frozen); strings.Contains(shown, secretArgument) {
			t.Fatal(shown)
		}
	}
	_, _ = io.WriteString(io.Discard, frozen.Text())
}
