package aegisagent_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
)

// The real program under test. AEGIS_BIN names it; without it these tests are skipped, and prove nothing.

const longEnough = 60 * time.Second

type program struct {
	t      testing.TB
	role   string
	data   string
	url    string
	listen string
	// Variables of the program's own.
	environment []string
	process     *exec.Cmd
	log         *bytes.Buffer
}

// The program's own variables would change what is tested.
func cleanEnvironment(more ...string) []string {
	clean := more
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "AEGIS") {
			clean = append(clean, variable)
		}
	}
	return clean
}

func startProgram(t testing.TB, environment ...string) *program {
	t.Helper()
	made := newProgram(t, "up", environment...)
	made.start()
	return made
}

// newProgram is one that is not started yet. role is the command that it runs: up, control or edge.
func newProgram(t testing.TB, role string, environment ...string) *program {
	t.Helper()
	if os.Getenv("AEGIS_BIN") == "" {
		t.Skip("AEGIS_BIN names no program")
	}
	folder, err := os.MkdirTemp("", "aegis-sdk-go-")
	must(t, err)
	return &program{t: t, role: role, data: filepath.Join(folder, "data"), listen: "127.0.0.1:0", environment: environment}
}

func (p *program) close() {
	if p.process != nil {
		_ = p.process.Process.Kill()
		_ = p.process.Wait()
	}
	_ = os.RemoveAll(filepath.Dir(p.data))
}

func (p *program) start() {
	p.t.Helper()
	p.log = &bytes.Buffer{}
	p.process = exec.Command(os.Getenv("AEGIS_BIN"), p.role, "--data", p.data, "--listen", p.listen)
	p.process.Env, p.process.Stderr = cleanEnvironment(p.environment...), p.log
	out, err := p.process.StdoutPipe()
	must(p.t, err)
	must(p.t, p.process.Start())
	listening := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if _, address, found := strings.Cut(lines.Text(), "listening on "); found {
				listening <- strings.TrimSpace(address)
			}
		}
	}()
	select {
	case p.url = <-listening:
	case <-time.After(longEnough):
		p.t.Fatal("the program does not start: " + p.log.String())
	}
	p.listen = strings.TrimPrefix(p.url, "http://")
	within(p.t, longEnough, "the program is ready", func() bool {
		answer, err := http.Get(p.url + "/readyz")
		if err != nil {
			return false
		}
		_ = answer.Body.Close()
		return answer.StatusCode == 200
	})
}

func (p *program) kill() {
	_ = p.process.Process.Kill()
	_ = p.process.Wait()
	p.process = nil
}

func (p *program) stop() {
	must(p.t, p.process.Process.Signal(os.Interrupt))
	_ = p.process.Wait()
	p.process = nil
}

// command runs a command of the program, and gives what it printed.
func (p *program) command(arguments ...string) string {
	p.t.Helper()
	return p.commandWith("", arguments...)
}

// commandWith is the same with something to read.
func (p *program) commandWith(input string, arguments ...string) string {
	p.t.Helper()
	ran := exec.Command(os.Getenv("AEGIS_BIN"), arguments...)
	ran.Env, ran.Stdin = cleanEnvironment(p.environment...), strings.NewReader(input)
	out, err := ran.Output()
	if err != nil {
		p.t.Fatalf("%v: %v: %s", arguments, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (p *program) roots() []string {
	return []string{filepath.Join(p.data, "keys", "control.pub"), filepath.Join(p.data, "keys", "edge.pub")}
}

// world is a tenant with its people, and an agent.
type world struct {
	*program
	t                          testing.TB
	name, adminKey             string
	admin, approver, agentsOwn *aegisagent.Client
	agent                      aegisagent.Registration
	others                     sync.WaitGroup
	registrar                  string
}

var tenants atomic.Int64

func newWorld(t testing.TB, on *program) *world {
	t.Helper()
	on.t = t
	made := &world{program: on, t: t, name: fmt.Sprintf("tenant-%d", tenants.Add(1))}
	var key struct{ Key string }
	printed := on.command("keys", "create", "--tenant", made.name, "--role", "admin", "--name", "ada", "--data", on.data, "--json")
	must(t, json.Unmarshal([]byte(printed), &key))
	made.adminKey, made.admin = key.Key, made.client(key.Key)
	made.registrar = made.key("registrar", "reggie")
	made.approver = made.client(made.key("approver", "rita", "security"))
	registrar := made.client(made.registrar)
	_, err := registrar.PutTool(context.Background(), crm())
	must(t, err)
	made.agent, err = registrar.Register(context.Background(), aegisagent.AgentRegistration{
		AgentKey: "bot", Name: "Bot", Environment: "production", RiskTier: "low",
	})
	must(t, err)
	made.agentsOwn = made.client(made.agent.AgentToken.Reveal())
	made.settings("automatic_freezes_per_hour", 0)
	t.Cleanup(made.others.Wait)
	return made
}

func crm() aegisagent.JSON {
	action := func(name, risk string, mutates, needsApproval bool) any {
		return aegisagent.JSON{
			"action": name, "risk": risk, "mutates_state": mutates, "approval_required": needsApproval, "default_decision": "policy",
			"parameters": aegisagent.JSON{"type": "object", "properties": aegisagent.JSON{}},
		}
	}
	return aegisagent.JSON{"tool": "crm", "name": "CRM", "default_risk": "medium", "actions": []any{
		action("read_customer", "low", false, false), action("update_customer", "medium", true, false), action("refund", "medium", true, true),
	}}
}

func (w *world) client(key string) *aegisagent.Client {
	return clientOf(w.t, aegisagent.Config{BaseURL: w.url, Token: secretOf(w.t, key)})
}

// call is one of the API that the client has no method for.
func (w *world) call(method, path string, body any, expect int) []byte {
	w.t.Helper()
	text, err := json.Marshal(body)
	must(w.t, err)
	asked, err := http.NewRequest(method, w.url+path, bytes.NewReader(text))
	must(w.t, err)
	asked.Header.Set("Authorization", "Bearer "+w.adminKey)
	asked.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(asked)
	must(w.t, err)
	defer func() { _ = answer.Body.Close() }()
	said, err := io.ReadAll(answer.Body)
	must(w.t, err)
	if answer.StatusCode != expect {
		w.t.Fatalf("%s %s: %d: %s", method, path, answer.StatusCode, said)
	}
	return said
}

func (w *world) key(role, name string, groups ...string) string {
	w.t.Helper()
	if groups == nil {
		groups = []string{}
	}
	var made struct{ Key string }
	must(w.t, json.Unmarshal(w.call("POST", "/v1/keys", map[string]any{"role": role, "name": name, "groups": groups}, 201), &made))
	return made.Key
}

func (w *world) settings(name string, value any) {
	w.t.Helper()
	var current map[string]any
	must(w.t, json.Unmarshal(w.call("GET", "/v1/settings", nil, 200), &current))
	current[name] = value
	w.call("PUT", "/v1/settings", current, 200)
}

func (w *world) events() []map[string]any {
	w.t.Helper()
	var found []map[string]any
	must(w.t, json.Unmarshal(w.call("GET", "/v1/audit/events?limit=500", nil, 200), &found))
	return found
}

func (w *world) outcomes() []string {
	found := []string{}
	for _, event := range w.events() {
		if event["kind"] == "tool_outcome" {
			found = append(found, event["status"].(string))
		}
	}
	return found
}

func (w *world) hasOutcomes(expected ...string) {
	w.t.Helper()
	within(w.t, longEnough, fmt.Sprintf("the outcomes are %v", expected), func() bool {
		return fmt.Sprint(w.outcomes()) == fmt.Sprint(expected)
	})
}

func (w *world) hasKind(kind string) bool { return w.kinds()[kind] > 0 }

// kinds counts the events of each kind.
func (w *world) kinds() map[string]int {
	w.t.Helper()
	found := map[string]int{}
	for _, event := range w.events() {
		found[event["kind"].(string)]++
	}
	return found
}

// has says whether control has the approval.
func (w *world) has(id string) bool { return w.statusOf(id) != "" }

// statusOf gives the approval's status; "" where control does not have it yet.
func (w *world) statusOf(id string) string {
	approval, err := w.approver.Approval(context.Background(), id)
	var failure *aegisagent.RequestFailed
	if err != nil && (!errors.As(err, &failure) || failure.Code != "approval_not_found") {
		w.t.Error(err)
	}
	return approval.Status
}

// whenAsked has act done by somebody else, once control has the approval.
func (w *world) whenAsked(act func(id string)) func(context.Context, aegisagent.ApprovalRef) {
	return func(_ context.Context, pending aegisagent.ApprovalRef) {
		w.others.Add(1)
		go func() {
			defer w.others.Done()
			for end := time.Now().Add(longEnough); !w.has(pending.ApprovalID) && time.Now().Before(end); {
				time.Sleep(20 * time.Millisecond)
			}
			act(pending.ApprovalID)
		}()
	}
}

func (w *world) approve(id string) {
	if _, err := w.approver.Approve(context.Background(), id, "", ""); err != nil {
		w.t.Error(err)
	}
}

// trusted is work of a good label, in a run of its own.
func trusted(t testing.TB) context.Context {
	t.Helper()
	ctx, err := aegisagent.WithRun(aegisagent.WithSourceTrust(context.Background(), aegisagent.TrustedInternalUnsigned), randomID())
	must(t, err)
	return ctx
}

// between stands between the agent and the program: before is done with each request that it lets through.
func (w *world) between(before func(*http.Request)) *aegisagent.Client {
	w.t.Helper()
	url := w.proxied(func(proxy *httputil.ReverseProxy) {
		director := proxy.Director
		proxy.Director = func(r *http.Request) {
			director(r)
			before(r)
		}
	})
	return clientOf(w.t, aegisagent.Config{BaseURL: url, Token: w.agent.AgentToken})
}

// betweenAnswers is the same for answers.
func (w *world) betweenAnswers(change func(*http.Response) error) *aegisagent.Client {
	w.t.Helper()
	return clientOf(w.t, aegisagent.Config{BaseURL: w.proxyOf(change), Token: w.agent.AgentToken})
}

// proxyOf gives the address of a proxy that changes answers.
func (w *world) proxyOf(change func(*http.Response) error) string {
	w.t.Helper()
	return w.proxied(func(proxy *httputil.ReverseProxy) {
		proxy.ModifyResponse = change
		proxy.ErrorHandler = func(answer http.ResponseWriter, _ *http.Request, _ error) { answer.WriteHeader(http.StatusBadGateway) }
	})
}

func (w *world) proxied(how func(*httputil.ReverseProxy)) string {
	w.t.Helper()
	target, err := url.Parse(w.url)
	must(w.t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	how(proxy)
	server := httptest.NewServer(proxy)
	w.t.Cleanup(server.Close)
	return server.URL
}
