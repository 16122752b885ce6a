package aegisagent

import (
	"container/list"
	"context"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// How far the origin of the work at hand may be trusted: a label that follows the work in its context.Context, and that only tightens.

// SourceTrust is one of the six labels, from the least to the most strict. What is none of them, the zero value among it, counts as the
// most strict.
type SourceTrust uint8

// The labels, from the least to the most strict.
const (
	TrustedInternalSigned SourceTrust = iota + 1
	TrustedInternalUnsigned
	SemiTrustedCustomer
	Unknown
	UntrustedExternal
	MaliciousSuspected
)

var trustWords = map[SourceTrust]string{
	TrustedInternalSigned: "trusted_internal_signed", TrustedInternalUnsigned: "trusted_internal_unsigned",
	SemiTrustedCustomer: "semi_trusted_customer", Unknown: "unknown", UntrustedExternal: "untrusted_external",
	MaliciousSuspected: "malicious_suspected",
}

// String gives the label's word.
func (t SourceTrust) String() string { return trustWords[t.known()] }

func (t SourceTrust) known() SourceTrust {
	if t < TrustedInternalSigned || t > MaliciousSuspected {
		return MaliciousSuspected
	}
	return t
}

// Combine gives the stricter of two labels.
func (t SourceTrust) Combine(other SourceTrust) SourceTrust { return max(t.known(), other.known()) }

// ParseSourceTrust reads a label that this program's author wrote: a misspelt one would be looser than what was meant, so it is an error.
func ParseSourceTrust(word string) (SourceTrust, error) {
	for label, known := range trustWords {
		if known == word {
			return label, nil
		}
	}
	words := make([]string, 0, len(trustWords))
	for label := TrustedInternalSigned; label <= MaliciousSuspected; label++ {
		words = append(words, label.String())
	}
	return 0, misconfigured("no such trust label; the labels are %s", strings.Join(words, ", "))
}

// trustOf reads a label that a server wrote; whatever is none of the six is unknown.
func trustOf(word string) SourceTrust {
	label, err := ParseSourceTrust(word)
	if err != nil {
		return Unknown
	}
	return label
}

// User is who the work at hand is done for.
type User struct {
	ID string
	// Role may be empty.
	Role string
}

type origin struct {
	// 0 where nobody set one.
	label SourceTrust
	runID string
	user  User
}

type originKey struct{}

func originOf(ctx context.Context) origin {
	found, _ := ctx.Value(originKey{}).(origin)
	return found
}

func withOrigin(ctx context.Context, of origin) context.Context {
	return context.WithValue(ctx, originKey{}, of)
}

// WithSourceTrust labels what is done under the new context as coming from a source of this label. Under a label, the stricter holds.
func WithSourceTrust(ctx context.Context, label SourceTrust) context.Context {
	here := originOf(ctx)
	if here.label == 0 {
		here.label = label.known()
	} else {
		here.label = here.label.Combine(label)
	}
	return withOrigin(ctx, here)
}

// WithRun says that what is done under the new context belongs to this run: the server keeps the strictest label that a run has seen,
// whatever is claimed later.
func WithRun(ctx context.Context, runID string) (context.Context, error) {
	if err := checkName(runID, "a run id"); err != nil {
		return nil, err
	}
	here := originOf(ctx)
	here.runID = runID
	return withOrigin(ctx, here), nil
}

// OnBehalfOf says that what is done under the new context is done for this user, who may then not approve it.
func OnBehalfOf(ctx context.Context, user User) (context.Context, error) {
	if err := checkName(user.ID, "a user's id"); err != nil {
		return nil, err
	}
	if user.Role != "" {
		if err := checkName(user.Role, "a role"); err != nil {
			return nil, err
		}
	}
	here := originOf(ctx)
	here.user = user
	return withOrigin(ctx, here), nil
}

// CurrentTrust gives the label of the work at hand; Unknown where nobody set one.
func CurrentTrust(ctx context.Context) SourceTrust { return originOf(ctx).trust() }

func (o origin) trust() SourceTrust {
	if o.label != 0 {
		return o.label
	}
	return Unknown
}

// CurrentRun gives the run that the work at hand belongs to, or "".
func CurrentRun(ctx context.Context) string { return originOf(ctx).runID }

// CurrentUser gives the user for whom the work at hand is done; the zero User where nobody was named.
func CurrentUser(ctx context.Context) User { return originOf(ctx).user }

// Carry takes the label, run and user of one context into another: that of a worker, a queue, a callback. Where the other has a label of
// its own, the stricter holds. Deadline and cancellation stay those of the other.
func Carry(from, into context.Context) context.Context {
	source, here := originOf(from), originOf(into)
	switch {
	case here.label == 0:
		here.label = source.label
	case source.label != 0:
		here.label = here.label.Combine(source.label)
	}
	if source.runID != "" {
		here.runID = source.runID
	}
	if source.user != (User{}) {
		here.user = source.user
	}
	return withOrigin(into, here)
}

// Go starts a goroutine that keeps the label, run and user of ctx, but is not cancelled with it: for work that outlives its request. A
// plain `go work(ctx)` keeps all of ctx; a goroutine that begins with context.Background() knows no label, which counts as Unknown.
func Go(ctx context.Context, work func(context.Context)) {
	go work(context.WithoutCancel(ctx))
}

// Longest id or name that the server takes, characters.
const longestName = 256

func checkName(text, what string) error {
	isSound := utf8.ValidString(text) && text != "" && utf8.RuneCountInString(text) <= longestName
	for _, character := range text {
		isSound = isSound && unicode.IsPrint(character)
	}
	if !isSound {
		return misconfigured("%s has 1 to %d printable characters", what, longestName)
	}
	return nil
}

// Runs whose token is remembered; each is a few hundred bytes.
const rememberedRuns = 10_000

// runTokens keeps the server's word on each run (trust_token), sent back with the run's next call so that every edge knows it. Replies
// may overtake each other: the token of the strictest label is kept, and of two with one label the newer. The run "" is the implicit one.
type runTokens struct {
	mutex sync.Mutex
	order list.List
	kept  map[string]*list.Element
}

type runToken struct {
	runID string
	label SourceTrust
	token string
}

func (r *runTokens) get(runID string) string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if found, ok := r.kept[runID]; ok {
		return found.Value.(runToken).token
	}
	return ""
}

func (r *runTokens) keep(runID string, label SourceTrust, token string) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.kept == nil {
		r.kept = map[string]*list.Element{}
	}
	found, ok := r.kept[runID]
	if !ok {
		r.kept[runID] = r.order.PushBack(runToken{runID, label, token})
	} else {
		if label >= found.Value.(runToken).label {
			found.Value = runToken{runID, label, token}
		}
		r.order.MoveToBack(found)
	}
	if len(r.kept) > rememberedRuns {
		oldest := r.order.Front()
		r.order.Remove(oldest)
		delete(r.kept, oldest.Value.(runToken).runID)
	}
}
