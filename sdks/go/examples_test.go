package aegisagent_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// The README as a reader copies it, and the examples, against the real program.

var block = regexp.MustCompile("(?ms)^(?:<!-- example: (\\w+) -->\n)?```(\\w+)\n(.*?)^```$")

// build makes a program of a block, in a module of its own, as a reader has it.
func build(t *testing.T, code string) string {
	t.Helper()
	folder := t.TempDir()
	module, err := filepath.Abs(".")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(folder, "main.go"), []byte(code), 0o600))
	must(t, os.WriteFile(filepath.Join(folder, "go.mod"), []byte("module reader\n\ngo 1.22\n\nrequire github.com/aegisagent/aegisagent-go v0.0.0\n\n"+
		"replace github.com/aegisagent/aegisagent-go => "+module+"\n"), 0o600))
	return goBuild(t, folder, ".")
}

func goBuild(t *testing.T, folder, what string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	building := exec.Command("go", "build", "-o", program, what)
	building.Dir = folder
	if said, err := building.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	return program
}

func run(t *testing.T, program, folder string, environment []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*longEnough)
	defer cancel()
	running := exec.CommandContext(ctx, program)
	running.Dir, running.Env = folder, environment
	said, err := running.CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, said)
	}
	return string(said)
}

func TestTheReadmeLeadsFromNothingToAFirstDeniedAndAFirstApprovedCall(t *testing.T) {
	proof.Of(t, "readme")
	on := startProgram(t)
	defer on.close()
	text, err := os.ReadFile("README.md")
	must(t, err)
	code, keys := map[string]string{}, ""
	for _, found := range block.FindAllStringSubmatch(string(text), -1) {
		if found[1] != "" {
			code[found[1]] = found[3]
		}
		if found[2] == "sh" && strings.Contains(found[3], "aegis up") {
			keys = found[3]
		}
	}
	_, call, _ := strings.Cut(code["call"], "type Refund")
	if lines := strings.Count(strings.ReplaceAll(call, "\n\n", "\n"), "\n"); lines >= 10 || lines < 5 {
		t.Fatalf("the first protected call has %d lines", lines)
	}
	folder := t.TempDir()
	environment := cleanEnvironment("AEGISAGENT_URL="+on.url, "AEGISAGENT_TOKEN_FILE=./agent.token")
	approverKey := ""
	for _, made := range regexp.MustCompile(`export (\w+)=\$\(aegis (.*)\)`).FindAllStringSubmatch(keys, -1) {
		value := on.command(strings.Fields(strings.ReplaceAll(made[2], "./aegis-data", on.data))...)
		environment = append(environment, made[1]+"="+value)
		approverKey = value
	}
	run(t, build(t, code["register"]), folder, environment)
	if said := run(t, build(t, code["call"]), folder, environment); !strings.HasPrefix(said, "denied (policy_denied): ") {
		t.Fatal(said)
	}
	about, err := os.Stat(filepath.Join(folder, "agent.token"))
	must(t, err)
	equal(t, about.Mode().Perm(), os.FileMode(0o600))
	approver := clientOf(t, aegisagent.Config{BaseURL: on.url, Token: secretOf(t, approverKey)})
	approve, asking := build(t, code["approve"]), build(t, strings.TrimSuffix(code["call"], "}\n")+code["ask"]+"}\n")
	approved := make(chan string, 1)
	go func() {
		for end := time.Now().Add(longEnough); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if pending, err := approver.Approvals(context.Background(), "PENDING", aegisagent.Page{}); err == nil && len(pending) > 0 {
				break
			}
		}
		approved <- run(t, approve, folder, environment)
	}()
	lines := strings.Split(strings.TrimSpace(run(t, asking, folder, environment)), "\n")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "denied (policy_denied): an untrusted source may not change state") || lines[1] != "refunded 5 for order-7" {
		t.Fatal(lines)
	}
	if said := <-approved; !strings.Contains(said, "Amount:5") {
		t.Fatal(said)
	}
}

func TestAnExampleDoesWhatItSays(t *testing.T) {
	proof.Of(t, "examples")
	examples := map[string][]string{
		"approval": {"waiting for the group security", "refunded 5"},
		"tasks":    {"customer-0 has dana@example.test", "ticket 1: policy_denied"},
		"tools":    {"c-1 is a customer", "The call was denied: policy_denied", "The call was denied: duplicate_key"},
	}
	folders, err := os.ReadDir("examples")
	must(t, err)
	equal(t, len(folders), len(examples))
	for name, expected := range examples {
		// An agent of its own: what one example taints is not another's run.
		w := here(t)
		environment := cleanEnvironment("AEGISAGENT_URL="+w.url, "AEGISAGENT_TOKEN="+w.agent.AgentToken.Reveal())
		program, done := goBuild(t, ".", "./examples/"+name), make(chan struct{})
		go func() {
			for {
				pending, err := w.approver.Approvals(context.Background(), "PENDING", aegisagent.Page{})
				if err == nil && len(pending) > 0 {
					w.approve(pending[0].ApprovalID)
				}
				select {
				case <-done:
					done <- struct{}{}
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		}()
		said := run(t, program, t.TempDir(), environment)
		done <- struct{}{}
		<-done
		for _, line := range expected {
			if !strings.Contains(said, line) {
				t.Errorf("%s: %q is not in %s", name, line, said)
			}
		}
	}
}
