package aegisagent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"
)

// Client is the API. One credential: an agent's token to act, or an API key to administer. Safe to share between goroutines; one for the
// whole program, for it keeps connections. Names and fields are those of docs/openapi.yaml; every method may give a [*RequestFailed].
//
// Every call ends within the timeout, its repetitions included. Nothing is repeated that could take effect twice.
type Client struct {
	_         noCopy
	transport *transport
	secret    func(context.Context) (*Secret, error)
	agent     map[string]any
	timeout   time.Duration
	pace      pace
	tokens    runTokens
	// The agent was contained when it was last heard of.
	isContained atomic.Bool
}

// New makes a client; a [*ConfigError] where that would not be safe.
func New(config Config) (*Client, error) {
	timeout, err := config.timeout()
	if err != nil {
		return nil, err
	}
	base, err := checkedBaseURL(config.baseURL(), config.AllowPlainHTTP)
	if err != nil {
		return nil, err
	}
	secret, err := config.credential()
	if err != nil {
		return nil, err
	}
	label, err := config.label()
	if err != nil {
		return nil, err
	}
	if config.Tenant != "" && !tenantForm.MatchString(config.Tenant) {
		return nil, misconfigured("a tenant has 1 to 64 characters of a-z, 0-9, _ and -")
	}
	made, err := newTransport(base, config.Tenant, config.CAFile)
	if err != nil {
		return nil, err
	}
	return &Client{transport: made, secret: secret, agent: label, timeout: timeout, pace: usualPace}, nil
}

// MustNew is [New] for a program that cannot go on without a client.
func MustNew(config Config) *Client {
	client, err := New(config)
	if err != nil {
		panic(err)
	}
	return client
}

// BaseURL says where it calls.
func (c *Client) BaseURL() string { return c.transport.base.String() }

// Close closes the connections. Calls after it are Unreachable.
func (c *Client) Close() { c.transport.close() }

// String shows where it calls, and nothing else.
func (c *Client) String() string { return fmt.Sprintf("Client(%q)", c.BaseURL()) }

// Format is String, whatever the verb.
func (c *Client) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, c.String()) }

// LogValue is String.
func (c *Client) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText refuses, and so do JSON and XML.
func (*Client) MarshalText() ([]byte, error) { return nil, notSerialised("a client") }

// GobEncode refuses.
func (*Client) GobEncode() ([]byte, error) { return nil, notSerialised("a client") }

// credential asks for the credential of the next request.
func (c *Client) credential(ctx context.Context) (*Secret, error) {
	secret, err := c.secret(ctx)
	if err != nil {
		return nil, misconfigured("TokenFunc gave no credential in time")
	}
	if secret.Reveal() == "" {
		return nil, misconfigured("TokenFunc gave no credential")
	}
	return secret, nil
}

// JSON is an object as it is.
type JSON = map[string]any

// Page is a part of a list: at most Limit entries (50 where it is 0) after the first Offset.
type Page struct {
	Limit  int
	Offset int
}

func (p Page) query() url.Values {
	limit := p.Limit
	if limit == 0 {
		limit = 50
	}
	return url.Values{"limit": {strconv.Itoa(limit)}, "offset": {strconv.Itoa(p.Offset)}}
}

func call[T any](ctx context.Context, client *Client, asked request[T]) (T, error) {
	return exchange(ctx, client, asked, client.timeout)
}

func get[T any](ctx context.Context, client *Client, read func(any) (T, error), query url.Values, parts ...string) (T, error) {
	path, err := pathOf(parts...)
	if err != nil {
		var none T
		return none, err
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return call(ctx, client, request[T]{method: http.MethodGet, path: path, read: read})
}

func post[T any](ctx context.Context, client *Client, asked request[T], body JSON, parts ...string) (T, error) {
	var none T
	path, err := pathOf(parts...)
	if err != nil {
		return none, err
	}
	asked.method, asked.path = http.MethodPost, path
	if asked.body, err = jsonBody(body); err != nil {
		return none, err
	}
	return call(ctx, client, asked)
}
