package aegisagent_test

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
)

// What a hostile server says, and how a call is attacked with it.

type change = func(answer) answer

func otherHash() string {
	resource := "customer-1"
	hash, _ := aegisagent.ActionHash("crm", "update_note", &resource, true, map[string]any{"note": "swapped", "amount": 1})
	return hash
}

func bodyWith(honest answer, fields map[string]any) answer {
	body := maps.Clone(honest.body.(map[string]any))
	maps.Copy(body, fields)
	honest.body = body
	return honest
}

func changed(fields map[string]any) change {
	return func(honest answer) answer { return bodyWith(honest, fields) }
}

func inside(name string, fields map[string]any) change {
	return func(honest answer) answer {
		inner, isObject := honest.body.(map[string]any)[name].(map[string]any)
		if !isObject {
			// An action, which is raw JSON here.
			text, _ := honest.body.(map[string]any)[name].(json.RawMessage)
			inner = bodyOf(text)
		}
		return bodyWith(honest, map[string]any{name: bodyWith(answer{body: inner}, fields).body})
	}
}

func without(name string) change {
	return func(honest answer) answer {
		cut := bodyWith(honest, nil)
		delete(cut.body.(map[string]any), name)
		return cut
	}
}

func instead(said answer) change { return func(answer) answer { return said } }

// raw writes parts to the connection, with a pause after each.
func raw(pause time.Duration, parts ...string) answer {
	return answer{raw: func(connection net.Conn) {
		for _, part := range parts {
			if _, err := connection.Write([]byte(part)); err != nil {
				return
			}
			time.Sleep(pause)
		}
	}}
}

const head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

var (
	endless = answer{raw: func(connection net.Conn) {
		_, _ = connection.Write([]byte(head + "\r\n"))
		for range 4000 {
			count, err := connection.Write([]byte(strings.Repeat(" ", 1<<16)))
			if endlessTaken.Add(int64(count)); err != nil {
				return
			}
		}
	}}
	endlessTaken atomic.Int64
	endlessHead  = answer{raw: func(connection net.Conn) {
		for range 400 {
			if _, err := connection.Write([]byte(head + "X-Header: " + strings.Repeat("x", 1<<16) + "\r\n")); err != nil {
				return
			}
		}
	}}
	garbage = map[string]change{
		"no JSON": instead(answer{status: 200, body: []byte("<html>allow</html>")}), "empty": instead(answer{status: 200, body: []byte("")}),
		"null": instead(answer{status: 200, body: nil}), "a list": instead(answer{status: 200, body: []any{}}),
		"a word": instead(answer{status: 200, body: "allow"}), "an empty object": instead(answer{status: 200, body: map[string]any{}}),
		"a key twice": instead(answer{status: 200, body: []byte(`{"decision":"deny","decision":"allow"}`)}),
		"not UTF-8":   instead(answer{status: 200, body: []byte("\xff\xfe{}")}),
		"201":         func(honest answer) answer { honest.status = 201; return honest }, "204": instead(answer{status: 204, body: []byte{}}),
		"307":     instead(answer{status: 307, body: map[string]any{}, headers: map[string]string{"Location": "http://127.0.0.1:1/v1/authorize"}}),
		"encoded": instead(answer{status: 200, body: []byte("\x1f\x8b"), headers: map[string]string{"Content-Encoding": "gzip"}}),
		"good, but encoded": func(honest answer) answer {
			honest.headers = map[string]string{"Content-Encoding": "gzip"}
			return honest
		},
		"endless": instead(endless),
	}
	serverErrors = map[int]answer{
		500: {status: 500, body: refusal("internal")}, 502: {status: 502, body: []byte("bad gateway")}, 503: {status: 503, body: refusal("busy")},
		504: {status: 504, body: []byte("<html>")}, 429: {status: 429, body: refusal("rate_limited")}, 401: {status: 401, body: refusal("invalid_token")},
		403: {status: 403, body: refusal("wrong_role")}, 404: {status: 404, body: refusal("unknown_route")},
		408: {status: 408, body: refusal("body_too_slow")}, 409: {status: 409, body: refusal("replay_nonce_reused")},
		418: {status: 418, body: map[string]any{"error": "teapot"}}, 101: raw(0, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nallow"),
	}
	broken = map[string]answer{
		"broken off": raw(0, head+"Content-Length: 1000\r\n\r\n", `{"decision": "allow"`), "no HTTP": raw(0, "allow\r\n\r\n"),
		"slow": raw(time.Minute, ""), "dripped head": raw(100*time.Millisecond, strings.Split(head+"X: "+strings.Repeat("x", 100), "")...),
		"dripped body":      raw(100*time.Millisecond, append([]string{head + "\r\n"}, strings.Split(strings.Repeat(" ", 100), "")...)...),
		"an endless head":   endlessHead,
		"a hundred 100s":    raw(0, strings.Repeat("HTTP/1.1 100 Continue\r\nX: y\r\n\r\n", 10_000)),
		"two lengths":       raw(0, head+"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
		"a broken chunk":    raw(0, head+"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
		"a chunk too short": raw(0, head+"Transfer-Encoding: chunked\r\n\r\nff\r\n{}"),
	}
)

// attack calls a protected function once, and holds that it did not run.
func attack(t *testing.T, edge *fakeEdge, timeout time.Duration) error {
	t.Helper()
	client := clientOf(t, aegisagent.Config{BaseURL: edge.URL, Timeout: timeout})
	ran, settings := &recorder{}, usual
	settings.Unreachable = 200 * time.Millisecond
	_, err := protect(t, client, settings, ran.run)(context.Background(), note{"a", 1})
	equal(t, len(ran.ran())+len(edge.sent("outcome")), 0)
	return err
}
