// Package conformance holds the SDK against what is not its own: another RFC 8785 library, the OpenAPI document, and the rules for a module
// that is published. It is a module of its own, so that the SDK needs nothing of this.
package conformance

import (
	"archive/zip"
	"bufio"
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
	"github.com/gowebpki/jcs"
	"golang.org/x/mod/module"
	modzip "golang.org/x/mod/zip"
	"gopkg.in/yaml.v3"
)

const repository = "../../../"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sameAsJCS(t *testing.T, text []byte) {
	t.Helper()
	ours, err := aegisagent.Canonicalize(text, 1<<24)
	must(t, err)
	theirs, err := jcs.Transform(text)
	must(t, err)
	if !bytes.Equal(ours, theirs) {
		t.Fatalf("%s: we write %s, the library %s", text, ours, theirs)
	}
}

func TestCanonicalFormsAreThoseOfAnotherLibrary(t *testing.T) {
	proof.Of(t, "canonicalize")
	file, err := os.Open(repository + "corpus/canonical/accepted.jsonl")
	must(t, err)
	defer func() { _ = file.Close() }()
	lines, count, wrong := bufio.NewScanner(file), 0, []string{}
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var vector struct {
			ID               string
			Input, Canonical []byte
		}
		must(t, json.Unmarshal(lines.Bytes(), &vector))
		if theirs, err := jcs.Transform(vector.Input); err != nil || !bytes.Equal(theirs, vector.Canonical) {
			wrong = append(wrong, vector.ID)
			continue
		}
		sameAsJCS(t, vector.Input)
		count++
	}
	// Literals that Go's strconv reads wrongly: one more reason why the library is not the SDK's writer.
	for _, id := range wrong {
		if !strings.HasPrefix(id, "number-spellings-") {
			t.Errorf("%s: the library has another form than the corpus", id)
		}
	}
	if count < 10_000 {
		t.Fatalf("%d vectors were compared", count)
	}
}

func TestDoublesAreWrittenAsByAnotherLibrary(t *testing.T) {
	proof.Of(t, "canonicalize")
	random := rand.New(rand.NewPCG(3, 4))
	for count := 0; count < 100_000; {
		double := math.Float64frombits(random.Uint64())
		if count%3 == 0 {
			double = math.Trunc(random.Float64()*1e6) / math.Pow(10, float64(random.IntN(40)-20))
		}
		if math.IsNaN(double) || math.IsInf(double, 0) {
			continue
		}
		count++
		sameAsJCS(t, []byte(strconv.FormatFloat(double, 'e', -1, 64)))
	}
}

func TestKeysAreInTheOrderOfAnotherLibrary(t *testing.T) {
	proof.Of(t, "canonicalize")
	random := rand.New(rand.NewPCG(5, 6))
	ranges := [][2]int{{1, 0x80}, {0x80, 0x800}, {0x800, 0xD800}, {0xE000, 0x10000}, {0x10000, 0x110000}}
	for range 20_000 {
		members := map[string]any{}
		for range 4 {
			key := []rune{}
			for range 1 + random.IntN(3) {
				chosen := ranges[random.IntN(len(ranges))]
				key = append(key, rune(chosen[0]+random.IntN(chosen[1]-chosen[0])))
			}
			members[string(key)] = nil
		}
		text, err := json.Marshal(members)
		must(t, err)
		sameAsJCS(t, text)
	}
}

// Null in lists, which have no word on enforcement; from servers that do not count the seconds; and while an edge does not enforce it.
var looser = []string{"Containment.enforced", "Containment.edges", "Containment.edges.since", "ApprovalRef.expires_in", "Approval.expires_in", "ReceiptVerdict.same_id"}

type schema = map[string]any

func schemas(t *testing.T) schema {
	t.Helper()
	text, err := os.ReadFile(repository + "docs/openapi.yaml")
	must(t, err)
	var document schema
	must(t, yaml.Unmarshal(text, &document))
	return document["components"].(schema)["schemas"].(schema)
}

func resolved(all, one schema) schema {
	if reference, isReference := one["$ref"].(string); isReference {
		return all[reference[strings.LastIndex(reference, "/")+1:]].(schema)
	}
	return one
}

// properties gives name to schema, and the required names, of a schema with all of its parts.
func properties(all, one schema) (schema, []string) {
	one = resolved(all, one)
	found, required := schema{}, []string{}
	own, _ := one["properties"].(schema)
	for name, property := range own {
		found[name] = property
	}
	needed, _ := one["required"].([]any)
	for _, name := range needed {
		required = append(required, name.(string))
	}
	parts, _ := one["allOf"].([]any)
	for _, part := range parts {
		more, names := properties(all, part.(schema))
		for name, property := range more {
			found[name] = property
		}
		required = append(required, names...)
	}
	return found, required
}

// propertiesOf gives them of a schema by its name, or of a field of one (`Containment.edges`).
func propertiesOf(all schema, name string) (schema, []string) {
	whole, field, isField := strings.Cut(name, ".")
	found, required := properties(all, all[whole].(schema))
	if isField {
		return properties(all, found[field].(schema))
	}
	return found, required
}

func typesOf(all, one schema) []string {
	if _, isReference := one["$ref"]; isReference {
		return typesOf(all, resolved(all, one))
	}
	found := []string{}
	if choices, hasChoices := one["anyOf"].([]any); hasChoices {
		for _, choice := range choices {
			found = append(found, typesOf(all, choice.(schema))...)
		}
		return found
	}
	switch named := one["type"].(type) {
	case nil:
		return []string{"object"}
	case string:
		return []string{named}
	case []any:
		for _, name := range named {
			found = append(found, name.(string))
		}
	}
	return found
}

func typesIn(kind reflect.Type) []string {
	if kind == reflect.TypeFor[*aegisagent.Secret]() {
		return []string{"string"}
	}
	switch kind.Kind() {
	case reflect.Pointer:
		return append(typesIn(kind.Elem()), "null")
	case reflect.String:
		return []string{"string"}
	case reflect.Bool:
		return []string{"boolean"}
	case reflect.Int64:
		return []string{"integer"}
	case reflect.Slice:
		return []string{"array"}
	}
	return []string{"object"}
}

// models are the document's names of what replies are read into.
var models = map[string]reflect.Type{
	"ToolCall": reflect.TypeFor[aegisagent.ToolCall](), "ReceiptRef": reflect.TypeFor[aegisagent.ReceiptRef](),
	"ApprovalRef": reflect.TypeFor[aegisagent.ApprovalRef](), "AuthorizeResponse": reflect.TypeFor[aegisagent.Decision](),
	"Approval": reflect.TypeFor[aegisagent.Approval](), "Consumed": reflect.TypeFor[aegisagent.Consumed](),
	"Outcome": reflect.TypeFor[aegisagent.Outcome](), "RegisteredAgent": reflect.TypeFor[aegisagent.Registration](),
	"Hold": reflect.TypeFor[aegisagent.Hold](), "Containment": reflect.TypeFor[aegisagent.Containment](),
	"ReceiptVerdict": reflect.TypeFor[aegisagent.ReceiptVerdict](), "Containment.edges": reflect.TypeFor[aegisagent.ContainedEdges](),
}

func TestTheModelsFieldsAreTheDocuments(t *testing.T) {
	proof.Of(t, "models-openapi")
	all := schemas(t)
	for name, kind := range models {
		described, required := propertiesOf(all, name)
		for tag := range described {
			if !slices.ContainsFunc(reflect.VisibleFields(kind), func(field reflect.StructField) bool { return field.Tag.Get("json") == tag }) {
				t.Errorf("%s.%s is in the document, and not here", name, tag)
			}
		}
		for place := range kind.NumField() {
			tag := kind.Field(place).Tag.Get("json")
			property, isThere := described[tag].(schema)
			if !isThere {
				t.Errorf("%s has no %s", name, tag)
				continue
			}
			expected, found := typesOf(all, property), typesIn(kind.Field(place).Type)
			if slices.Contains(looser, name+"."+tag) {
				expected = append(expected, "null")
			}
			slices.Sort(expected)
			slices.Sort(found)
			if !slices.Equal(slices.Compact(expected), slices.Compact(found)) {
				t.Errorf("%s.%s is %v, and %v here", name, tag, expected, found)
			}
			if !slices.Contains(required, tag) && !slices.Contains(found, "null") {
				t.Errorf("%s.%s may be missing", name, tag)
			}
		}
	}
}

func TestEveryModelOfAReplyIsLookedAt(t *testing.T) {
	proof.Of(t, "models-openapi")
	file, err := parser.ParseFile(token.NewFileSet(), "../models.go", nil, parser.SkipObjectResolution)
	must(t, err)
	defined := []string{}
	ast.Inspect(file, func(node ast.Node) bool {
		if named, isType := node.(*ast.TypeSpec); isType && named.Name.IsExported() {
			if _, isStruct := named.Type.(*ast.StructType); isStruct {
				defined = append(defined, named.Name.Name)
			}
		}
		return true
	})
	looked := []string{}
	for _, kind := range models {
		looked = append(looked, kind.Name())
	}
	slices.Sort(defined)
	slices.Sort(looked)
	if !slices.Equal(defined, looked) {
		t.Fatalf("models.go has %v, looked at are %v", defined, looked)
	}
}

func TestTheModuleAsItIsPublishedIsSmallAndBuildsByItself(t *testing.T) {
	proof.Of(t, "readme")
	version := module.Version{Path: "github.com/aegisagent/aegisagent-go", Version: "v" + aegisagent.Version}
	var packed bytes.Buffer
	must(t, modzip.CreateFromDir(&packed, version, ".."))
	if packed.Len() > 256<<10 {
		t.Fatalf("it has %d bytes", packed.Len())
	}
	archive, err := zip.NewReader(bytes.NewReader(packed.Bytes()), int64(packed.Len()))
	must(t, err)
	folder, names := t.TempDir(), []string{}
	for _, file := range archive.File {
		name := strings.TrimPrefix(file.Name, version.Path+"@"+version.Version+"/")
		names = append(names, name)
		content, err := file.Open()
		must(t, err)
		text, err := io.ReadAll(content)
		must(t, err)
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(folder, name)), 0o700))
		must(t, os.WriteFile(filepath.Join(folder, name), text, 0o600))
	}
	for _, expected := range []string{"LICENSE", "README.md", "go.mod", "protect.go", "receipts/export.go"} {
		if !slices.Contains(names, expected) {
			t.Errorf("it has no %s", expected)
		}
	}
	for _, name := range names {
		if strings.HasPrefix(name, "conformance/") {
			t.Errorf("it has %s", name)
		}
	}
	needs, err := os.ReadFile(filepath.Join(folder, "go.mod"))
	must(t, err)
	if strings.Contains(string(needs), "require") {
		t.Errorf("it needs more than the standard library: %s", needs)
	}
	building := exec.Command("go", "build", "./...")
	building.Dir = folder
	if said, err := building.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
}
