package aegisagent_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// readmeBlocks gives the README's shell as it stands there, block by block, and its programs by their names.
func readmeBlocks(t *testing.T) (shell []string, code map[string]string) {
	t.Helper()
	text, err := os.ReadFile("README.md")
	must(t, err)
	code = map[string]string{}
	for _, found := range block.FindAllStringSubmatch(string(text), -1) {
		if found[1] != "" {
			code[found[1]] = found[3]
		} else if found[2] == "sh" {
			shell = append(shell, found[3])
		}
	}
	return shell, code
}

func TestTheReadmesShellRunsAsItIsWrittenInAnEmptyFolder(t *testing.T) {
	proof.Of(t, "readme")
	if os.Getenv("AEGIS_BIN") == "" {
		t.Skip("AEGIS_BIN names no program")
	}
	shell, code := readmeBlocks(t)
	equal(t, len(shell), 3)
	checkout, err := filepath.Abs("../..")
	must(t, err)
	// `aegis` on the PATH is the program, at a port that is free here.
	address := strings.TrimPrefix(freeURL(t), "http://")
	tools, folder := t.TempDir(), t.TempDir()
	wrapper := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = up ]; then set -- \"$@\" --listen %s; fi\nexec %q \"$@\"\n", address, os.Getenv("AEGIS_BIN"))
	must(t, os.WriteFile(filepath.Join(tools, "aegis"), []byte(wrapper), 0o700))
	for name, text := range map[string]string{
		"register": code["register"], "call": code["call"], "ask": strings.TrimSuffix(code["call"], "}\n") + code["ask"] + "}\n", "approve": code["approve"],
	} {
		must(t, os.Mkdir(filepath.Join(folder, name), 0o700))
		must(t, os.WriteFile(filepath.Join(folder, name, "main.go"), []byte(text), 0o600))
	}
	script := []string{"set -eu", "go mod init example"}
	for _, one := range shell {
		one = strings.ReplaceAll(one, "CHECKOUT", checkout)
		script = append(script, strings.ReplaceAll(one, "127.0.0.1:8484", address))
		if strings.Contains(one, "aegis up") {
			script = append(script, "server=$!", "trap 'kill $server; wait $server || true' EXIT")
		}
	}
	// What the text between the blocks says to run; the one that asks stands in a folder of its own here.
	script = append(script,
		"go run ./call", "go build -o asking ./ask", "./asking > said &", "asking=$!",
		"until go run ./approve > approved && [ -s approved ]; do sleep 0.2; done", "wait $asking", "cat approved said",
	)
	ctx, cancel := context.WithTimeout(context.Background(), 2*longEnough)
	defer cancel()
	running := exec.CommandContext(ctx, "sh", "-c", strings.Join(script, "\n"))
	running.Dir = folder
	// Nothing is fetched: the module needs the standard library alone.
	running.Env = append(cleanEnvironment(), "PATH="+tools+":"+os.Getenv("PATH"), "GOPROXY=off", "GOFLAGS=")
	var said bytes.Buffer
	running.Stdout, running.Stderr = &said, &said
	// What is broken off ends with all that it started.
	running.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	running.Cancel = func() error { return syscall.Kill(-running.Process.Pid, syscall.SIGKILL) }
	must(t, running.Start())
	err = running.Wait()
	for _, expected := range []string{"denied (policy_denied): an untrusted source may not change state", "Amount:5", "refunded 5 for order-7"} {
		if err != nil || !strings.Contains(said.String(), expected) {
			log, _ := os.ReadFile(filepath.Join(folder, "aegis.log"))
			t.Fatalf("%v: %s\n%s", err, said.String(), log)
		}
	}
}
