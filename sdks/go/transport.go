package aegisagent

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// Moves one request and its answer, within a deadline for all of it. Bounded in size, follows no redirect, keeps no cookie, and asks the
// environment for nothing: no proxy, no .netrc, no certificates. An error of net/http holds the request and its headers, so none leaves
// this file.

const (
	connectTimeout = 5 * time.Second
	// Below the server's own 15 s, so that an idle connection is not reused in the moment in which it is closed there.
	idleTimeout    = 5 * time.Second
	maxConnections = 16
	maxHeadBytes   = 64 << 10
)

// checkedBaseURL refuses what is no address. Plain HTTP beyond this machine would show the credential to everybody between.
func checkedBaseURL(text string, allowPlainHTTP bool) (*url.URL, error) {
	parsed, err := url.Parse(text)
	if err != nil || (parsed.Scheme != "http" && parsed.Scheme != "https") || parsed.Hostname() == "" {
		return nil, misconfigured("the base URL must be http(s)://host[:port]")
	}
	isBare := parsed.User == nil && (parsed.Path == "" || parsed.Path == "/") && !strings.ContainsAny(text, "?#@")
	if !isBare {
		return nil, misconfigured("the base URL must be http(s)://host[:port], without user, path, query and fragment")
	}
	if parsed.Scheme == "http" && !allowPlainHTTP && !isLoopback(parsed.Hostname()) {
		return nil, misconfigured("plain http beyond this machine shows the credential to whoever listens: use https, or say AllowPlainHTTP")
	}
	return &url.URL{Scheme: parsed.Scheme, Host: parsed.Host}, nil
}

func isLoopback(host string) bool {
	address := net.ParseIP(host)
	return host == "localhost" || (address != nil && address.IsLoopback())
}

type transport struct {
	base   *url.URL
	tenant string
	// kept keeps connections. single does not, for what must be asked for once: on a kept connection that was closed meanwhile, net/http
	// asks again by itself for what it takes to be harmless.
	kept, single *http.Transport
	isClosed     atomic.Bool
}

func newTransport(base *url.URL, tenant, caFile string) (*transport, error) {
	made := &transport{base: base, tenant: tenant}
	var config *tls.Config
	if base.Scheme == "https" {
		roots, err := certificates(caFile)
		if err != nil {
			return nil, err
		}
		config = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	} else if caFile != "" {
		return nil, misconfigured("CAFile means nothing for plain http")
	}
	made.kept, made.single = roundTripper(config), roundTripper(config)
	made.single.DisableKeepAlives = true
	return made, nil
}

func roundTripper(config *tls.Config) *http.Transport {
	plain := &net.Dialer{}
	secure := &tls.Dialer{NetDialer: plain, Config: config}
	within := func(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			limited, cancel := context.WithTimeout(ctx, connectTimeout)
			defer cancel()
			return dial(limited, network, address)
		}
	}
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            within(plain.DialContext),
		DialTLSContext:         within(secure.DialContext),
		DisableCompression:     true,
		MaxConnsPerHost:        maxConnections,
		MaxIdleConns:           maxConnections,
		MaxIdleConnsPerHost:    maxConnections,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeadBytes,
		// HTTP/1.1 alone: GODEBUG=http2debug=2 has net/http log every header, the credential among them.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

func (t *transport) close() {
	t.isClosed.Store(true)
	t.kept.CloseIdleConnections()
	t.single.CloseIdleConnections()
}

// send makes one attempt; Unreachable or BadReply where it gets no whole answer. What is written to out is the body of a 200.
func (t *transport) send(
	ctx context.Context, method, path string, body []byte, secret *Secret, deadline time.Time, out io.Writer,
) (reply, error) {
	if err := ctx.Err(); err != nil {
		return reply{}, unreachable(err)
	}
	if t.isClosed.Load() {
		return reply{}, unreachable(nil)
	}
	// Not the caller's context: a trace in it would be shown the headers.
	own, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	var isConnected atomic.Bool
	own = httptrace.WithClientTrace(own, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { isConnected.Store(true) }})
	asked, err := t.request(own, method, path, body, secret)
	if err != nil {
		return reply{}, err
	}
	chosen := t.kept
	if out != nil {
		chosen = t.single
	}
	// RoundTrip, not a Client: that one follows redirects and keeps cookies.
	response, err := chosen.RoundTrip(asked)
	if err != nil {
		if !isConnected.Load() {
			return reply{}, unreachable(ctx.Err())
		}
		return reply{}, noAnswer(ctx.Err())
	}
	defer func() { _ = response.Body.Close() }()
	return receive(ctx, response, out)
}

func (t *transport) request(ctx context.Context, method, path string, body []byte, secret *Secret) (*http.Request, error) {
	var content io.Reader
	if body != nil {
		content = bytes.NewReader(body)
	}
	asked, err := http.NewRequestWithContext(ctx, method, t.base.String()+path, content)
	if err != nil {
		return nil, misconfigured("the request cannot be made")
	}
	asked.Header.Set("Authorization", "Bearer "+secret.Reveal())
	asked.Header.Set("Accept", "application/json")
	asked.Header.Set("Accept-Encoding", "identity")
	asked.Header.Set("User-Agent", "aegisagent-go/"+Version)
	if body != nil {
		asked.Header.Set("Content-Type", "application/json")
	}
	if t.tenant != "" {
		asked.Header.Set("X-Aegis-Tenant-ID", t.tenant)
	}
	return asked, nil
}

func receive(ctx context.Context, response *http.Response, out io.Writer) (reply, error) {
	for _, encoding := range response.Header.Values("Content-Encoding") {
		if !strings.EqualFold(encoding, "identity") {
			return reply{}, badReply("an encoded answer, although none was asked for")
		}
	}
	answer := reply{status: response.StatusCode, retryAfter: response.Header.Get("Retry-After")}
	if out != nil && response.StatusCode == http.StatusOK {
		target := &written{out: out}
		if _, err := io.Copy(target, response.Body); err != nil {
			if target.failure != nil {
				// The file's failure, not the server's.
				return reply{}, target.failure
			}
			return reply{}, noAnswer(ctx.Err())
		}
		return answer, nil
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxReplyBytes+1))
	if err != nil {
		return reply{}, noAnswer(ctx.Err())
	}
	if len(body) > maxReplyBytes {
		return reply{}, badReply("an answer of more than %d bytes", maxReplyBytes)
	}
	answer.body = body
	return answer, nil
}

// written remembers the failure of a writer, to tell it from the server's.
type written struct {
	out     io.Writer
	failure error
}

func (w *written) Write(part []byte) (int, error) {
	count, err := w.out.Write(part)
	if err == nil && count < len(part) {
		err = io.ErrShortWrite
	}
	if err != nil {
		w.failure = err
	}
	return count, err
}
