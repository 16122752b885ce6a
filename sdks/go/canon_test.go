package aegisagent_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

type vector struct {
	ID        string          `json:"id"`
	Input     []byte          `json:"input"`
	Canonical []byte          `json:"canonical"`
	SHA256    string          `json:"sha256"`
	Reason    string          `json:"reason"`
	Limits    *map[string]int `json:"limits"`
}

func (v vector) maxBytes() int {
	if v.Limits != nil {
		return (*v.Limits)["max_bytes"]
	}
	return aegisagent.DefaultMaxBytes
}

func vectors(t *testing.T, name string) []vector {
	t.Helper()
	file, err := os.Open(corpora + "canonical/" + name)
	must(t, err)
	defer func() { _ = file.Close() }()
	found := []vector{}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var one vector
		must(t, json.Unmarshal(lines.Bytes(), &one))
		found = append(found, one)
	}
	must(t, lines.Err())
	if len(found) <= 300 {
		t.Fatalf("%s has %d vectors", name, len(found))
	}
	return found
}

func reasonOf(err error) string {
	var canon *aegisagent.CanonError
	if errors.As(err, &canon) {
		return canon.Reason
	}
	return ""
}

func TestEveryAcceptedVectorHasItsBytesAndItsHash(t *testing.T) {
	proof.Of(t, "canonicalize")
	for _, one := range vectors(t, "accepted.jsonl") {
		found, err := aegisagent.Canonicalize(one.Input, one.maxBytes())
		if err != nil || !bytes.Equal(found, one.Canonical) || sha256Hex(found) != one.SHA256 {
			t.Errorf("%s: %q, %v", one.ID, found, err)
		}
	}
}

func TestTheCorpusIsWhole(t *testing.T) {
	proof.Of(t, "canonicalize")
	if count := len(vectors(t, "accepted.jsonl")) + len(vectors(t, "rejected.jsonl")); count < 10_000 {
		t.Fatalf("%d vectors", count)
	}
}

// actionOf gives the five of a value that has an action's shape.
func actionOf(value any) (call aegisagent.ToolCall, isAction bool) {
	members, isObject := value.(map[string]any)
	_, hasResource := members["resource"]
	if !isObject || len(members) != 5 || !hasResource {
		return call, false
	}
	isText, isNamed, isFlag, isObject := false, false, false, false
	call.Tool, isText = members["tool"].(string)
	call.Action, isNamed = members["action"].(string)
	call.MutatesState, isFlag = members["mutates_state"].(bool)
	call.Parameters, isObject = members["parameters"].(map[string]any)
	if resource, isOne := members["resource"].(string); isOne {
		call.Resource = &resource
	} else if members["resource"] != nil {
		return call, false
	}
	return call, isText && isNamed && isFlag && isObject
}

func TestTheHashOfEveryActionOfTheCorpusIsThatOfItsForm(t *testing.T) {
	proof.Of(t, "action-hash")
	count := 0
	for _, one := range vectors(t, "accepted.jsonl") {
		value, err := aegisagent.ParseStrict(one.Input, one.maxBytes())
		must(t, err)
		call, isAction := actionOf(value)
		if !isAction {
			continue
		}
		count++
		if found, err := aegisagent.ActionHash(call.Tool, call.Action, call.Resource, call.MutatesState, call.Parameters); err != nil || found != one.SHA256 {
			t.Errorf("%s: %s, %v", one.ID, found, err)
		}
	}
	if count < 200 {
		t.Fatalf("%d vectors are actions", count)
	}
}

func TestEveryRejectedVectorHasItsReason(t *testing.T) {
	proof.Of(t, "canonicalize")
	for _, one := range vectors(t, "rejected.jsonl") {
		if _, err := aegisagent.Canonicalize(one.Input, one.maxBytes()); reasonOf(err) != one.Reason {
			t.Errorf("%s: %v, expected %s", one.ID, err, one.Reason)
		}
	}
}

func TestActionHashesAreThoseOfTheContract(t *testing.T) {
	proof.Of(t, "action-hash")
	payments, r := "payments-service#482", "r"
	cases := []struct {
		tool, action string
		resource     *string
		mutates      bool
		parameters   map[string]any
		hash         string
	}{
		{"github", "merge_pull_request", &payments, true, map[string]any{"base_branch": "main"}, "6e729c788f908c95e564d246353ceeee0895630175d19ee34b06fdec32f2cc60"},
		{"github", "create_pull_request", nil, true, map[string]any{"title": "Café ☕ déjà vu"}, "30ea153603d6576084ec4d431ec3ff9579ba69eff656101fcbbec5a8c22d0be4"},
		{"t", "x", nil, false, map[string]any{"z": 1, "a": 2, "é": 3}, "109d964419d41d68dec2667a0e42b1d105c42a8df389b2ffab7b4e0e7c502743"},
		{"github", "merge_pull_request", &r, true, map[string]any{"pr_number": 482, "draft": false}, "3781fa8f7d8a5cd13c2686a3e71bdb2fc52d2fd376a67b6e520ce7358eb55bf6"},
	}
	for _, one := range cases {
		found, err := aegisagent.ActionHash(one.tool, one.action, one.resource, one.mutates, one.parameters)
		must(t, err)
		equal(t, found, one.hash)
		frozen, err := aegisagent.Freeze(one.tool, one.action, one.resource, one.mutates, one.parameters)
		must(t, err)
		equal(t, frozen.ActionHash(), one.hash)
	}
}

func TestTheOrderOfReasonsIsTheReadingOrder(t *testing.T) {
	proof.Of(t, "canonicalize")
	cases := map[string]string{
		`[1e400,{"a":1,"a":2}]`: "number_out_of_range", `[{"a":1,"a":2},1e400]`: "duplicate_key", `["\ud800",NaN]`: "lone_surrogate",
		`[9007199254740992,"\ud800"]`: "integer_out_of_range", "[NaN,01]": "non_finite_number", "[01,NaN]": "syntax",
		`{"a":1}x NaN`: "trailing_data", strings.Repeat("[", 200) + `{"a":1,"a":2}`: "depth_exceeded",
		`{"a":1,"a":` + strings.Repeat("[", 200): "duplicate_key", "[1e400,\xff]": "invalid_utf8", "\x00": "syntax", "[1]\x00": "trailing_data",
		`"\u00`: "syntax", `"\u12`: "syntax", `"\ud800\u12"`: "syntax", `"\ud800\x"`: "lone_surrogate", `"\ud800\ud800"`: "lone_surrogate",
		"-": "syntax", "-Infinity": "non_finite_number", "-I": "syntax", "１": "syntax",
	}
	for text, reason := range cases {
		if _, err := aegisagent.ParseStrict([]byte(text), aegisagent.DefaultMaxBytes); reasonOf(err) != reason {
			t.Errorf("%q: %v, expected %s", text, err, reason)
		}
	}
	_, err := aegisagent.Canonicalize([]byte("\xff\xff\xff"), 2)
	equal(t, reasonOf(err), "size_exceeded")
}

func TestDepthIs128(t *testing.T) {
	proof.Of(t, "canonicalize")
	for _, brackets := range [][2]string{{"[", "]"}, {`{"a":`, "}"}} {
		for levels, reason := range map[int]string{128: "", 129: "depth_exceeded"} {
			text := strings.Repeat(brackets[0], levels) + "1" + strings.Repeat(brackets[1], levels)
			value, err := aegisagent.ParseStrict([]byte(text), aegisagent.DefaultMaxBytes)
			equal(t, reasonOf(err), reason)
			if err == nil {
				_, err = aegisagent.CanonicalizeValue([]any{value}, aegisagent.DefaultMaxBytes)
				equal(t, reasonOf(err), "depth_exceeded")
			}
		}
	}
}

// plainAtRandom makes plain JSON of every kind.
func plainAtRandom(random *rand.Rand, depth int) any {
	kinds := 9
	if depth >= 6 {
		kinds = 7
	}
	switch random.IntN(kinds) {
	case 0:
		return nil
	case 1:
		return random.IntN(2) == 0
	case 2:
		return int(random.Int64N(1<<54-1)) - (1<<53 - 1)
	case 3:
		return random.Float64()*2e3 - 1e3
	case 4:
		return random.Float64() * math.Pow(10, float64(random.IntN(620)-320))
	case 5:
		return textAtRandom(random)
	case 6:
		return []float64{math.Copysign(0, -1), 0, 1e20, 1e21, 5, 1e-7, 5e-324, math.MaxFloat64, 1 << 53, 1e15, 123456789012345680}[random.IntN(11)]
	case 7:
		items := make([]any, random.IntN(4))
		for place := range items {
			items[place] = plainAtRandom(random, depth+1)
		}
		return items
	}
	members := map[string]any{}
	for range random.IntN(4) {
		members[textAtRandom(random)] = plainAtRandom(random, depth+1)
	}
	return members
}

func textAtRandom(random *rand.Rand) string {
	var text strings.Builder
	for range random.IntN(6) {
		ranges := [][2]int{{0, 32}, {32, 127}, {127, 0x2030}, {0x2000, 0xD800}, {0xE000, 0x10000}, {0x10000, 0x110000}}
		chosen := ranges[random.IntN(len(ranges))]
		text.WriteRune(rune(chosen[0] + random.IntN(chosen[1]-chosen[0])))
	}
	return text.String()
}

func TestAFrozenTextIsReadBackAsWhatWasFrozen(t *testing.T) {
	proof.Of(t, "canonicalize", "protect-freeze")
	random := rand.New(rand.NewPCG(7, 7))
	for range 3000 {
		value := plainAtRandom(random, 0)
		parameters := map[string]any{"value": value}
		frozen, err := aegisagent.Freeze("t", "a", nil, true, parameters)
		must(t, err)
		if !reflect.DeepEqual(frozen.Parameters(), parameters) || !sameSigns(frozen.Parameters()["value"], value) {
			t.Fatalf("%#v became %#v", parameters, frozen.Parameters())
		}
		canonical, err := aegisagent.CanonicalizeValue(value, aegisagent.DefaultMaxBytes)
		must(t, err)
		whole, err := aegisagent.CanonicalizeValue(map[string]any{
			"tool": "t", "action": "a", "resource": nil, "mutates_state": true, "parameters": parameters,
		}, aegisagent.DefaultMaxBytes)
		must(t, err)
		if !bytes.Contains(whole, canonical) || sha256Hex(whole) != frozen.ActionHash() {
			t.Fatalf("the hash of %#v is not that of its canonical form", value)
		}
	}
}

// sameSigns tells -0 from 0, which DeepEqual does not.
func sameSigns(one, other any) bool {
	switch given := one.(type) {
	case float64:
		return math.Signbit(given) == math.Signbit(other.(float64))
	case []any:
		for place, item := range given {
			if !sameSigns(item, other.([]any)[place]) {
				return false
			}
		}
	case map[string]any:
		for key, item := range given {
			if !sameSigns(item, other.(map[string]any)[key]) {
				return false
			}
		}
	}
	return true
}

func TestAValueThatIsNotPlainHasNoCanonicalForm(t *testing.T) {
	proof.Of(t, "canonicalize", "protect-unfreezable")
	circle := []any{nil}
	circle[0] = circle
	type text string
	cases := map[string][]any{
		"non_finite_number":    {math.NaN(), math.Inf(1), math.Inf(-1), []any{math.NaN()}},
		"integer_out_of_range": {1 << 53, -(1 << 53), map[string]any{"a": math.MaxInt64}},
		"invalid_utf8":         {"\xff", "\xed\xa0\x80", map[string]any{"\xc3": 1}, "a\xf4\x90\x80\x80"},
		"depth_exceeded":       {circle},
		"unsupported_type": {
			int64(1), int32(1), uint(1), uint8(1), float32(1), complex(1, 0), []byte("x"), []string{"x"}, map[string]string{}, map[any]any{},
			json.Number("1"), json.RawMessage("1"), text("x"), struct{}{}, &struct{}{}, make(chan int), func() {}, []any(nil),
			map[string]any(nil), 'x', errors.New("x"), new(int), [1]any{1},
		},
	}
	for reason, values := range cases {
		for _, value := range values {
			if _, err := aegisagent.CanonicalizeValue(value, aegisagent.DefaultMaxBytes); reasonOf(err) != reason {
				t.Errorf("%T: %v, expected %s", value, err, reason)
			}
			if reason == "depth_exceeded" {
				continue
			}
			if _, err := aegisagent.Freeze("t", "a", nil, true, map[string]any{"p": value}); !errors.Is(err, aegisagent.DeniedUnfreezable) {
				t.Errorf("%T is frozen: %v", value, err)
			}
		}
	}
	_, err := aegisagent.CanonicalizeValue(strings.Repeat("x", 10), 11)
	equal(t, reasonOf(err), "size_exceeded")
}

// many refers to one thing so often that no copy of it would ever end.
func many(values ...any) any {
	value := any("x")
	if len(values) > 0 {
		value = values[0]
	}
	for level := range 40 {
		if level%2 == 0 {
			value = []any{value, value}
		} else {
			value = map[string]any{"a": value, "b": value}
		}
	}
	return value
}

// branch is a typed parameter that can refer to one thing many times.
type branch struct {
	One   *branch           `json:"one"`
	Other *branch           `json:"other"`
	List  []*branch         `json:"list"`
	Named map[string]branch `json:"named"`
}

func manyBranches() branch {
	grown := branch{}
	for range 40 {
		below := grown
		grown = branch{&below, &below, []*branch{&below, &below}, map[string]branch{"a": below}}
	}
	return grown
}

func TestWhatRefersToOneThingManyTimesIsTooLargeWithoutACopyOfAllOfIt(t *testing.T) {
	proof.Of(t, "canonicalize", "protect-unfreezable", "protect-outcome")
	edge, ctx := newFakeEdge(t), context.Background()
	client, ran := clientTo(t, edge.URL), 0
	run := func() (int, error) { ran++; return 0, nil }
	long := strings.Repeat("x", 1<<19)
	longs := make([]any, 1<<16)
	for place := range longs {
		longs[place] = long
	}
	freeze := func(value any) error {
		_, err := aegisagent.Freeze("t", "a", nil, true, map[string]any{"p": value})
		return err
	}
	anything := protect(t, client, usual, func(context.Context, map[string]any) (int, error) { return run() })
	call := func(value any) error {
		_, err := anything(ctx, map[string]any{"p": value})
		return err
	}
	reporting := usual
	reporting.ReportOutput = true
	output := protect(t, client, reporting, func(context.Context, struct{}) (any, error) { return many(), nil })
	authorized := aegisagent.ToolCall{Tool: "t", Action: "a", Parameters: map[string]any{"p": many()}}
	log := logged(t)
	for name, refused := range map[string]func() error{
		"a value":         func() error { _, err := aegisagent.CanonicalizeValue(many(), aegisagent.DefaultMaxBytes); return err },
		"a hash":          func() error { _, err := authorized.ActionHash(); return err },
		"a frozen action": func() error { return freeze(many()) },
		"empty lists":     func() error { return freeze(many([]any{})) },
		"one long text":   func() error { return freeze(longs) },
		"a long list":     func() error { return freeze(make([]any, 1<<21)) },
		"parameters":      func() error { return call(many()) },
		"a call's body":   func() error { _, err := client.Authorize(ctx, authorized, aegisagent.AuthorizeOptions{}); return err },
		"typed parameters": func() error {
			_, err := protect(t, client, usual, func(context.Context, branch) (int, error) { return run() })(ctx, manyBranches())
			return err
		},
		"a list of nothing": func() error {
			_, err := protect(t, client, usual, func(context.Context, ofKind[[]struct{}]) (int, error) { return run() })(
				ctx, ofKind[[]struct{}]{make([]struct{}, 1<<40)})
			return err
		},
		"an output": func() error {
			_, err := output(ctx, struct{}{})
			must(t, err)
			return &aegisagent.CanonError{Reason: "size_exceeded"}
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		started := time.Now()
		err := refused()
		var denied *aegisagent.Denied
		if isDenied := errors.As(err, &denied); reasonOf(err) != "size_exceeded" && (!isDenied || denied.Code != "size_exceeded") {
			t.Errorf("%s: %v", name, err)
		}
		runtime.ReadMemStats(&after)
		if took, allocated := time.Since(started), after.TotalAlloc-before.TotalAlloc; took > 20*time.Second || allocated > 1<<29 {
			t.Errorf("%s took %s and %d bytes", name, took, allocated)
		}
	}
	equal(t, ran, 0)
	equal(t, edge.names(), []string{"authorize", "outcome"})
	equal(t, edge.sent("outcome")[0]["output"], nil)
	equal(t, strings.Count(log.String(), "an output is not reported"), 1)
}

func TestWhatFitsIsNeverRefused(t *testing.T) {
	proof.Of(t, "canonicalize", "protect-freeze")
	random := rand.New(rand.NewPCG(8, 8))
	shared := []any{1, "x"}
	values := []any{1, "", nil, true, []any{}, map[string]any{}, []any{shared, shared}, map[string]any{"": 1, "é": 2}, []any{1, 2, 3, []any{[]any{}}}}
	for range 2000 {
		values = append(values, plainAtRandom(random, 0))
	}
	for _, value := range values {
		canonical, err := aegisagent.CanonicalizeValue(value, aegisagent.DefaultMaxBytes)
		must(t, err)
		again, err := aegisagent.CanonicalizeValue(value, len(canonical))
		if err != nil || !bytes.Equal(again, canonical) {
			t.Fatalf("%#v: %v", value, err)
		}
		_, err = aegisagent.CanonicalizeValue(value, len(canonical)-1)
		equal(t, reasonOf(err), "size_exceeded")
	}
	empty, err := aegisagent.Freeze("t", "a", nil, true, map[string]any{"p": ""})
	must(t, err)
	room := aegisagent.DefaultMaxBytes - len(empty.Text())
	_, err = aegisagent.Freeze("t", "a", nil, true, map[string]any{"p": strings.Repeat("x", room)})
	must(t, err)
	_, err = aegisagent.Freeze("t", "a", nil, true, map[string]any{"p": strings.Repeat("x", room+1)})
	deniedAs(t, err, aegisagent.DeniedUnfreezable, "size_exceeded")
	// Each value takes no more than a byte and a comma, or a name of one byte.
	type small struct {
		A *int `json:"a"`
	}
	edge, one := newFakeEdge(t), 1
	type lists struct {
		Numbers []int    `json:"numbers"`
		Small   []*small `json:"small"`
	}
	given := lists{make([]int, 1<<18), make([]*small, 1<<15)}
	for place := range given.Small {
		given.Small[place] = &small{&one}
	}
	got, err := protect(t, clientTo(t, edge.URL), usual, func(_ context.Context, p lists) (int, error) { return len(p.Numbers) + len(p.Small), nil })(
		context.Background(), given)
	must(t, err)
	equal(t, got, 1<<18+1<<15)
}

func TestWhatEncodingJSONWouldChangeIsKept(t *testing.T) {
	proof.Of(t, "canonicalize")
	// HTML characters and U+2028 stay as they are; control characters have one spelling.
	found, err := aegisagent.CanonicalizeValue("<&>\u2028\u2029\x7f\u0085\x00\x1f\b\f\"\\/", aegisagent.DefaultMaxBytes)
	must(t, err)
	equal(t, string(found), "\"<&>\u2028\u2029\x7f\u0085\\u0000\\u001f\\b\\f\\\"\\\\/\"")
}

func FuzzTheDoorAgreesWithEncodingJSONWhereBothTakeAText(f *testing.F) {
	proof.Of(f, "canonicalize")
	for _, seed := range []string{`{"a":[1,-0,1e20,"\ud83d\ude00"]}`, `[1.5,true,null]`, `"\u2028"`, `{"a":1,"a":2}`, "01", "\xff"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		value, err := aegisagent.ParseStrict(text, aegisagent.DefaultMaxBytes)
		var lenient any
		if err != nil {
			if reasonOf(err) == "" {
				t.Fatalf("%q has no reason: %v", text, err)
			}
			return
		}
		if json.Unmarshal(text, &lenient) != nil {
			t.Fatalf("%q is taken, and is no JSON", text)
		}
		canonical, err := aegisagent.CanonicalizeValue(value, 1<<30)
		must(t, err)
		again, err := aegisagent.Canonicalize(canonical, 1<<30)
		if err == nil && !bytes.Equal(again, canonical) || err != nil && reasonOf(err) != "integer_out_of_range" {
			t.Fatalf("%q became %q", canonical, again)
		}
		if back, isText := value.(string); isText && back != lenient.(string) {
			t.Fatalf("%q is read as %q", text, back)
		}
	})
}
