package aegisagent_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

// Answers that are lost: what was asked is done, and who asked never learned of it.

// cutOff puts a broken answer in the place of the first honest ones. The server has done what it was asked.
func (e *fakeEdge) cutOff(name string, times int) {
	e.set(func() {
		e.replace[name] = func(honest answer) answer {
			if times == 0 {
				return honest
			}
			times--
			return broken["broken off"]
		}
	})
}

func TestAConsumeWhoseAnswerIsCutOffRunsTheFunctionExactlyOnce(t *testing.T) {
	proof.Of(t, "lost-answer")
	for _, times := range []int{1, 2} {
		edge, ran := newFakeEdge(t), &recorder{}
		edge.decision = "require_approval"
		edge.cutOff("consume", times)
		_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{"a", 1})
		must(t, err)
		equal(t, ran.ran(), []note{{"a", 1}})
		sentAgain(t, edge, "consume", times+1, times+1)
	}
}

func TestAConsumeThatSomebodyElseMadeMeanwhileRunsNothing(t *testing.T) {
	proof.Of(t, "lost-answer")
	edge := newFakeEdge(t)
	edge.decision = "require_approval"
	edge.before["consume"] = func() {
		edge.set(func() {
			for id := range edge.calls {
				edge.consumed[id] = "another's"
			}
		})
	}
	edge.cutOff("consume", 1)
	deniedAs(t, attack(t, edge, 10*time.Second), aegisagent.DeniedByApprover, "approval_consumed")
}

func TestAnOutcomeWhoseAnswerWasLostIsReportedAgainAsTheSame(t *testing.T) {
	proof.Of(t, "lost-answer")
	edge, ran := newFakeEdge(t), &recorder{}
	report := func(times int) {
		t.Helper()
		edge.forget()
		_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{})
		must(t, err)
		sentAgain(t, edge, "outcome", times, times)
	}
	edge.cutOff("outcome", 1)
	report(2)
	for said, times := range map[string]int{"broken off": 3} {
		edge.always("outcome", broken[said])
		report(times)
	}
	for status, times := range map[int]int{500: 1, 503: 3} {
		edge.always("outcome", serverErrors[status])
		report(times)
	}
	equal(t, len(ran.ran()), 4)
	equal(t, len(edge.reported), 4)
}

func TestAKeyIsInNoErrorAndNoLog(t *testing.T) {
	proof.Of(t, "lost-answer")
	var logged bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer slog.SetDefault(before)
	edge := newFakeEdge(t)
	edge.decision = "require_approval"
	edge.cutOff("consume", 3)
	err := attack(t, edge, 10*time.Second)
	deniedAs(t, err, aegisagent.DeniedUnavailable, "consume_ambiguous")
	key := sentAgain(t, edge, "consume", 3, 3)
	if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err)+logged.String(), key) {
		t.Fatal("the key is shown")
	}
}

func TestTheEndOfAnApprovalIsCountedByTheServersClock(t *testing.T) {
	proof.Of(t, "lost-answer")
	edge, ran := newFakeEdge(t), &recorder{}
	edge.decision, edge.statuses = "require_approval", []string{"404", "PENDING", "APPROVED"}
	edge.replace["authorize"] = func(honest answer) answer {
		approval := honest.body.(map[string]any)["approval"].(map[string]any)
		// By our clock it has ended before it was asked for.
		approval["expires_at"], approval["expires_in"] = "2020-01-01T00:00:00Z", 900
		return honest
	}
	_, err := protect(t, clientTo(t, edge.URL), usual, ran.run)(context.Background(), note{"a", 1})
	must(t, err)
	equal(t, len(ran.ran()), 1)
}

func TestSecondsThatAreNoneAreADenial(t *testing.T) {
	proof.Of(t, "lost-answer")
	for _, bad := range []any{-1, 1.5, "900", true} {
		edge := newFakeEdge(t)
		edge.decision = "require_approval"
		edge.replace["authorize"] = func(honest answer) answer {
			honest.body.(map[string]any)["approval"].(map[string]any)["expires_in"] = bad
			return honest
		}
		deniedAs(t, attack(t, edge, 10*time.Second), aegisagent.DeniedUnverified, "bad_reply")
	}
}

// losing is between the agent and the program, and breaks off the first answers to consumes and outcomes.
func (w *world) losing(times int) (*aegisagent.Client, func() map[string]int) {
	var mutex sync.Mutex
	lost := map[string]int{}
	client := w.betweenAnswers(func(reply *http.Response) error {
		parts := strings.Split(reply.Request.URL.Path, "/")
		kind := parts[len(parts)-1]
		mutex.Lock()
		defer mutex.Unlock()
		if (kind == "consume" || kind == "outcome") && lost[kind] < times {
			lost[kind]++
			_, _ = io.Copy(io.Discard, reply.Body)
			reply.Body = io.NopCloser(strings.NewReader("{"))
		}
		return nil
	})
	return client, func() map[string]int {
		mutex.Lock()
		defer mutex.Unlock()
		return lost
	}
}

func TestRealAConsumeAndAnOutcomeWhoseAnswersAreCutOffRunTheFunctionOnce(t *testing.T) {
	proof.Of(t, "lost-answer")
	w, ran := here(t), &recorder{}
	client, lost := w.losing(2)
	_, err := protect(t, client, w.refund(w.approve), ran.run)(trusted(t), note{"a", 1})
	must(t, err)
	w.others.Wait()
	equal(t, ran.ran(), []note{{"a", 1}})
	equal(t, lost(), map[string]int{"consume": 2, "outcome": 2})
	w.hasOutcomes("ok")
	kinds := w.kinds()
	equal(t, []int{kinds["approval_consumed"], kinds["tool_outcome"], kinds["replay_attempt"]}, []int{1, 1, 0})
}
