package aegisagent_test

import (
	"context"
	"encoding/json"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// setUp tries to protect a function of these parameters.
func setUp[P any](settings aegisagent.Settings) error {
	client := aegisagent.MustNew(aegisagent.Config{BaseURL: "http://127.0.0.1:1", Token: mustSecret})
	defer client.Close()
	_, err := aegisagent.Protect(client, settings, func(context.Context, P) (int, error) { return 0, nil })
	return err
}

var mustSecret, _ = aegisagent.NewSecret(token)

type (
	hiddenField struct{ a int }
	notInJSON   struct {
		A int `json:"-"`
	}
	leftOut struct {
		A int `json:"a,omitempty"`
	}
	asText struct {
		A int `json:"a,string"`
	}
	twice struct {
		A int
		B int `json:"A"`
	}
	embedded      struct{ note }
	pointedAt     struct{ *note }
	ofKind[T any] struct {
		Value T `json:"value"`
	}
	texts  string
	writes struct{ A int }
	reads  struct{ A int }
	key    string
	tree   struct {
		Text     string  `json:"text"`
		Children []tree  `json:"children"`
		Parent   *ofTree `json:"parent"`
	}
	ofTree struct {
		Tree map[string]tree `json:"tree"`
	}
)

var _ = hiddenField{}.a

func (writes) MarshalJSON() ([]byte, error)    { return []byte(`"harmless"`), nil }
func (*reads) UnmarshalText(text []byte) error { return nil }
func (key) MarshalText() ([]byte, error)       { return []byte("harmless"), nil }

func TestParametersThatCannotBeFrozenExactlyAreRefusedWhenTheyAreSetUp(t *testing.T) {
	proof.Of(t, "protect-config", "protect-unfreezable")
	for name, err := range map[string]error{
		"a field that is not exported": setUp[hiddenField](usual), "a field that is not in the JSON": setUp[notInJSON](usual),
		"omitempty": setUp[leftOut](usual), "string": setUp[asText](usual), "two of one name": setUp[twice](usual),
		"embedded": setUp[embedded](usual), "an embedded pointer": setUp[pointedAt](usual),
		"a text": setUp[string](usual), "a list": setUp[[]any](usual), "any": setUp[any](usual), "a pointer": setUp[*note](usual),
		"bytes": setUp[ofKind[[]byte]](usual), "an array of bytes": setUp[ofKind[[4]byte]](usual), "raw JSON": setUp[ofKind[json.RawMessage]](usual),
		"a JSON number": setUp[ofKind[json.Number]](usual), "a time": setUp[ofKind[time.Time]](usual), "a big number": setUp[ofKind[big.Int]](usual),
		"float32": setUp[ofKind[float32]](usual), "complex": setUp[ofKind[complex128]](usual), "a channel": setUp[ofKind[chan int]](usual),
		"a function": setUp[ofKind[func()]](usual), "uintptr": setUp[ofKind[uintptr]](usual), "an error": setUp[ofKind[error]](usual),
		"a type that writes itself": setUp[ofKind[writes]](usual), "one that reads itself": setUp[ofKind[*reads]](usual),
		"a type that writes itself, in a map": setUp[ofKind[map[string][]writes]](usual), "keys that write themselves": setUp[map[key]int](usual),
		"keys that are numbers": setUp[ofKind[map[int]string]](usual), "a pointer to a pointer": setUp[ofKind[**int]](usual),
		"a pointer to a list": setUp[ofKind[*[]int]](usual), "a pointer to any": setUp[ofKind[*any]](usual),
		"URLs": setUp[ofKind[url.URL]](usual), "a client": setUp[ofKind[*aegisagent.Client]](usual),
		"a credential": setUp[ofKind[*aegisagent.Secret]](usual), "an address without end": setUp[map[texts]chan int](usual),
	} {
		if !isConfigError(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"plain fields": setUp[nested](usual), "named kinds": setUp[map[texts]ofKind[texts]](usual), "a tree": setUp[tree](usual),
		"nothing": setUp[struct{}](usual), "an array": setUp[ofKind[[2]*uint8]](usual), "a duration": setUp[ofKind[time.Duration]](usual),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSettingsThatCannotBeSafeAreRefused(t *testing.T) {
	proof.Of(t, "protect-config")
	change := func(make func(*aegisagent.Settings)) error {
		settings := usual
		make(&settings)
		return setUp[note](settings)
	}
	for name, err := range map[string]error{
		"no tool": change(func(s *aegisagent.Settings) { s.Tool = "" }), "no action": change(func(s *aegisagent.Settings) { s.Action = "" }),
		"a tool that is no text":              change(func(s *aegisagent.Settings) { s.Tool = "\xff" }),
		"two resources":                       change(func(s *aegisagent.Settings) { s.ResourceOf = func(map[string]any) string { return "" } }),
		"a risk that is none":                 change(func(s *aegisagent.Settings) { s.Risk = "none" }),
		"a write that fails open":             change(func(s *aegisagent.Settings) { s.FailOpenReads, s.Risk = true, aegisagent.RiskLow }),
		"a read of high risk that fails open": change(func(s *aegisagent.Settings) { s.FailOpenReads, s.ReadOnly = true, true }),
		"a read of medium risk that fails open": change(func(s *aegisagent.Settings) {
			s.FailOpenReads, s.ReadOnly, s.Risk = true, true, aegisagent.RiskMedium
		}),
		"sensitive data that fails open": change(func(s *aegisagent.Settings) {
			s.FailOpenReads, s.ReadOnly, s.Risk, s.ContainsSensitiveData = true, true, aegisagent.RiskLow, true
		}),
		"a time before now":      change(func(s *aegisagent.Settings) { s.ApprovalTimeout = -2 }),
		"a patience before now":  change(func(s *aegisagent.Settings) { s.Unreachable = -1 }),
		"a channel in two lines": change(func(s *aegisagent.Settings) { s.Channel = "a\nb" }),
	} {
		if !isConfigError(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := aegisagent.Protect[note, int](mustClient(t), usual, nil)
	equal(t, isConfigError(err), true)
	for _, none := range []*aegisagent.Client{nil, {}} {
		_, err = aegisagent.Protect(none, usual, func(context.Context, note) (int, error) { return 0, nil })
		equal(t, isConfigError(err), true)
	}
	reporting := usual
	reporting.ReportOutput = true
	_, err = aegisagent.Protect(mustClient(t), reporting, func(context.Context, note) (time.Time, error) { return time.Time{}, nil })
	equal(t, isConfigError(err), true)
	for _, must := range []func(){
		func() { aegisagent.MustProtect[note, int](nil, usual, nil) }, func() { aegisagent.MustNew(aegisagent.Config{BaseURL: "x"}) },
	} {
		func() {
			defer func() {
				if err, _ := recover().(error); !isConfigError(err) {
					t.Error(err)
				}
			}()
			must()
		}()
	}
}

func mustClient(t *testing.T) *aegisagent.Client { return clientTo(t, "http://127.0.0.1:1") }

func TestAnArgumentThatIsNotPlainJSONIsADenialAndNothingIsSent(t *testing.T) {
	proof.Of(t, "protect-unfreezable")
	edge := newFakeEdge(t)
	client, ran := clientTo(t, edge.URL), 0
	circle := &tree{}
	circle.Parent = &ofTree{map[string]tree{}}
	circle.Parent.Tree["again"] = *circle
	deep := any("x")
	for range 127 {
		deep = []any{deep}
	}
	anything := protect(t, client, usual, func(context.Context, map[string]any) (int, error) { ran++; return 0, nil })
	for code, values := range map[string][]any{
		"non_finite_number": {zero / zero, 1 / zero}, "integer_out_of_range": {1 << 53, []any{-(1 << 60)}},
		"invalid_utf8": {"\xff", map[string]any{"\xed\xa0\x80": 1}}, "depth_exceeded": {deep}, "size_exceeded": {strings.Repeat("x", 1<<20), strings.Repeat("x", 1<<20-150)},
		"unsupported_type": {[]byte("x"), []string{"x"}, map[string]int{}, int64(1), struct{}{}, func() {}, &ran, json.Number("1"), note{}, time.Now()},
	} {
		for _, value := range values {
			_, err := anything(context.Background(), map[string]any{"note": value})
			denied := deniedAs(t, err, aegisagent.DeniedUnfreezable, code)
			if code != "size_exceeded" && !strings.Contains(denied.Reason, "parameter `note`") {
				t.Errorf("%s: %v", code, denied)
			}
		}
	}
	_, err := protect(t, client, usual, func(context.Context, tree) (int, error) { ran++; return 0, nil })(context.Background(), *circle)
	deniedAs(t, err, aegisagent.DeniedUnfreezable, "depth_exceeded")
	_, err = protect(t, client, usual, func(context.Context, ofKind[uint64]) (int, error) { ran++; return 0, nil })(context.Background(), ofKind[uint64]{1 << 63})
	deniedAs(t, err, aegisagent.DeniedUnfreezable, "integer_out_of_range")
	_, err = protect(t, client, usual, func(context.Context, ofKind[texts]) (int, error) { ran++; return 0, nil })(context.Background(), ofKind[texts]{"\xc3"})
	deniedAs(t, err, aegisagent.DeniedUnfreezable, "invalid_utf8")
	equal(t, ran+len(edge.seen()), 0)
	_, err = anything(context.Background(), map[string]any{"note": deep.([]any)[0]})
	must(t, err)
	equal(t, ran, 1)
}

var zero float64
