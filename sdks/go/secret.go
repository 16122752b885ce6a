package aegisagent

import (
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// RFC 6750: what may stand behind `Bearer`. Longer than any of ours.
const maxCredential = 4096

// Secret is a credential that no log, format verb, error or encoding shows. It is handed over as the pointer that [NewSecret] gives.
type Secret struct {
	_ noCopy
	// A function, for fmt and reflection walk through fields that are texts, and show a function's address only.
	reveal func() string
}

// NewSecret keeps a credential: one line of 1 to 4096 printable ASCII characters without spaces. Spaces around it are left out.
func NewSecret(text string) (*Secret, error) {
	kept := strings.TrimSpace(text)
	isSound := kept != "" && len(kept) <= maxCredential
	for _, c := range []byte(kept) {
		isSound = isSound && c > ' ' && c < 0x7f
	}
	if !isSound {
		return nil, misconfigured("a credential is one line of 1 to %d printable ASCII characters without spaces", maxCredential)
	}
	return &Secret{reveal: func() string { return kept }}, nil
}

// Reveal gives the text itself. Where it goes from here is the caller's to answer for.
func (s *Secret) Reveal() string {
	if s == nil || s.reveal == nil {
		return ""
	}
	return s.reveal()
}

// Equal compares in constant time.
func (s *Secret) Equal(other *Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(other.Reveal())) == 1
}

func (s *Secret) redact(text string) string {
	if s.Reveal() == "" {
		return text
	}
	return strings.ReplaceAll(text, s.Reveal(), hidden)
}

const hidden = "***"

// String shows nothing.
func (*Secret) String() string { return hidden }

// Format shows nothing, whatever the verb.
func (*Secret) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, hidden) }

// LogValue shows nothing.
func (*Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText refuses, and so do JSON and XML.
func (*Secret) MarshalText() ([]byte, error) { return nil, notSerialised("a credential") }

// GobEncode refuses.
func (*Secret) GobEncode() ([]byte, error) { return nil, notSerialised("a credential") }

func notSerialised(what string) error {
	return misconfigured("%s is not serialised; hand over the object itself", what)
}

// noCopy has `go vet` report a copy of what holds it.
type noCopy struct{}

func (*noCopy) Lock()   {}
func (*noCopy) Unlock() {}
