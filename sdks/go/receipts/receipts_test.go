package receipts_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
	"github.com/aegisagent/aegisagent-go/receipts"
)

const corpus = "../../../corpus/receipts/"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryExportHasItsVerdict(t *testing.T) {
	proof.Of(t, "verify-receipts")
	text, err := os.ReadFile(corpus + "index.json")
	must(t, err)
	var index struct {
		Root  string `json:"root"`
		KeyID string `json:"key_id"`
		Cases []struct {
			File       string                `json:"file"`
			About      string                `json:"about"`
			RootPinned bool                  `json:"root_pinned"`
			Verdict    receipts.Verdict      `json:"verdict"`
			Lines      int64                 `json:"lines"`
			Failure    *receipts.LineFailure `json:"failure"`
		} `json:"cases"`
	}
	must(t, json.Unmarshal(text, &index))
	if len(index.Cases) < 10 {
		t.Fatal(len(index.Cases))
	}
	key, err := receipts.NewVerifyingKey(index.Root)
	must(t, err)
	if key.KeyID() != index.KeyID {
		t.Fatal(key.KeyID())
	}
	for _, one := range index.Cases {
		var roots *receipts.Roots
		if one.RootPinned {
			roots, err = receipts.ReadRoots(corpus + "root.pub")
			must(t, err)
		}
		file, err := os.Open(corpus + one.File)
		must(t, err)
		report, err := receipts.VerifyExport(file, roots)
		must(t, err)
		_ = file.Close()
		if report.Failure != nil {
			report.Failure.Message = ""
		} else if report.Receipts != one.Lines {
			t.Errorf("%s: %d receipts", one.About, report.Receipts)
		}
		if report.Verdict != one.Verdict || !reflect.DeepEqual(report.Failure, one.Failure) {
			t.Errorf("%s: %s %+v, expected %s %+v", one.About, report.Verdict, report.Failure, one.Verdict, one.Failure)
		}
	}
}

// judged is what a program says of a case: valid or self-consistent (0), invalid (1), bad input or keys that are refused (2).
func judged(roots []string, input []byte) (exit int, report any, err error) {
	var pinned *receipts.Roots
	if len(roots) > 0 {
		if pinned, err = receipts.ReadRoots(roots...); err != nil {
			var config *aegisagent.ConfigError
			if errors.As(err, &config) {
				return 2, nil, nil
			}
			return 0, nil, err
		}
	}
	found, err := receipts.VerifyExport(bytes.NewReader(input), pinned)
	var refused *receipts.BadInput
	if errors.As(err, &refused) {
		return 2, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	text, err := json.Marshal(found)
	if err != nil {
		return 0, nil, err
	}
	var said object
	if err := json.Unmarshal(text, &said); err != nil {
		return 0, nil, err
	}
	if failure, isThere := said["failure"].(object); isThere {
		delete(failure, "message")
	}
	if found.Verdict == receipts.Invalid {
		exit = 1
	}
	return exit, said, nil
}

func TestEveryCaseOfTheCorpusHasItsReport(t *testing.T) {
	proof.Of(t, "verify-receipts")
	text, err := os.ReadFile(corpus + "cases.jsonl")
	must(t, err)
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	if len(lines) < 950 {
		t.Fatalf("%d cases", len(lines))
	}
	for _, line := range lines {
		var one struct {
			ID     string   `json:"id"`
			Roots  []string `json:"roots"`
			Input  []byte   `json:"input"`
			Exit   int      `json:"exit"`
			Report any      `json:"report"`
		}
		must(t, json.Unmarshal(line, &one))
		exit, report, err := judged(one.Roots, one.Input)
		must(t, err)
		if exit != one.Exit || !reflect.DeepEqual(report, one.Report) {
			t.Errorf("%s: %d %v, expected %d %v", one.ID, exit, report, one.Exit, one.Report)
		}
	}
}

// Forged exports beyond the corpus, hashed and signed rightly where that is not the point.

var (
	seed   = sha256.Sum256([]byte("a test's key"))
	key    = ed25519.NewKeyFromSeed(seed[:])
	public = []byte(key.Public().(ed25519.PublicKey))
	root   = base64.StdEncoding.EncodeToString(public)
	keyID  = hexOf(public)[:16]
)

func hexOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func canonicalHash(value any) string {
	canonical, err := aegisagent.CanonicalizeValue(value, 1<<20)
	if err != nil {
		panic(err)
	}
	return hexOf(canonical)
}

type object = map[string]any

// event is one that is not sealed yet.
func event(seq int, phase string, columns object) object {
	made := object{
		"event_id": fmt.Sprintf("01a202b2-c500-7000-8000-%012d", seq), "tenant_id": "acme", "lane": "acme.edge-1.0", "seq": seq, "edge_id": "edge-1",
		"source": "edge", "ts": fmt.Sprintf("2026-11-22T10:00:0%d.000000Z", seq), "kind": "authorize_decision", "clock_suspect": false,
		"matched_policies": []any{"p"}, "mutates_state": true, "phase": phase,
	}
	maps.Copy(made, columns)
	return made
}

// sealed makes a lane, each receipt linked to the one before, all of them signed in one commit. body may change one before it is hashed.
func sealed(body func(seq any, body object), drafts ...object) []object {
	lines, previous := []object{}, ""
	for _, draft := range drafts {
		columns := maps.Clone(draft)
		delete(columns, "phase")
		made := object{"schema": "aegis-receipt-1", "phase": draft["phase"], "key_id": keyID, "detail": nil, "prev_receipt_hash": previous}
		for _, shared := range []string{"event_id", "tenant_id", "lane", "seq", "ts", "matched_policies", "mutates_state", "agent_id"} {
			made[shared] = columns[shared]
		}
		made["event_digest"] = canonicalHash(columns)
		if body != nil {
			body(columns["seq"], made)
		}
		previous = canonicalHash(made)
		made["receipt_hash"] = previous
		columns["receipt"], columns["receipt_hash"] = made, previous
		lines = append(lines, columns)
	}
	prove(lines)
	return lines
}

func node(kind byte, parts ...[]byte) []byte {
	sum := sha256.Sum256(append([]byte{kind}, bytes.Join(parts, nil)...))
	return sum[:]
}

func prove(lines []object) {
	level, paths := [][]byte{}, make([][]any, len(lines))
	for place, line := range lines {
		raw, _ := hex.DecodeString(line["receipt_hash"].(string))
		level, paths[place] = append(level, node(0, raw)), []any{}
	}
	for height := 0; len(level) > 1; height++ {
		for place := range paths {
			if sibling := (place >> height) ^ 1; sibling < len(level) {
				paths[place] = append(paths[place], hex.EncodeToString(level[sibling]))
			}
		}
		above := [][]byte{}
		for ; len(level) > 0; level = level[min(2, len(level)):] {
			pair := slices.Clone(level[:min(2, len(level))])
			if len(pair) == 2 {
				pair[0] = node(1, pair[0], pair[1])
			}
			above = append(above, pair[0])
		}
		level = above
	}
	statement := fmt.Sprintf("aegis-commit-1\n%d\n%s\n", len(lines), hex.EncodeToString(level[0]))
	signature := base64.StdEncoding.EncodeToString(ed25519.Sign(key, []byte(statement)))
	for place, line := range lines {
		line["proof"] = object{"key_id": keyID, "size": len(lines), "index": place, "path": paths[place], "signature": signature}
	}
}

func plain() []object {
	return sealed(nil, event(1, "open", nil), event(2, "decision", object{"agent_id": "a"}), event(3, "decision", nil), event(4, "close", nil))
}

// withBody is a lane in which the body with this seq was changed before it was hashed and signed.
func withBody(seq int, change func(object)) []object {
	return sealed(func(found any, body object) {
		if found == seq {
			change(body)
		}
	}, event(1, "open", nil), event(2, "decision", object{"agent_id": "a"}), event(3, "decision", nil))
}

// withLine is a lane of which the second line was changed after it was sealed.
func withLine(change func(object)) []object {
	lines := plain()
	change(lines[1])
	return lines
}

func setting(name string, value any) func(object) { return func(into object) { into[name] = value } }
func proving(name string, value any) func(object) {
	return func(line object) { line["proof"].(object)[name] = value }
}

type forgery struct {
	lines []object
	code  string
	line  int64
}

func forgeries() map[string]forgery {
	path := func(change func(string) string) func(object) {
		return func(line object) {
			changed := []any{}
			for _, one := range line["proof"].(object)["path"].([]any) {
				changed = append(changed, change(one.(string)))
			}
			line["proof"].(object)["path"] = changed
		}
	}
	long := []any{}
	for range 64 {
		long = append(long, strings.Repeat("0", 64))
	}
	return map[string]forgery{
		"as it should be": {plain(), "", 0}, "columns that contradict": {withBody(2, setting("agent_id", "b")), "column_mismatch", 2},
		"a column that the event lacks": {withBody(3, setting("agent_id", "b")), "column_mismatch", 3},
		"true and 1":                    {withBody(2, setting("mutates_state", 1)), "column_mismatch", 2},
		"a fraction for a seq":          {withBody(2, setting("seq", 2.0)), "malformed", 2},
		"another tenant's lane":         {sealed(nil, event(1, "open", object{"lane": "beta.edge-1.0"})), "column_mismatch", 1},
		"a lane without a tenant":       {sealed(nil, event(1, "open", object{"lane": "acme"})), "column_mismatch", 1},
		"another schema":                {withBody(2, setting("schema", "aegis-receipt-2")), "unknown_schema", 2},
		"no schema in a receipt":        {withBody(2, func(body object) { delete(body, "schema") }), "malformed", 2},
		"a time that is none":           {sealed(nil, event(1, "open", object{"ts": "yesterday"})), "malformed", 1},
		"a digest in capitals":          {withBody(2, func(body object) { body["event_digest"] = strings.ToUpper(body["event_digest"].(string)) }), "digest_mismatch", 2},
		"a digest that is missing":      {withBody(2, func(body object) { delete(body, "event_digest") }), "malformed", 2},
		"no open at the start":          {sealed(nil, event(1, "decision", nil)), "lane_rule", 1},
		"open in the middle":            {sealed(nil, event(1, "open", nil), event(2, "open", nil)), "lane_rule", 2},
		"something after close":         {sealed(nil, event(1, "open", nil), event(2, "close", nil), event(3, "decision", nil)), "lane_rule", 3},
		"time that goes back":           {sealed(nil, event(1, "open", nil), event(2, "decision", object{"ts": "2026-11-22T10:00:00.999999Z"})), "time_reversed", 2},
		"time in another offset":        {sealed(nil, event(1, "open", nil), event(2, "decision", object{"ts": "2026-11-22T11:00:02.5+01:00"})), "", 0},
		"a leap second":                 {sealed(nil, event(1, "open", nil), event(2, "decision", object{"ts": "2026-12-31T23:59:60Z"})), "", 0},
		"a day that is none":            {sealed(nil, event(1, "open", object{"ts": "2026-02-30T00:00:00Z"})), "malformed", 1},
		"a lane that starts late":       {plain()[1:], "", 0}, "a line that is missing": {slices.Delete(plain(), 1, 2), "missing_seq", 2},
		"a line twice": {append(plain(), plain()[3]), "repeated_seq", 5}, "a line that is late": {append(plain()[1:], plain()[0]), "forked_seq", 4},
		"a seq of zero": {sealed(nil, event(0, "open", nil)), "malformed", 1}, "another hash beside": {withLine(setting("receipt_hash", strings.Repeat("0", 64))), "hash_mismatch", 2},
		"a column more": {withLine(setting("new", "x")), "digest_mismatch", 2}, "a column that is null more": {withLine(setting("new", nil)), "", 0},
		"what consumers add":        {withLine(func(line object) { line["verified"], line["late"], line["bus_ts"] = true, true, "x" }), "", 0},
		"a proof of another key":    {withLine(proving("key_id", strings.Repeat("0", 16))), "invalid_proof", 2},
		"an index beyond the size":  {withLine(proving("index", 9)), "invalid_proof", 2},
		"an index before the first": {withLine(proving("index", -1)), "malformed", 2},
		"a path that is too long":   {withLine(proving("path", long)), "invalid_proof", 2},
		"a path that is too short":  {withLine(proving("path", []any{})), "invalid_proof", 2},
		"a path in capitals":        {withLine(path(strings.ToUpper)), "malformed", 2},
		"a size that is true":       {withLine(proving("size", true)), "malformed", 2},
		"another size":              {withLine(proving("size", 3)), "bad_signature", 2},
		"a signature with a line": {withLine(func(line object) {
			line["proof"].(object)["signature"] = line["proof"].(object)["signature"].(string) + "\n"
		}), "malformed", 2},
		"a signature, no base64":     {withLine(proving("signature", "*")), "malformed", 2},
		"a signature too short":      {withLine(proving("signature", "AAAA")), "bad_signature", 2},
		"a proof that is a list":     {withLine(setting("proof", []any{})), "missing_proof", 2},
		"a receipt that is a text":   {withLine(setting("receipt", "x")), "unsigned", 2},
		"a name that is HTML":        {sealed(nil, event(1, "open", object{"event_id": "<&>\u2028"})), "", 0},
		"a whole double as a column": {sealed(nil, event(1, "open", object{"extra": 1e20})), "", 0},
	}
}

func textOf(lines []object) []byte {
	var text bytes.Buffer
	for _, line := range lines {
		frozen, err := aegisagent.Freeze("t", "a", nil, true, line)
		if err != nil {
			panic(err)
		}
		// The exact text of the line itself, doubles as doubles.
		whole := frozen.Text()
		start, end := strings.Index(whole, `"parameters":`)+len(`"parameters":`), strings.LastIndex(whole, `,"resource":`)
		text.WriteString(whole[start:end] + "\n")
	}
	return text.Bytes()
}

func TestAForgeryIsNamedAndTheServersVerifierNamesTheSame(t *testing.T) {
	proof.Of(t, "verify-receipts")
	pinned, err := receipts.ReadRoots(root)
	must(t, err)
	for name, one := range forgeries() {
		for _, roots := range []*receipts.Roots{pinned, nil} {
			found, err := receipts.VerifyExport(bytes.NewReader(textOf(one.lines)), roots)
			must(t, err)
			if roots != nil && one.code == "" && found.Verdict != receipts.Valid {
				t.Errorf("%s: %+v", name, found.Failure)
			}
			if roots != nil && one.code != "" && (found.Failure == nil || found.Failure.Code != one.code || found.Failure.Line != one.line) {
				t.Errorf("%s: %+v", name, found.Failure)
			}
			sameAsServer(t, name, textOf(one.lines), roots != nil, found)
		}
	}
}

func sameAsServer(t *testing.T, name string, text []byte, isPinned bool, found receipts.Report) {
	t.Helper()
	program := os.Getenv("AEGIS_BIN")
	if program == "" {
		return
	}
	file := filepath.Join(t.TempDir(), "export.jsonl")
	must(t, os.WriteFile(file, text, 0o600))
	arguments := []string{"receipts", "verify", file, "--json"}
	if isPinned {
		arguments = append(arguments, "--root", root)
	}
	said, _ := exec.Command(program, arguments...).Output()
	ours, err := json.Marshal(found)
	must(t, err)
	var one, other map[string]any
	must(t, json.Unmarshal(ours, &one))
	if err := json.Unmarshal(said, &other); err != nil {
		t.Fatalf("%s: %v: %s", name, err, said)
	}
	for _, report := range []map[string]any{one, other} {
		if failure, isThere := report["failure"].(map[string]any); isThere {
			delete(failure, "message")
		}
	}
	if !reflect.DeepEqual(one, other) {
		t.Errorf("%s: we say %v, the server %v", name, one, other)
	}
}

func TestOneEventAlone(t *testing.T) {
	proof.Of(t, "verify-receipts")
	roots, err := receipts.ReadRoots(root)
	must(t, err)
	good := plain()[1]
	signed, err := receipts.VerifyEvent(good, roots)
	must(t, err)
	unsigned, err := receipts.VerifyEvent(good, nil)
	must(t, err)
	if !signed.Signed || unsigned.Signed || signed.Seq != 2 || signed.Lane != "acme.edge-1.0" {
		t.Fatal(signed, unsigned)
	}
	changed := func(name string, value any) object {
		line := maps.Clone(good)
		line[name] = value
		return line
	}
	for code, bad := range map[string]any{
		"digest_mismatch": changed("agent_id", "b"), "malformed": []any{}, "missing_receipt": object{}, "missing_proof": changed("proof", nil),
	} {
		_, err := receipts.VerifyEvent(bad, nil)
		var failed *receipts.VerifyError
		if !errors.As(err, &failed) || failed.Failure.Code != code {
			t.Errorf("%s: %v", code, err)
		}
	}
	if _, err := receipts.VerifyEvent(changed("agent_id", []byte("a")), nil); err == nil {
		t.Error("what is not plain JSON is verified")
	}
	other := sha256.Sum256([]byte("another key"))
	foreign, err := receipts.ReadRoots(base64.StdEncoding.EncodeToString(ed25519.NewKeyFromSeed(other[:]).Public().(ed25519.PublicKey)))
	must(t, err)
	if _, err := receipts.VerifyEvent(good, foreign); err == nil || !strings.HasPrefix(err.Error(), "unknown_key") {
		t.Error(err)
	}
}

func TestWhatIsNoExportIsBadInput(t *testing.T) {
	proof.Of(t, "verify-receipts")
	for _, bad := range []string{"", "\n\n", "[]\n", `{"a":1,"a":2}`, "\xff\n", `{"a":` + strings.Repeat("1", 1<<20) + "}", `{"a":NaN}`} {
		_, err := receipts.VerifyExport(strings.NewReader(bad), nil)
		var input *receipts.BadInput
		if !errors.As(err, &input) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	long := string(bytes.TrimSuffix(textOf(plain()[:1]), []byte("\n")))
	fits := long + strings.Repeat(" ", 1<<20-len(long)-1) + "\n"
	if _, err := receipts.VerifyExport(strings.NewReader(fits), nil); err != nil {
		t.Error(err)
	}
	if _, err := receipts.VerifyExport(strings.NewReader(" "+fits), nil); err == nil {
		t.Error("a line that is too long is read")
	}
}

func TestAKeyUnderWhichAnybodyCanSignIsNotPinned(t *testing.T) {
	proof.Of(t, "verify-receipts")
	prime := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	encoded := func(y *big.Int, sign byte) string {
		raw := make([]byte, 32)
		y.FillBytes(raw)
		slices.Reverse(raw)
		raw[31] |= sign
		return base64.StdEncoding.EncodeToString(raw)
	}
	bad := []string{"AAAA", "", root[:len(root)-1], root + "=", strings.Repeat("*", 44), root[:10] + "\n" + root[10:], encoded(big.NewInt(2), 0)}
	for _, order8 := range []string{
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	} {
		raw, err := hex.DecodeString(order8)
		must(t, err)
		bad = append(bad, base64.StdEncoding.EncodeToString(raw))
		raw[31] ^= 0x80
		bad = append(bad, base64.StdEncoding.EncodeToString(raw))
	}
	// The weak ones, and every number that spells a coordinate once more.
	for by := int64(-1); by < 19; by++ {
		spelt := new(big.Int).Add(prime, big.NewInt(by))
		bad = append(bad, encoded(spelt, 0), encoded(spelt, 0x80))
	}
	for _, weak := range []int64{0, 1} {
		bad = append(bad, encoded(big.NewInt(weak), 0), encoded(big.NewInt(weak), 0x80))
	}
	for _, one := range bad {
		_, err := receipts.NewVerifyingKey(one)
		var config *aegisagent.ConfigError
		if !errors.As(err, &config) {
			t.Errorf("%q: %v", one, err)
		}
	}
	found, err := receipts.NewVerifyingKey(" " + root + "\n")
	must(t, err)
	if found.KeyID() != keyID {
		t.Fatal(found.KeyID())
	}
	// Keys of every kind are points.
	for number := range 200 {
		made := sha256.Sum256([]byte{byte(number)})
		public := ed25519.NewKeyFromSeed(made[:]).Public().(ed25519.PublicKey)
		if _, err := receipts.NewVerifyingKey(base64.StdEncoding.EncodeToString(public)); err != nil {
			t.Fatal(number, err)
		}
	}
	if _, err := receipts.ReadRoots(); err == nil {
		t.Fatal("no key is pinned, and that is no error")
	}
}
