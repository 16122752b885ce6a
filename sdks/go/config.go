package aegisagent

import (
	"context"
	"os"
	"regexp"
	"time"
)

const (
	defaultTimeout = 10 * time.Second
	longestTimeout = 600 * time.Second
	// How long a report of an outcome may hold up the result that it is about.
	reportTimeout = 5 * time.Second
	defaultURL    = "http://127.0.0.1:8484"
	// Not `AEGIS_…`: the server refuses variables of that name that it does not know.
	urlVariable       = "AEGISAGENT_URL"
	tokenVariable     = "AEGISAGENT_TOKEN"
	tokenFileVariable = "AEGISAGENT_TOKEN_FILE"
	// A file longer than this holds no credential.
	maxTokenFile = 2 * maxCredential
)

var tenantForm = regexp.MustCompile(`^[a-z0-9_-]{1,64}$`)

// Config is what a client is told. Its zero value takes address and credential from the environment.
type Config struct {
	// BaseURL is http(s)://host[:port]; AEGISAGENT_URL, or http://127.0.0.1:8484, where it is empty.
	BaseURL string
	// Token is an agent's token to act, or an API key to administer; AEGISAGENT_TOKEN or the content of AEGISAGENT_TOKEN_FILE where neither
	// it nor TokenFunc is given.
	Token *Secret
	// TokenFunc is asked before each request, for a credential that changes, within the request's time. What it fails with is not shown.
	TokenFunc func(context.Context) (*Secret, error)
	// Agent is a label ("agent" where it is empty); the agent is the token's.
	Agent string
	// Environment is a label, and may be empty.
	Environment string
	// Tenant names the tenant, for a key that is valid in several.
	Tenant string
	// Timeout is for all of a call, its repetitions included: 10 s where it is 0, at most 600 s.
	Timeout time.Duration
	// CAFile names a file of certificates in PEM that are believed instead of the system's.
	CAFile string
	// AllowPlainHTTP allows http to other machines than this one, which shows the credential to whoever listens.
	AllowPlainHTTP bool
}

func (c Config) baseURL() string {
	if c.BaseURL != "" {
		return c.BaseURL
	}
	if url := os.Getenv(urlVariable); url != "" {
		return url
	}
	return defaultURL
}

func (c Config) timeout() (time.Duration, error) {
	if c.Timeout == 0 {
		return defaultTimeout, nil
	}
	if c.Timeout < 0 || c.Timeout > longestTimeout {
		return 0, misconfigured("Timeout is over 0 and at most %s", longestTimeout)
	}
	return c.Timeout, nil
}

// credential gives the function that is asked before each request.
func (c Config) credential() (func(context.Context) (*Secret, error), error) {
	if c.Token != nil && c.TokenFunc != nil {
		return nil, misconfigured("give Token or TokenFunc, not both")
	}
	if c.TokenFunc != nil {
		return inTime(c.TokenFunc), nil
	}
	token := c.Token
	if token == nil {
		fromEnvironment, err := tokenFromEnvironment()
		if err != nil {
			return nil, err
		}
		token = fromEnvironment
	}
	if token.Reveal() == "" {
		return nil, misconfigured("the Token is empty; make one with NewSecret")
	}
	return func(context.Context) (*Secret, error) { return token, nil }, nil
}

// inTime asks a function that may take its time, or not come back at all. Its failures are never those of a server that cannot be
// reached, which a read may run without; and never its own, whose text may hold anything.
func inTime(function func(context.Context) (*Secret, error)) func(context.Context) (*Secret, error) {
	return func(ctx context.Context) (*Secret, error) {
		answer := make(chan *Secret, 1)
		go func() {
			var given *Secret
			// Also where it panics or ends its goroutine: that is no credential.
			defer func() {
				_ = recover()
				answer <- given
			}()
			if secret, err := function(ctx); err == nil {
				given = secret
			}
		}()
		select {
		case secret := <-answer:
			if ctx.Err() == nil {
				return secret, nil
			}
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	}
}

func tokenFromEnvironment() (*Secret, error) {
	path, text := os.Getenv(tokenFileVariable), os.Getenv(tokenVariable)
	if path != "" && text != "" {
		return nil, misconfigured("set %s or %s, not both", tokenVariable, tokenFileVariable)
	}
	if path != "" {
		content, err := os.ReadFile(path)
		if err != nil || len(content) > maxTokenFile {
			return nil, misconfigured("the file that %s names cannot be read, or is too long", tokenFileVariable)
		}
		text = string(content)
	}
	if text == "" {
		return nil, misconfigured("set %s or %s", tokenVariable, tokenFileVariable)
	}
	return NewSecret(text)
}

// label is the agent as requests name it.
func (c Config) label() (map[string]any, error) {
	id := c.Agent
	if id == "" {
		id = "agent"
	}
	if err := checkName(id, "Agent"); err != nil {
		return nil, err
	}
	label := map[string]any{"id": id}
	if c.Environment != "" {
		if err := checkName(c.Environment, "Environment"); err != nil {
			return nil, err
		}
		label["environment"] = c.Environment
	}
	return label, nil
}
