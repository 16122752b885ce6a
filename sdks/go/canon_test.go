package aegisagent_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

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
