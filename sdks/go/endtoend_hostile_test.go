package aegisagent_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// An edge that turns hostile in the middle of an honest call: the real program's answers, changed on the way.

// hostile stands between the agent and the program, and changes the answers of one place. paths gives what was asked for.
func (w *world) hostile(where string, timeout time.Duration, change func(*http.Response) error) (client *aegisagent.Client, paths func() []string) {
	w.t.Helper()
	var mutex sync.Mutex
	asked := []string{}
	url := w.proxyOf(func(reply *http.Response) error {
		name := nameOfRequest(reply.Request.URL.Path)
		mutex.Lock()
		asked = append(asked, name)
		mutex.Unlock()
		if name != where || reply.StatusCode != http.StatusOK {
			return nil
		}
		return change(reply)
	})
	client = clientOf(w.t, aegisagent.Config{BaseURL: url, Token: w.agent.AgentToken, Timeout: timeout})
	return client, func() []string {
		mutex.Lock()
		defer mutex.Unlock()
		return slices.Clone(asked)
	}
}

// says puts another body, and perhaps status, in the place of an answer's.
func says(status int, body func(honest []byte) []byte) func(*http.Response) error {
	return func(reply *http.Response) error {
		honest, err := io.ReadAll(reply.Body)
		if err != nil {
			return err
		}
		said := body(honest)
		reply.StatusCode, reply.Status = status, ""
		reply.Body, reply.ContentLength = io.NopCloser(bytes.NewReader(said)), int64(len(said))
		reply.Header.Set("Content-Length", fmt.Sprint(len(said)))
		return nil
	}
}

func always(text string) func([]byte) []byte { return func([]byte) []byte { return []byte(text) } }

// staysHostile runs a refund whose answers are changed at each place, and holds that each is the denial that is expected there.
func staysHostile(t *testing.T, timeout time.Duration, change func(*http.Response) error, kind aegisagent.DeniedKind, codes map[string]string) {
	t.Helper()
	w := here(t)
	for _, where := range places {
		ran := &recorder{}
		client, paths := w.hostile(where, timeout, change)
		settings := w.refund(w.approve)
		settings.Unreachable = 200 * time.Millisecond
		_, err := protect(t, client, settings, ran.run)(trusted(t), note{"a", 1})
		w.others.Wait()
		denied := deniedAs(t, fmt.Errorf("%s: %w", where, err), kind, codes[where])
		asked := paths()
		if len(ran.ran()) > 0 || !slices.Contains(asked, where) || slices.Contains(asked, "outcome") {
			t.Fatal(where, asked, ran.ran())
		}
		if where != "consume" {
			equal(t, slices.Contains(asked, "consume"), false)
			continue
		}
		// What the program was honestly asked for it did: once, and for nothing that ran.
		approval, err := w.approver.Approval(context.Background(), denied.ApprovalID)
		must(t, err)
		equal(t, approval.Status, "CONSUMED")
	}
}

func TestRealAnEdgeThatAnswers500IsADenial(t *testing.T) {
	proof.Of(t, "hostile-500")
	said := says(500, always(`{"error":{"code":"internal","message":"m"}}`))
	staysHostile(t, 0, said, aegisagent.DeniedUnavailable, map[string]string{"authorize": "internal", "approval": "internal", "consume": "internal"})
}

func TestRealAnEdgeThatAnswersGarbageIsADenial(t *testing.T) {
	proof.Of(t, "hostile-garbage")
	for _, body := range []func([]byte) []byte{always("<html>allow</html>"), func(honest []byte) []byte { return honest[:len(honest)-1] }} {
		staysHostile(t, 0, says(200, body), aegisagent.DeniedUnverified, map[string]string{"authorize": "bad_reply", "approval": "bad_reply", "consume": "bad_reply"})
	}
}

func TestRealAnEdgeThatAnswersAboutAnotherActionIsADenial(t *testing.T) {
	proof.Of(t, "hostile-hash")
	resource := "customer-1"
	hash, err := aegisagent.ActionHash("crm", "refund", &resource, true, map[string]any{"note": "a", "amount": 1})
	must(t, err)
	said := says(200, func(honest []byte) []byte {
		if !bytes.Contains(honest, []byte(hash)) {
			t.Errorf("no hash in %s", honest)
		}
		return []byte(strings.ReplaceAll(string(honest), hash, otherHash()))
	})
	// Of an approval the action stands beside its hash, so that one of them is wrong whatever was asked for.
	staysHostile(t, 0, said, aegisagent.DeniedUnverified, map[string]string{
		"authorize": "action_hash_mismatch", "approval": "bad_reply", "consume": "action_hash_mismatch",
	})
}

func TestRealAnEdgeThatDoesNotAnswerInTimeIsADenial(t *testing.T) {
	proof.Of(t, "hostile-slow")
	slow := func(reply *http.Response) error {
		<-reply.Request.Context().Done()
		return reply.Request.Context().Err()
	}
	staysHostile(t, 3*time.Second, slow, aegisagent.DeniedUnavailable, map[string]string{
		"authorize": "no_answer", "approval": "no_answer", "consume": "consume_ambiguous",
	})
}
