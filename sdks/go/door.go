package aegisagent

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The strict door: a JSON text to a value, or the reason for its refusal, in reading order. encoding/json takes duplicate keys, replaces
// bad UTF-8 and half surrogate pairs silently, and rounds integers, so it is never asked.

const (
	maxSafeInteger = 1<<53 - 1
	// Digits of that: a longer literal is out of range.
	integerDigits = 16
	// Literals up to this length go to strconv as they are; it stops reading an exponent somewhere past 10000.
	plainLiteral = 64
	// Significant digits that decide a double; whatever follows only says on which side of a half it lies.
	decisiveDigits = 800
)

type reader struct {
	text string
	at   int
}

// parse gives the value of a JSON text: nil, bool, int, float64, string, []any, map[string]any.
func parse(text []byte, maxBytes int) (any, error) {
	if len(text) > maxBytes {
		return nil, &CanonError{Reason: "size_exceeded"}
	}
	if !utf8.Valid(text) {
		return nil, &CanonError{Reason: "invalid_utf8"}
	}
	r := &reader{text: string(text)}
	value, reason := r.value(0)
	if reason == "" {
		r.skipSpace()
		if r.at < len(r.text) {
			reason = "trailing_data"
		}
	}
	if reason != "" {
		return nil, &CanonError{Reason: reason}
	}
	return value, nil
}

func (r *reader) skipSpace() {
	for r.at < len(r.text) {
		switch r.text[r.at] {
		case ' ', '\t', '\n', '\r':
			r.at++
		default:
			return
		}
	}
}

// peek gives the next byte, 0 at the end: 0 itself is nowhere allowed.
func (r *reader) peek() byte {
	if r.at < len(r.text) {
		return r.text[r.at]
	}
	return 0
}

func (r *reader) nextSignificant() byte {
	r.skipSpace()
	return r.peek()
}

func (r *reader) startsWith(word string) bool {
	return strings.HasPrefix(r.text[r.at:], word)
}

func (r *reader) value(depth int) (any, string) {
	first := r.nextSignificant()
	switch first {
	case '{':
		return r.object(depth)
	case '[':
		return r.array(depth)
	case '"':
		return r.string()
	}
	for _, word := range []string{"NaN", "Infinity", "-Infinity"} {
		if r.startsWith(word) {
			return nil, "non_finite_number"
		}
	}
	if first == '-' || isDigit(first) {
		return r.number()
	}
	switch {
	case r.startsWith("true"):
		r.at += len("true")
		return true, ""
	case r.startsWith("false"):
		r.at += len("false")
		return false, ""
	case r.startsWith("null"):
		r.at += len("null")
		return nil, ""
	}
	return nil, "syntax"
}

func (r *reader) object(depth int) (any, string) {
	if depth >= MaxDepth {
		return nil, "depth_exceeded"
	}
	r.at++
	members := map[string]any{}
	if r.nextSignificant() == '}' {
		r.at++
		return members, ""
	}
	for {
		if r.nextSignificant() != '"' {
			return nil, "syntax"
		}
		key, reason := r.string()
		if reason != "" {
			return nil, reason
		}
		if _, twice := members[key]; twice {
			return nil, "duplicate_key"
		}
		if r.nextSignificant() != ':' {
			return nil, "syntax"
		}
		r.at++
		value, reason := r.value(depth + 1)
		if reason != "" {
			return nil, reason
		}
		members[key] = value
		switch r.nextSignificant() {
		case '}':
			r.at++
			return members, ""
		case ',':
			r.at++
		default:
			return nil, "syntax"
		}
	}
}

func (r *reader) array(depth int) (any, string) {
	if depth >= MaxDepth {
		return nil, "depth_exceeded"
	}
	r.at++
	items := []any{}
	if r.nextSignificant() == ']' {
		r.at++
		return items, ""
	}
	for {
		value, reason := r.value(depth + 1)
		if reason != "" {
			return nil, reason
		}
		items = append(items, value)
		switch r.nextSignificant() {
		case ']':
			r.at++
			return items, ""
		case ',':
			r.at++
		default:
			return nil, "syntax"
		}
	}
}

func (r *reader) string() (string, string) {
	r.at++
	start := r.at
	var unescaped strings.Builder
	isEscaped := false
	for r.at < len(r.text) {
		switch c := r.text[r.at]; {
		case c == '"':
			run := r.text[start:r.at]
			r.at++
			if !isEscaped {
				return run, ""
			}
			unescaped.WriteString(run)
			return unescaped.String(), ""
		case c < ' ':
			return "", "syntax"
		case c == '\\':
			isEscaped = true
			unescaped.WriteString(r.text[start:r.at])
			character, reason := r.escape()
			if reason != "" {
				return "", reason
			}
			unescaped.WriteRune(character)
			start = r.at
		default:
			r.at++
		}
	}
	return "", "syntax"
}

func (r *reader) escape() (rune, string) {
	r.at++
	kind := r.peek()
	if kind != 'u' {
		place := strings.IndexByte(`"\/bfnrt`, kind)
		if kind == 0 || place < 0 {
			return 0, "syntax"
		}
		r.at++
		return rune("\"\\/\b\f\n\r\t"[place]), ""
	}
	first, ok := r.codeUnit()
	if !ok {
		return 0, "syntax"
	}
	if first < 0xD800 || first > 0xDFFF {
		return first, ""
	}
	if first >= 0xDC00 || !r.startsWith(`\u`) {
		return 0, "lone_surrogate"
	}
	r.at++
	second, ok := r.codeUnit()
	if !ok {
		return 0, "syntax"
	}
	if second < 0xDC00 || second > 0xDFFF {
		return 0, "lone_surrogate"
	}
	return 0x10000 + (first-0xD800)<<10 + (second - 0xDC00), ""
}

// codeUnit reads `uXXXX` from its `u`.
func (r *reader) codeUnit() (rune, bool) {
	end := r.at + 5
	if end > len(r.text) {
		return 0, false
	}
	unit := rune(0)
	for _, c := range []byte(r.text[r.at+1 : end]) {
		switch {
		case isDigit(c):
			unit = unit<<4 | rune(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			unit = unit<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	r.at = end
	return unit, true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// digits reads a run of digits, and says whether there was one.
func (r *reader) digits() bool {
	start := r.at
	for isDigit(r.peek()) {
		r.at++
	}
	return r.at > start
}

func (r *reader) number() (any, string) {
	start := r.at
	if r.peek() == '-' {
		r.at++
	}
	firstDigit := r.at
	if !r.digits() || (r.text[firstDigit] == '0' && r.at > firstDigit+1) {
		return nil, "syntax"
	}
	isDouble := false
	if r.peek() == '.' {
		isDouble = true
		r.at++
		if !r.digits() {
			return nil, "syntax"
		}
	}
	if r.peek() == 'e' || r.peek() == 'E' {
		isDouble = true
		r.at++
		if r.peek() == '+' || r.peek() == '-' {
			r.at++
		}
		if !r.digits() {
			return nil, "syntax"
		}
	}
	literal := r.text[start:r.at]
	if isDouble {
		return doubleOf(literal)
	}
	if r.at-firstDigit > integerDigits {
		return nil, "integer_out_of_range"
	}
	integer, err := strconv.ParseInt(literal, 10, 64)
	if err != nil || integer > maxSafeInteger || integer < -maxSafeInteger {
		return nil, "integer_out_of_range"
	}
	return integerValue(integer), ""
}

// doubleOf gives the nearest double of a literal with fraction or exponent.
func doubleOf(literal string) (any, string) {
	if len(literal) > plainLiteral {
		literal = shortened(literal)
	}
	value, err := strconv.ParseFloat(literal, 64)
	if err != nil || math.IsInf(value, 0) {
		return nil, "number_out_of_range"
	}
	return value, ""
}

// shortened gives a literal of the same double that is short, whatever zeros and exponent balance each other in the long one.
func shortened(literal string) string {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(literal), "e")
	sign := ""
	if strings.HasPrefix(mantissa, "-") {
		sign, mantissa = "-", mantissa[1:]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return sign + "0.0"
	}
	// The value is 0.digits × 10^power.
	power := int64(len(whole)-(len(whole)+len(fraction)-len(digits))) + saturated(exponent)
	digits = strings.TrimRight(digits, "0")
	if len(digits) > decisiveDigits {
		digits = digits[:decisiveDigits] + "1"
	}
	const beyondAnyDouble = 1000
	power = max(-beyondAnyDouble, min(beyondAnyDouble, power))
	return sign + "0." + digits + "e" + strconv.FormatInt(power, 10)
}

// saturated reads an exponent; one that no text is long enough to balance is as good as any other.
func saturated(exponent string) int64 {
	const beyondAnyText = 1 << 40
	sign := int64(1)
	if strings.HasPrefix(exponent, "-") {
		sign = -1
	}
	value := int64(0)
	for _, c := range []byte(strings.TrimLeft(exponent, "+-")) {
		value = min(value*10+int64(c-'0'), beyondAnyText)
	}
	return sign * value
}
