package aegisagent_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

const childVariable = "AEGISAGENT_TEST_CHILD"

// net/http reads the environment once in a process, so the test runs itself in another one, whose environment names proxies.
func TestTheEnvironmentIsAskedForNothing(t *testing.T) {
	proof.Of(t, "transport")
	edge, ran := newFakeEdge(t), &recorder{}
	_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{})
	must(t, err)
	headers := edge.seen()[0].headers
	equal(t, headers.Get("Authorization"), "Bearer "+token)
	equal(t, headers.Values("Accept-Encoding"), []string{"identity"})
	equal(t, headers.Get("User-Agent"), "aegisagent-go/"+aegisagent.Version)
	// Go's proxies of the environment leave out this machine, so a name that only a proxy would know is asked for.
	named := clientOf(t, aegisagent.Config{BaseURL: "http://edge.invalid", AllowPlainHTTP: true, Timeout: 5 * time.Second})
	_, err = named.Ready(context.Background())
	equal(t, errors.Is(err, aegisagent.Unreachable), true)
	if os.Getenv(childVariable) != "" {
		return
	}
	proxy := newFakeEdge(t)
	child := exec.Command(os.Args[0], "-test.run=^TestTheEnvironmentIsAskedForNothing$")
	child.Env = cleanEnvironment(childVariable+"=1", "NO_PROXY=", "no_proxy=")
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		child.Env = append(child.Env, name+"="+proxy.URL)
	}
	if said, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	equal(t, len(proxy.seen()), 0)
}

func secureEdge(t *testing.T) (*httptest.Server, string, *[]string) {
	t.Helper()
	protocols := &[]string{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*protocols = append(*protocols, r.Proto)
		_, _ = w.Write([]byte(`{"ready":true}`))
	}))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = nil
	server.StartTLS()
	t.Cleanup(server.Close)
	file := t.TempDir() + "/ca.pem"
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	return server, file, protocols
}

func TestCertificatesAreTheSystemsOrThoseOfCAFileAndNotTheEnvironments(t *testing.T) {
	proof.Of(t, "transport")
	server, file, protocols := secureEdge(t)
	t.Setenv("SSL_CERT_FILE", file)
	t.Setenv("SSL_CERT_DIR", strings.TrimSuffix(file, "/ca.pem"))
	trusting := clientOf(t, aegisagent.Config{BaseURL: server.URL, CAFile: file})
	_, err := trusting.Ready(context.Background())
	must(t, err)
	// HTTP/2 would log the credential where GODEBUG asks for it.
	equal(t, *protocols, []string{"HTTP/1.1"})
	doubting := clientOf(t, aegisagent.Config{BaseURL: server.URL})
	_, err = doubting.Ready(context.Background())
	var failure *aegisagent.RequestFailed
	if !errors.As(err, &failure) || failure.Code != "unreachable" || failure.Sent {
		t.Fatal(err)
	}
	wrongName := clientOf(t, aegisagent.Config{BaseURL: strings.Replace(server.URL, "127.0.0.1", "localhost", 1), CAFile: file})
	_, err = wrongName.Ready(context.Background())
	equal(t, errors.Is(err, aegisagent.Unreachable), true)
	equal(t, len(*protocols), 1)
}

func TestARedirectIsNotFollowedAndCarriesTheTokenNowhere(t *testing.T) {
	proof.Of(t, "transport")
	for _, status := range []int{301, 302, 303, 307, 308} {
		edge, other := newFakeEdge(t), newFakeEdge(t)
		edge.always("authorize", answer{status: status, body: map[string]any{}, headers: map[string]string{"Location": other.URL + "/v1/authorize"}})
		denied := deniedAs(t, attack(t, edge, 10*time.Second), aegisagent.DeniedUnverified, "bad_reply")
		equal(t, strings.Contains(denied.Reason, "redirect"), true)
		equal(t, len(other.seen())+len(edge.seen()), 1)
	}
}

func TestACookieIsNotKeptAndConnectionsAre(t *testing.T) {
	proof.Of(t, "transport")
	edge, ran := newFakeEdge(t), &recorder{}
	edge.replace["authorize"] = func(honest answer) answer {
		honest.headers = map[string]string{"Set-Cookie": "id=1; Path=/"}
		return honest
	}
	protected := protect(t, clientTo(t, edge.URL), usual, ran.run)
	remotes := map[string]bool{}
	for range 5 {
		_, err := protected(context.Background(), note{})
		must(t, err)
	}
	for _, one := range edge.seen() {
		equal(t, one.headers.Get("Cookie"), "")
		remotes[one.remote] = true
	}
	equal(t, len(remotes), 1)
}

func TestNoMoreThan16ConnectionsAreOpenAtOnce(t *testing.T) {
	proof.Of(t, "transport")
	edge := newFakeEdge(t)
	var mutex sync.Mutex
	open, most := 0, 0
	edge.before["other"] = func() {
		mutex.Lock()
		open++
		most = max(most, open)
		mutex.Unlock()
		time.Sleep(20 * time.Millisecond)
		mutex.Lock()
		open--
		mutex.Unlock()
	}
	client := clientTo(t, edge.URL)
	var all sync.WaitGroup
	for range 64 {
		all.Add(1)
		go func() {
			defer all.Done()
			if _, err := client.Receipt(context.Background(), "a"); err != nil {
				t.Error(err)
			}
		}()
	}
	all.Wait()
	if most > 16 {
		t.Fatal(most)
	}
}

func TestABaseURLThatShowsTheTokenToOthersIsRefused(t *testing.T) {
	proof.Of(t, "transport")
	for _, bad := range []string{
		"edge", "ftp://edge", "http://edge.example", "http://10.0.0.1:8484", "http://127.0.0.1.example", "http://u:p@127.0.0.1", "http://@127.0.0.1",
		"https://edge/?a=1", "https://edge/?", "https://edge/#a", "https://edge/#", "https://edge/path", "http://[::2]:1", "http://localhost.example",
		"http://localhost@evil.example", "https://", "https://:8484", "http:127.0.0.1", "//127.0.0.1", "http://127.0.0.1\n", "https://edge:port", "https://edge\\@evil",
	} {
		if _, err := aegisagent.New(aegisagent.Config{BaseURL: bad, Token: mustSecret}); !isConfigError(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, good := range []string{"http://127.0.0.1:8484", "http://localhost:1/", "http://[::1]:1", "https://edge.example", "https://10.0.0.1:1", "HTTP://127.0.0.2"} {
		client, err := aegisagent.New(aegisagent.Config{BaseURL: good, Token: mustSecret})
		must(t, err)
		equal(t, client.BaseURL(), strings.ToLower(strings.TrimSuffix(good, "/")))
	}
	_, err := aegisagent.New(aegisagent.Config{BaseURL: "http://edge.example:8484", Token: mustSecret, AllowPlainHTTP: true})
	must(t, err)
}

func TestAnIDLeadsNowhereElse(t *testing.T) {
	proof.Of(t, "transport")
	edge := newFakeEdge(t)
	client := clientTo(t, edge.URL)
	for _, bad := range []string{"", ".", ".."} {
		_, err := client.Receipt(context.Background(), bad)
		equal(t, isConfigError(err), true)
	}
	equal(t, len(edge.seen()), 0)
	_, err := client.Receipt(context.Background(), "../agents/a?b=c#d é%2e")
	must(t, err)
	equal(t, edge.seen()[0].path, "/v1/receipts/..%2Fagents%2Fa%3Fb=c%23d%20%C3%A9%252e")
}

func TestATokenThatChangesIsAskedForEachTime(t *testing.T) {
	proof.Of(t, "transport")
	edge, count := newFakeEdge(t), 0
	client := clientOf(t, aegisagent.Config{BaseURL: edge.URL, TokenFunc: func(ctx context.Context) (*aegisagent.Secret, error) {
		count++
		return aegisagent.NewSecret(strings.Repeat("a", 32+count))
	}})
	edge.always("other", answer{status: 503, body: refusal("busy")})
	_, err := client.Receipt(context.Background(), "a")
	refused(t, err, 503, "busy")
	for place, one := range edge.seen() {
		equal(t, one.headers.Get("Authorization"), "Bearer "+strings.Repeat("a", 33+place))
	}
	equal(t, count, 3)
}

type full struct{}

var errFull = errors.New("no space left")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestAnExportThatBreaksOffIsAnErrorAndIsAskedForOnce(t *testing.T) {
	proof.Of(t, "transport", "retries")
	edge := newFakeEdge(t)
	client, ctx, out := clientTo(t, edge.URL), context.Background(), &bytes.Buffer{}
	// A connection that could be kept, and be closed when the next export is asked for.
	must(t, client.ExportReceipts(ctx, io.Discard))
	for _, half := range []answer{raw(0, ""), raw(0, head+"Transfer-Encoding: chunked\r\n\r\n", "3\r\n{}\n\r\n"), serverErrors[503], serverErrors[429]} {
		edge.forget()
		edge.always("other", half)
		var failure *aegisagent.RequestFailed
		if err := client.ExportReceipts(ctx, out); !errors.As(err, &failure) {
			t.Fatal(err)
		}
		equal(t, len(edge.seen()), 1)
	}
	equal(t, out.String(), "{}\n")
	out.Reset()
	edge.always("other", answer{status: 403, body: refusal("wrong_role")})
	refused(t, client.ExportReceipts(ctx, out), 403, "wrong_role")
	equal(t, out.Len(), 0)
	edge.always("other", answer{status: 200, body: []byte("{}\n")})
	must(t, client.ExportReceipts(ctx, out))
	equal(t, out.String(), "{}\n")
	if err := client.ExportReceipts(ctx, full{}); err != errFull {
		t.Fatal(err)
	}
	equal(t, isConfigError(client.ExportReceipts(ctx, nil)), true)
	cancelled, cancel := context.WithCancel(ctx)
	edge.before["other"] = func() { cancel(); <-edge.ended }
	equal(t, errors.Is(client.ExportReceipts(cancelled, out), context.Canceled), true)
}

func TestAConnectionThatIsClosedEachTimeIsAskedOnlySoOften(t *testing.T) {
	proof.Of(t, "retries")
	// The server answers once on each connection, and closes the second request's unread: whether it was read cannot be known.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = listener.Close() }()
	var mutex sync.Mutex
	consumes := 0
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				buffer := make([]byte, 1<<16)
				for served := 0; ; served++ {
					count, err := connection.Read(buffer)
					if err != nil {
						return
					}
					if strings.Contains(string(buffer[:count]), "/consume") {
						mutex.Lock()
						consumes++
						mutex.Unlock()
						_ = connection.Close()
						return
					}
					_, _ = connection.Write([]byte(head + "Content-Length: 2\r\n\r\n{}"))
				}
			}()
		}
	}()
	client := clientTo(t, "http://"+listener.Addr().String())
	_, err = client.Receipt(context.Background(), "a")
	must(t, err)
	_, err = client.Consume(context.Background(), "a", aHash)
	equal(t, errors.Is(err, aegisagent.Unreachable), true)
	mutex.Lock()
	defer mutex.Unlock()
	equal(t, consumes, 3)
}

func TestAClosedClientIsADenial(t *testing.T) {
	proof.Of(t, "transport", "fail-open")
	edge, ran := newFakeEdge(t), &recorder{}
	client := clientTo(t, edge.URL)
	for _, settings := range []aegisagent.Settings{usual, failsOpen()} {
		protected := protect(t, client, settings, ran.run)
		client.Close()
		_, err := protected(context.Background(), note{})
		deniedAs(t, err, aegisagent.DeniedUnavailable, "unreachable")
	}
	equal(t, len(ran.ran())+len(edge.seen()), 0)
}
