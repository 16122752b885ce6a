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

// What came of a protected function: its result, its error or its panic is its caller's, and is reported.

// logged collects what is logged while a test runs.
func logged(t *testing.T) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true})))
	t.Cleanup(func() { slog.SetDefault(before) })
	return &out
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
