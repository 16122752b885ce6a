package aegisagent

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"
)

// aegis-jcs-1: the one canonical JSON form, and the action hash over it (corpus/canonical). The writer is our own: the RFC 8785 libraries
// for Go take texts, so a value would be written, read and written again, and they would be one more door that must be strict.
// bench/sdk and the module conformance hold it against github.com/gowebpki/jcs.

const (
	// CanonVersion names the canonical form.
	CanonVersion = "aegis-jcs-1"
	// DefaultMaxBytes is the limit of an input and of a canonical form, in bytes.
	DefaultMaxBytes = 1 << 20
	// MaxDepth is how many arrays and objects may be open at once.
	MaxDepth = 128
)

// ParseStrict gives the value of a JSON text that means one thing in every language, made of nil, bool, int, float64, string, []any and
// map[string]any; a [*CanonError] for any other text, or one over maxBytes. Where int has 32 bits, an integer beyond it is an int64.
func ParseStrict(text []byte, maxBytes int) (any, error) {
	return parse(text, maxBytes)
}

// Canonicalize gives the canonical form of a JSON text. maxBytes holds for the text and for the form.
func Canonicalize(text []byte, maxBytes int) ([]byte, error) {
	value, err := parse(text, maxBytes)
	if err != nil {
		return nil, err
	}
	return bounded(appendJSON(nil, value, appendCanonicalDouble), maxBytes)
}

// CanonicalizeValue gives the canonical form of a value made of the types that [ParseStrict] returns, and of nothing else.
func CanonicalizeValue(value any, maxBytes int) ([]byte, error) {
	copied, err := exactCopy(value, "", 0, &budget{maxBytes})
	if err != nil {
		return nil, err
	}
	return bounded(appendJSON(nil, copied, appendCanonicalDouble), maxBytes)
}

// ActionHash is what an approval, a receipt and an execution are bound to: lower-case hex SHA-256 over exactly these five.
func ActionHash(tool, action string, resource *string, mutatesState bool, parameters map[string]any) (string, error) {
	if parameters == nil {
		parameters = map[string]any{}
	}
	canonical, err := CanonicalizeValue(fiveOf(tool, action, resource, mutatesState, parameters), DefaultMaxBytes)
	if err != nil {
		return "", err
	}
	return sha256Hex(canonical), nil
}

func fiveOf(tool, action string, resource *string, mutatesState bool, parameters map[string]any) map[string]any {
	five := map[string]any{"tool": tool, "action": action, "resource": nil, "mutates_state": mutatesState, "parameters": parameters}
	if resource != nil {
		five["resource"] = *resource
	}
	return five
}

func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func bounded(canonical []byte, maxBytes int) ([]byte, error) {
	if len(canonical) > maxBytes {
		return nil, &CanonError{Reason: "size_exceeded"}
	}
	return canonical, nil
}

// integerValue is an integer as plain JSON has it: an int, and only where that is too small an int64.
func integerValue(value int64) any {
	if int64(int(value)) == value {
		return int(value)
	}
	return value
}

// integerOf is the other way round; false for anything that integerValue does not give.
func integerOf(value any) (int64, bool) {
	switch number := value.(type) {
	case int:
		return int64(number), true
	case int64:
		return number, int64(int(number)) != number
	}
	return 0, false
}

// budget is how many bytes a form may still have. What refers to one thing many times would be copied as often, so a copy ends where its
// form cannot fit any more. It is charged less than the form has, never more: what fits is never refused.
type budget struct {
	left int
}

func (b *budget) spend(bytes int, where string) error {
	if bytes > b.left {
		return &CanonError{Reason: "size_exceeded", Where: where}
	}
	b.left -= bytes
	return nil
}

// text charges a text, before it is looked at.
func (b *budget) text(text, where string) error {
	if err := b.spend(len(text), where); err != nil {
		return err
	}
	return soundText(text, where)
}

// open charges what an array or an object holds, a byte for each value, before there is room made for them.
func (b *budget) open(count int, where string, depth int) error {
	if depth >= MaxDepth {
		return &CanonError{Reason: "depth_exceeded", Where: where}
	}
	return b.spend(count, where)
}

// exactCopy is a deep copy of plain JSON, each value looked at once. where names the value in errors, which never repeat it.
func exactCopy(value any, where string, depth int, left *budget) (any, error) {
	switch given := value.(type) {
	case nil, bool:
		return given, nil
	case string:
		return given, left.text(given, where)
	case float64:
		return given, finite(given, where)
	case int, int64:
		integer, isPlain := integerOf(given)
		if !isPlain {
			return nil, unsupported(value, where)
		}
		return given, safeInteger(integer, where)
	case []any:
		if given == nil {
			return nil, unsupported(value, where)
		}
		if err := left.open(len(given), where, depth); err != nil {
			return nil, err
		}
		items := make([]any, len(given))
		for place, item := range given {
			copied, err := exactCopy(item, where, depth+1, left)
			if err != nil {
				return nil, err
			}
			items[place] = copied
		}
		return items, nil
	case map[string]any:
		if given == nil {
			return nil, unsupported(value, where)
		}
		if err := left.open(len(given), where, depth); err != nil {
			return nil, err
		}
		members := make(map[string]any, len(given))
		for key, item := range given {
			if err := left.text(key, where); err != nil {
				return nil, err
			}
			copied, err := exactCopy(item, where, depth+1, left)
			if err != nil {
				return nil, err
			}
			members[key] = copied
		}
		return members, nil
	}
	return nil, unsupported(value, where)
}

func unsupported(value any, where string) error {
	if where == "" {
		where = "the value"
	}
	hint := "only nil, bool, int, float64, string, []any and map[string]any, none of them a nil of its type, are plain JSON"
	return &CanonError{Reason: "unsupported_type", Where: fmt.Sprintf("%s (%T); %s", where, value, hint)}
}

func soundText(text, where string) error {
	// Go's encoder would replace what is not UTF-8, so that something else would be hashed than runs.
	if !utf8.ValidString(text) {
		return &CanonError{Reason: "invalid_utf8", Where: where}
	}
	return nil
}

func finite(value float64, where string) error {
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return &CanonError{Reason: "non_finite_number", Where: where}
	}
	return nil
}

func safeInteger(value int64, where string) error {
	if value > maxSafeInteger || value < -maxSafeInteger {
		return &CanonError{Reason: "integer_out_of_range", Where: where}
	}
	return nil
}

// appendJSON writes plain JSON with keys in canonical order. Doubles are written by double; everything else has one spelling.
func appendJSON(out []byte, value any, double func([]byte, float64) []byte) []byte {
	switch given := value.(type) {
	case nil:
		return append(out, "null"...)
	case bool:
		return strconv.AppendBool(out, given)
	case string:
		return appendText(out, given)
	case int:
		return strconv.AppendInt(out, int64(given), 10)
	case int64:
		return strconv.AppendInt(out, given, 10)
	case float64:
		return double(out, given)
	case []any:
		out = append(out, '[')
		for place, item := range given {
			if place > 0 {
				out = append(out, ',')
			}
			out = appendJSON(out, item, double)
		}
		return append(out, ']')
	case map[string]any:
		keys := make([]string, 0, len(given))
		for key := range given {
			keys = append(keys, key)
		}
		slices.SortFunc(keys, compareUTF16)
		out = append(out, '{')
		for place, key := range keys {
			if place > 0 {
				out = append(out, ',')
			}
			out = append(appendText(out, key), ':')
			out = appendJSON(out, given[key], double)
		}
		return append(out, '}')
	}
	// exactCopy and parse make nothing else.
	panic("aegisagent: a value that is not plain JSON was to be written")
}

// compareUTF16 orders texts by their UTF-16 code units. That is the order of their bytes, but that what lies beyond U+FFFF, whose first
// byte is 0xF0 or more, begins with a surrogate, and so comes before U+E000 to U+FFFF, whose first byte is 0xEE or 0xEF.
func compareUTF16(one, other string) int {
	for place := 0; place < min(len(one), len(other)); place++ {
		a, b := one[place], other[place]
		if a == b {
			continue
		}
		if (a >= 0xF0 && b >= 0xEE && b < 0xF0) || (b >= 0xF0 && a >= 0xEE && a < 0xF0) {
			return int(b) - int(a)
		}
		return int(a) - int(b)
	}
	return len(one) - len(other)
}

func appendText(out []byte, text string) []byte {
	out = append(out, '"')
	start := 0
	for place := 0; place < len(text); place++ {
		c := text[place]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		out = append(out, text[start:place]...)
		start = place + 1
		switch c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\b':
			out = append(out, '\\', 'b')
		case '\t':
			out = append(out, '\\', 't')
		case '\n':
			out = append(out, '\\', 'n')
		case '\f':
			out = append(out, '\\', 'f')
		case '\r':
			out = append(out, '\\', 'r')
		default:
			out = append(out, '\\', 'u', '0', '0', "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
		}
	}
	return append(append(out, text[start:]...), '"')
}

// appendCanonicalDouble writes a number as ECMAScript does (RFC 8785 section 3.2.2.3).
func appendCanonicalDouble(out []byte, value float64) []byte {
	if value == 0 {
		return append(out, '0')
	}
	size := math.Abs(value)
	if size >= 1e-6 && size < 1e21 {
		return strconv.AppendFloat(out, value, 'f', -1, 64)
	}
	out = strconv.AppendFloat(out, value, 'e', -1, 64)
	// Go writes two digits of an exponent at least, ECMAScript one.
	if end := len(out); out[end-2] == '0' && (out[end-3] == '-' || out[end-3] == '+') {
		out = append(out[:end-2], out[end-1])
	}
	return out
}

// appendExactDouble writes a double so that it is read as one again: with a fraction or an exponent.
func appendExactDouble(out []byte, value float64) []byte {
	size := math.Abs(value)
	if size == 0 || (size >= 1e-6 && size < 1e15) {
		out = strconv.AppendFloat(out, value, 'f', -1, 64)
		if value == math.Trunc(value) {
			out = append(out, ".0"...)
		}
		return out
	}
	return strconv.AppendFloat(out, value, 'e', -1, 64)
}
