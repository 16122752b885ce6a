package aegisagent

import "regexp"

// Reads a reply field by field: the type it must have, or BadReply. Fields that this version does not know are ignored.

var (
	hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
	// Ids go into paths, errors and logs.
	idForm = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,256}$`)
)

// fields is one JSON object of a reply. The first field that is not what it must be is the failure; what is read after it is zero.
type fields struct {
	what    string
	members map[string]any
	failure *error
}

func fieldsOf(value any, what string) fields {
	members, isObject := value.(map[string]any)
	found := fields{what, members, new(error)}
	if !isObject {
		found.fail("%s is not an object", what)
	}
	return found
}

func (f fields) fail(format string, arguments ...any) {
	if *f.failure == nil {
		*f.failure = badReply(format, arguments...)
	}
}

// err is the first failure. A call, for the order in which a dereference beside calls happens is not laid down.
func (f fields) err() error { return *f.failure }

func typed[T any](f fields, name, word string) T {
	value, ok := f.members[name].(T)
	if !ok {
		f.fail("`%s` of %s is not %s", name, f.what, word)
	}
	return value
}

// isNull says whether a field that must be there is null.
func (f fields) isNull(name string) bool {
	value, isThere := f.members[name]
	if !isThere {
		f.fail("%s has no `%s`", f.what, name)
	}
	return value == nil
}

// isAbsent says whether a field that may be missing is null or missing.
func (f fields) isAbsent(name string) bool { return f.members[name] == nil }

func (f fields) text(name string) string { return typed[string](f, name, "a text") }
func (f fields) flag(name string) bool   { return typed[bool](f, name, "true or false") }
func (f fields) items(name string) []any { return typed[[]any](f, name, "a list") }
func (f fields) object(name string) map[string]any {
	return typed[map[string]any](f, name, "an object")
}

func (f fields) maybeText(name string) *string {
	if f.isNull(name) {
		return nil
	}
	text := f.text(name)
	return &text
}

func (f fields) integer(name string) int64 {
	value, ok := integerOf(f.members[name])
	if !ok {
		f.fail("`%s` of %s is not a whole number", name, f.what)
	}
	return value
}

// maybeSeconds is a whole number of seconds, none of them negative; nil where it is null or missing.
func (f fields) maybeSeconds(name string) *int64 {
	if f.isAbsent(name) {
		return nil
	}
	seconds := f.integer(name)
	if seconds < 0 {
		f.fail("`%s` of %s is negative", name, f.what)
	}
	return &seconds
}

func (f fields) formed(name string, is func(string) bool, word string) string {
	text := f.text(name)
	if !is(text) {
		f.fail("`%s` of %s is %s", name, f.what, word)
	}
	return text
}

func (f fields) hash(name string) string { return f.formed(name, hashForm.MatchString, "not a hash") }
func (f fields) id(name string) string   { return f.formed(name, isID, "no id") }

// Longest trust token that the server takes back, bytes. One is kept for each run, so a longer one would also cost memory without end.
const longestTrustToken = 4096

// trustToken is a token that is to be sent back.
func (f fields) trustToken(name string) Token {
	isTakenBack := func(text string) bool { return len(text) <= longestTrustToken }
	return Token(f.formed(name, isTakenBack, "longer than one that is taken back"))
}

// isID refuses also the two ids that would lead elsewhere in a path.
func isID(text string) bool { return idForm.MatchString(text) && text != "." && text != ".." }

func (f fields) maybeHash(name string) *string {
	if f.isNull(name) {
		return nil
	}
	hash := f.hash(name)
	return &hash
}

func (f fields) texts(name string) []string {
	texts := []string{}
	for _, item := range f.items(name) {
		text, ok := item.(string)
		if !ok {
			f.fail("`%s` of %s is not a list of texts", name, f.what)
		}
		texts = append(texts, text)
	}
	return texts
}

// fields gives an object, to be read in turn; its failures are the whole's.
func (f fields) fields(name string) fields {
	return f.within(f.members[name], "`"+name+"` of "+f.what)
}

func (f fields) within(value any, what string) fields {
	members, isObject := value.(map[string]any)
	if !isObject {
		f.fail("%s is not an object", what)
	}
	return fields{what, members, f.failure}
}
