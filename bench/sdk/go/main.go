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
	samples := make([]time.Duration, count)
	runtime.GC()
	for place := range samples {
		began := time.Now()
		work()
		samples[place] = time.Since(began)
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

// bare sends the same requests by net/http alone: authorize, and what came of it.
func bare(url string, token *aegisagent.Secret) func() {
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
	return func() {
		decision := post("/v1/authorize", map[string]any{
			"agent":     map[string]any{"id": "bot"},
			"tool_call": map[string]any{"tool": "crm", "action": "update_customer", "resource": "customer-1", "mutates_state": true, "parameters": update{"1", "dana@example.test"}},
			"context":   map[string]any{"source_trust": "trusted_internal_unsigned"}, "trace": map[string]any{"run_id": "bare"},
		}, 200)
		if decision["decision"] != "allow" {
			panic(decision["reason"])
		}
		post(fmt.Sprintf("/v1/decisions/%s/outcome", decision["decision_id"]), map[string]any{"status": "ok", "executed_hash": decision["action_hash"]}, 201)
	}
}

func protected(url string, token *aegisagent.Secret, resource string) func(context.Context) {
	client, err := aegisagent.New(aegisagent.Config{BaseURL: url, Token: token})
	check(err)
	function, err := aegisagent.Protect(client, aegisagent.Settings{Tool: "crm", Action: "update_customer", Resource: resource},
		func(context.Context, update) (int, error) { return 0, nil })
	check(err)
	return func(ctx context.Context) {
		_, err := function(ctx, update{"1", "dana@example.test"})
		check(err)
	}
}

func working(run string) context.Context {
	ctx, err := aegisagent.WithRun(aegisagent.WithSourceTrust(context.Background(), aegisagent.TrustedInternalUnsigned), run)
	check(err)
	return ctx
}

// compare measures the two in turn, so that the machine's mood falls on both.
func compare(url string, token *aegisagent.Secret) map[string]row {
	ctx, call := working("protected"), protected(url, token, "customer-1")
	works := map[string]func(){"bare": bare(url, token), "protect": func() { call(ctx) }}
	samples := map[string][]time.Duration{}
	for range rounds {
		for name, work := range works {
			if samples[name] == nil {
				timed(work, warmUp)
			}
			samples[name] = append(samples[name], timed(work, calls)...)
		}
	}
	return map[string]row{"bare": rowOf(samples["bare"]), "protect": rowOf(samples["protect"])}
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

func show(compared map[string]row, perSecond float64, canonical map[string]map[string]row) {
	fmt.Printf("%-46s%10s%10s\n", "Go", "p50 µs", "p99 µs")
	for _, name := range []string{"bare", "protect"} {
		fmt.Printf("%-46s%10.0f%10.0f\n", "with outcome, "+name, compared[name].P50, compared[name].P99)
	}
	fmt.Printf("%-46s%10.0f\n", "  protect adds", compared["protect"].P50-compared["bare"].P50)
	fmt.Printf("%-46s%10.0f\n", "32 tasks on one client, calls with outcome/s", perSecond)
	for _, size := range []string{"1 KiB", "100 KiB"} {
		for _, name := range []string{"jcs.Transform(text)", "Canonicalize(text)", "CanonicalizeValue(value)"} {
			fmt.Printf("%-46s%10.1f%10.1f\n", size+", "+name, canonical[size][name].P50, canonical[size][name].P99)
		}
	}
}
