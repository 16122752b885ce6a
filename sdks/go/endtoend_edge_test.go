package aegisagent_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// Against an edge that is a process of its own: one base URL is enough to act, and a control plane that is gone costs an approval, not an
// answer.

const natsServer = "/usr/sbin/nats-server"

// startNATS starts a real NATS server on loopback, by which control plane and edge speak to each other; its URL.
func startNATS(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := listener.Addr().String()
	must(t, listener.Close())
	folder := t.TempDir()
	settings := filepath.Join(folder, "server.conf")
	must(t, os.WriteFile(settings, fmt.Appendf(nil, "listen: %q\njetstream { store_dir: %q }\n", address, filepath.Join(folder, "jetstream")), 0o600))
	server := exec.Command(natsServer, "-c", settings)
	said, err := server.StderrPipe()
	must(t, err)
	must(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	isReady := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(said)
		for told := false; lines.Scan(); {
			if !told && strings.Contains(lines.Text(), "Server is ready") {
				close(isReady)
				told = true
			}
		}
	}()
	select {
	case <-isReady:
	case <-time.After(longEnough):
		t.Fatal("the NATS server does not start")
	}
	return "nats://" + address
}

// split starts a control plane with a tenant and its agent, and an edge that serves it.
func split(t *testing.T) (w *world, edge *program) {
	t.Helper()
	if os.Getenv("AEGIS_BIN") == "" {
		t.Skip("AEGIS_BIN names no program")
	}
	nats := startNATS(t)
	control, edge := newProgram(t, "control", "AEGIS_NATS_SERVERS="+nats), newProgram(t, "edge", "AEGIS_NATS_SERVERS="+nats)
	t.Cleanup(control.close)
	t.Cleanup(edge.close)
	control.command("streams", "apply", "--nats", nats)
	control.start()
	w = newWorld(t, control)
	invitation := control.command("edge", "invite", "--id", "edge-1", "--tenant", w.name, "--data", control.data)
	edge.commandWith(invitation, "edge", "enroll", "--control", control.url, "--data", edge.data)
	edge.start()
	return w, edge
}

func TestRealAnEdgeOfItsOwnIsEnoughToActAndControlThatIsGoneCostsAnApproval(t *testing.T) {
	proof.Of(t, "edge-killed")
	w, edge := split(t)
	client, ran := clientOf(t, aegisagent.Config{BaseURL: edge.url, Token: w.agent.AgentToken}), &recorder{}
	knows := protect(t, client, update(), func(context.Context, note) (int, error) { return 0, nil })
	within(t, longEnough, "the edge knows the agent and the tools", func() bool {
		_, err := knows(trusted(t), note{})
		return err == nil
	})
	_, err := protect(t, client, w.refund(w.approve), ran.run)(trusted(t), note{"a", 1})
	must(t, err)
	w.others.Wait()
	w.kill()
	_, err = protect(t, client, update(), ran.run)(trusted(t), note{"b", 1})
	must(t, err)
	alone := w.refund(nil)
	alone.Unreachable = 500 * time.Millisecond
	_, err = protect(t, client, alone, ran.run)(trusted(t), note{"c", 1})
	denied := deniedAs(t, err, aegisagent.DeniedUnavailable, "control_unreachable")
	if denied.ApprovalID == "" {
		t.Fatal(denied)
	}
	equal(t, ran.ran(), []note{{"a", 1}, {"b", 1}})
}
