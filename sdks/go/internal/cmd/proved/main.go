// Reads what `go test -json` wrote into the files that are named, prints what failed, and writes the sorted list of the features
// (sdks/features.json) of which at least one test ran and every one passed to the file named first. A test that names none is a failure.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/aegisagent/aegisagent-go/internal/proof"
)

const maxLine = 16 << 20

type event struct {
	Action, Package, Test, Output string
}

type ran struct {
	features []string
	outcome  string
	output   strings.Builder
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: proved PROVED.json RESULT...")
		os.Exit(2)
	}
	tests := map[string]*ran{}
	for _, name := range os.Args[2:] {
		if err := read(name, tests); err != nil {
			fmt.Fprintf(os.Stderr, "proved: %s: %v\n", name, err)
			os.Exit(1)
		}
	}
	proved, isSound := judge(tests)
	text, err := json.Marshal(proved)
	if err == nil {
		err = os.WriteFile(os.Args[1], text, 0o600)
	}
	if err != nil || !isSound {
		fmt.Fprintln(os.Stderr, "proved: there are failures", err)
		os.Exit(1)
	}
}

func read(name string, tests map[string]*ran) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var said event
		if err := json.Unmarshal(lines.Bytes(), &said); err != nil {
			return fmt.Errorf("%w: %s", err, lines.Text())
		}
		// A part of a test is its test's; a line without a test is its package's.
		whole, _, isPart := strings.Cut(said.Test, "/")
		key := said.Package + "." + whole
		if tests[key] == nil {
			tests[key] = &ran{}
		}
		one := tests[key]
		one.output.WriteString(said.Output)
		if _, features, isMarked := strings.Cut(said.Output, proof.Mark); isMarked {
			one.features = append(one.features, strings.Fields(features)...)
		}
		if (said.Action == "pass" || said.Action == "fail" || said.Action == "skip") && !isPart {
			one.outcome = said.Action
		}
	}
	return lines.Err()
}

func judge(tests map[string]*ran) ([]string, bool) {
	proved, unproved, passed, isSound := []string{}, []string{}, 0, true
	for name, one := range tests {
		isPackage := strings.HasSuffix(name, ".")
		switch {
		case one.outcome == "pass" && !isPackage:
			passed++
			proved = append(proved, one.features...)
			if len(one.features) == 0 {
				isSound = false
				fmt.Println(name, "names no feature")
			}
		case one.outcome == "skip" || one.outcome == "pass":
			unproved = append(unproved, skipped(one, isPackage)...)
		default:
			isSound = false
			unproved = append(unproved, one.features...)
			fmt.Println(name, "failed")
			fmt.Println(one.output.String())
		}
	}
	proved = slices.DeleteFunc(proved, func(feature string) bool { return slices.Contains(unproved, feature) })
	slices.Sort(proved)
	fmt.Printf("sdks/go: %d tests passed\n", passed)
	return slices.Compact(proved), isSound
}

func skipped(one *ran, isPackage bool) []string {
	if isPackage {
		return nil
	}
	return one.features
}
