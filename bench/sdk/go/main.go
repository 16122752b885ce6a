// Overhead of Protect over the bare HTTP calls, and of the strict canonical form over github.com/gowebpki/jcs. Figures only, no verdict.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/gowebpki/jcs"
)

const (
	out            = "../../out/sdk-go.json"
	rounds, calls  = 5, 400
	warmUp         = 50
	tasks, perTask = 32, 50
)

type row struct {
	P50 float64 `json:"p50_us"`
	P99 float64 `json:"p99_us"`
}

func rowOf(samples []time.Duration) row {
	slices.Sort(samples)
	at := func(share float64) float64 {
		return float64(samples[int(math.Ceil(float64(len(samples))*share))-1].Nanoseconds()) / 1000
	}
	return row{at(0.5), at(0.99)}
}

func timed(work func(), count int) []time.Duration {
	return timedUntil(func() time.Time { work(); return time.Now() }, count)
}

// timedUntil times work up to the moment that it names.
func timedUntil(work func() time.Time, count int) []time.Duration {
	samples := make([]time.Duration, count)
	runtime.GC()
	for place := range samples {
		began := time.Now()
		samples[place] = work().Sub(began)
	}
	return samples
}

// check ends with a panic, so that the server is stopped.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

type update struct {
	ID    string `json:"id"`
	Email string `json:"email"`
}

// bare sends the same requests by net/http alone: authorize, and what came of it. It gives when the one was answered, and the other.
func bare(url string, token *aegisagent.Secret) func() (authorized, reported time.Time) {
	client := &http.Client{Transport: &http.Transport{Proxy: nil}}
	post := func(path string, body map[string]any, status int) map[string]any {
		text, err := json.Marshal(body)
		check(err)
		asked, err := http.NewRequest(http.MethodPost, url+path, bytes.NewReader(text))
		check(err)
		asked.Header.Set("Authorization", "Bearer "+token.Reveal())
		asked.Header.Set("Content-Type", "application/json")
		answer, err := client.Do(asked)
		check(err)
		said, err := io.ReadAll(answer.Body)
		check(err)
		check(answer.Body.Close())
		var found map[string]any
		check(json.Unmarshal(said, &found))
		if answer.StatusCode != status {
			panic(fmt.Sprintf("%s: %d: %s", path, answer.StatusCode, said))
		}
		return found
	}
	return func() (authorized, reported time.Time) {
		decision := post("/v1/authorize", map[string]any{
			"agent":     map[string]any{"id": "bot"},
			"tool_call": map[string]any{"tool": "crm", "action": "update_customer", "resource": "customer-1", "mutates_state": true, "parameters": update{"1", "dana@example.test"}},
			"context":   map[string]any{"source_trust": "trusted_internal_unsigned"}, "trace": map[string]any{"run_id": "bare"},
		}, 200)
		if decision["decision"] != "allow" {
			panic(decision["reason"])
		}
		authorized = time.Now()
		post(fmt.Sprintf("/v1/decisions/%s/outcome", decision["decision_id"]), map[string]any{"status": "ok", "executed_hash": decision["action_hash"]}, 201)
		return authorized, time.Now()
	}
}

// whenKey is where a call's context has the place to note when the function ran.
type whenKey struct{}

// protected gives the same two moments: when the function ran, and when that was reported.
func protected(url string, token *aegisagent.Secret, resource string) func(context.Context) (authorized, reported time.Time) {
	client, err := aegisagent.New(aegisagent.Config{BaseURL: url, Token: token})
	check(err)
	function, err := aegisagent.Protect(client, aegisagent.Settings{Tool: "crm", Action: "update_customer", Resource: resource},
		func(ctx context.Context, _ update) (int, error) {
			*ctx.Value(whenKey{}).(*time.Time) = time.Now()
			return 0, nil
		})
	check(err)
	return func(ctx context.Context) (authorized, reported time.Time) {
		_, err := function(context.WithValue(ctx, whenKey{}, &authorized), update{"1", "dana@example.test"})
		check(err)
		return authorized, time.Now()
	}
}

func working(run string) context.Context {
	ctx, err := aegisagent.WithRun(aegisagent.WithSourceTrust(context.Background(), aegisagent.TrustedInternalUnsigned), run)
	check(err)
	return ctx
}

// compare measures the two in turn, so that the machine's mood falls on both: up to the leave to run, and with the outcome.
func compare(url string, token *aegisagent.Secret) map[string]map[string]row {
	ctx, call := working("protected"), protected(url, token, "customer-1")
	works := map[string]func() (authorized, reported time.Time){
		"bare": bare(url, token), "protect": func() (authorized, reported time.Time) { return call(ctx) },
	}
	found := map[string]map[string]row{}
	for what, moment := range map[string]func(authorized, reported time.Time) time.Time{
		"authorize_alone": func(authorized, _ time.Time) time.Time { return authorized },
		"with_outcome":    func(_, reported time.Time) time.Time { return reported },
	} {
		samples := map[string][]time.Duration{}
		for range rounds {
			for name, work := range works {
				until := func() time.Time { return moment(work()) }
				if samples[name] == nil {
					timedUntil(until, warmUp)
				}
				samples[name] = append(samples[name], timedUntil(until, calls)...)
			}
		}
		found[what] = map[string]row{"bare": rowOf(samples["bare"]), "protect": rowOf(samples["protect"])}
	}
	return found
}

// atOnce gives calls a second of many goroutines on one client, with the outcomes.
func atOnce(url string, token *aegisagent.Secret) float64 {
	ctx, call := working("many"), protected(url, token, "")
	call(ctx)
	var all sync.WaitGroup
	began := time.Now()
	for range tasks {
		all.Add(1)
		go func() {
			defer all.Done()
			for range perTask {
				call(ctx)
			}
		}()
	}
	all.Wait()
	return tasks * perTask / time.Since(began).Seconds()
}

// parameters are plain ones whose canonical form has about size bytes: texts, numbers, nesting, some of it not ASCII.
func parameters(size int) map[string]any {
	random, value := rand.New(rand.NewPCG(1, 1)), map[string]any{}
	for {
		canonical, err := aegisagent.CanonicalizeValue(value, math.MaxInt)
		check(err)
		if len(canonical) >= size {
			return value
		}
		items := make([]any, 1+random.IntN(5))
		for place := range items {
			items[place] = fmt.Sprintf("item %d", place)
		}
		value[fmt.Sprintf("key-%d", random.IntN(1_000_000))] = map[string]any{
			"text": strings.Repeat("Café ☕ ", 1+random.IntN(5)), "count": random.IntN(1_000_000), "ratio": random.Float64(), "flag": true, "none": nil,
			"items": items,
		}
	}
}

func canonicalForms() map[string]map[string]row {
	found := map[string]map[string]row{}
	for size, count := range map[int]int{1024: 5000, 100 * 1024: 200} {
		value := parameters(size)
		text, err := json.Marshal(value)
		check(err)
		works := map[string]func() ([]byte, error){
			"jcs.Transform(text)":      func() ([]byte, error) { return jcs.Transform(text) },
			"Canonicalize(text)":       func() ([]byte, error) { return aegisagent.Canonicalize(text, math.MaxInt) },
			"CanonicalizeValue(value)": func() ([]byte, error) { return aegisagent.CanonicalizeValue(value, math.MaxInt) },
		}
		expected, err := jcs.Transform(text)
		check(err)
		rows := map[string]row{}
		for name, work := range works {
			rows[name] = rowOf(timed(func() {
				canonical, err := work()
				check(err)
				if !bytes.Equal(canonical, expected) {
					panic(name + " gives another form")
				}
			}, count))
		}
		found[fmt.Sprintf("%d KiB", size/1024)] = rows
	}
	return found
}

func main() {
	running, err := start()
	if running != nil {
		defer running.stop()
	}
	check(err)
	token, err := running.agent("bench")
	check(err)
	compared := compare(running.url, token)
	perSecond := atOnce(running.url, token)
	canonical := canonicalForms()
	show(compared, perSecond, canonical)
	text, err := json.MarshalIndent(map[string]any{
		"calls": compared, "calls_per_s_of_32_tasks": perSecond, "canonical": canonical, "go": runtime.Version(), "machine": runtime.GOARCH,
	}, "", "  ")
	check(err)
	check(os.MkdirAll("../../out", 0o755))
	check(os.WriteFile(out, append(text, '\n'), 0o644))
	fmt.Println("\nwritten to bench/out/sdk-go.json")
}

func show(compared map[string]map[string]row, perSecond float64, canonical map[string]map[string]row) {
	fmt.Printf("%-46s%10s%10s\n", "Go", "p50 µs", "p99 µs")
	for _, what := range []string{"authorize_alone", "with_outcome"} {
		taken := compared[what]
		for _, name := range []string{"bare", "protect"} {
			fmt.Printf("%-46s%10.0f%10.0f\n", strings.ReplaceAll(what, "_", " ")+", "+name, taken[name].P50, taken[name].P99)
		}
		fmt.Printf("%-46s%10.0f\n", "  protect adds", taken["protect"].P50-taken["bare"].P50)
	}
	fmt.Printf("%-46s%10.0f\n", "32 tasks on one client, calls with outcome/s", perSecond)
	for _, size := range []string{"1 KiB", "100 KiB"} {
		for _, name := range []string{"jcs.Transform(text)", "Canonicalize(text)", "CanonicalizeValue(value)"} {
			fmt.Printf("%-46s%10.1f%10.1f\n", size+", "+name, canonical[size][name].P50, canonical[size][name].P99)
		}
	}
}
