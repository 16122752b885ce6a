package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
)

// server is the real program in a folder of its own.
type server struct {
	folder, url string
	process     *exec.Cmd
}

func clean() []string {
	kept := []string{}
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "AEGIS") {
			kept = append(kept, variable)
		}
	}
	return kept
}

func start() (*server, error) {
	folder, err := os.MkdirTemp("", "aegis-bench-go-")
	if err != nil {
		return nil, err
	}
	made := &server{folder: folder}
	made.process = exec.Command(os.Getenv("AEGIS_BIN"), "up", "--data", made.data(), "--listen", "127.0.0.1:0")
	made.process.Env = clean()
	out, err := made.process.StdoutPipe()
	if err != nil {
		return made, err
	}
	if err := made.process.Start(); err != nil {
		return made, err
	}
	lines := bufio.NewScanner(out)
	for made.url == "" && lines.Scan() {
		if _, address, found := strings.Cut(lines.Text(), "listening on "); found {
			made.url = strings.TrimSpace(address)
		}
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if answer, err := http.Get(made.url + "/readyz"); err == nil {
			_ = answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return made, nil
			}
		}
	}
	return made, fmt.Errorf("the program does not start")
}

func (s *server) data() string { return filepath.Join(s.folder, "data") }

func (s *server) stop() {
	if s.process.Process != nil {
		_ = s.process.Process.Kill()
		_ = s.process.Wait()
	}
	_ = os.RemoveAll(s.folder)
}

// agent makes a tenant with the tool `crm`, and an agent's token.
func (s *server) agent(tenant string) (*aegisagent.Secret, error) {
	making := exec.Command(os.Getenv("AEGIS_BIN"), "keys", "create", "--tenant", tenant, "--role", "registrar", "--name", "ci", "--data", s.data())
	making.Env = clean()
	printed, err := making.Output()
	if err != nil {
		return nil, err
	}
	key, err := aegisagent.NewSecret(string(printed))
	if err != nil {
		return nil, err
	}
	registrar, err := aegisagent.New(aegisagent.Config{BaseURL: s.url, Token: key})
	if err != nil {
		return nil, err
	}
	defer registrar.Close()
	ctx := context.Background()
	update := aegisagent.JSON{"action": "update_customer", "risk": "medium", "mutates_state": true}
	if _, err := registrar.PutTool(ctx, aegisagent.JSON{"tool": "crm", "name": "CRM", "actions": []any{update}}); err != nil {
		return nil, err
	}
	registered, err := registrar.Register(ctx, aegisagent.AgentRegistration{AgentKey: "bot", Name: "Bot", Environment: "production", RiskTier: "low"})
	if err != nil {
		return nil, err
	}
	return registered.AgentToken, nil
}
