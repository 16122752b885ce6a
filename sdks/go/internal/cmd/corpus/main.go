// Prints, for each line of the files of vectors that are named (corpus/canonical), one JSON object: {"id", "canonical_sha256"} for an
// input that has a canonical form, {"id", "reason"} for one that has none. With --receipts first, for each case of
// corpus/receipts/cases.jsonl {"id", "exit", "report"}: what a program of this SDK says, less the message of a failure, which is for people.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/receipts"
)

const maxLine = 64 << 20

type vector struct {
	ID     string   `json:"id"`
	Input  string   `json:"input"`
	Roots  []string `json:"roots"`
	Limits struct {
		MaxBytes *int `json:"max_bytes"`
	} `json:"limits"`
}

type answer struct {
	ID              string `json:"id"`
	CanonicalSHA256 string `json:"canonical_sha256,omitempty"`
	Reason          string `json:"reason,omitempty"`
}

type verdict struct {
	ID     string `json:"id"`
	Exit   int    `json:"exit"`
	Report any    `json:"report"`
}

const badInput = 2

func main() {
	files, ask := os.Args[1:], answerOne
	if len(files) > 0 && files[0] == "--receipts" {
		files, ask = files[1:], judgeOne
	}
	if len(files) == 0 {
		fmt.Fprintln(os.Stderr, "usage: corpus [--receipts] FILE...")
		os.Exit(2)
	}
	out := bufio.NewWriter(os.Stdout)
	for _, name := range files {
		if err := answerAll(name, ask, json.NewEncoder(out)); err != nil {
			fmt.Fprintf(os.Stderr, "corpus: %s: %v\n", name, err)
			os.Exit(1)
		}
	}
	if err := out.Flush(); err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

func answerAll(name string, ask func(vector) (any, error), out *json.Encoder) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var asked vector
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			return err
		}
		said, err := ask(asked)
		if err != nil {
			return fmt.Errorf("%s: %w", asked.ID, err)
		}
		if err := out.Encode(said); err != nil {
			return err
		}
	}
	return lines.Err()
}

func answerOne(asked vector) (any, error) {
	input, err := base64.StdEncoding.DecodeString(asked.Input)
	if err != nil {
		return nil, err
	}
	maxBytes := aegisagent.DefaultMaxBytes
	if asked.Limits.MaxBytes != nil {
		maxBytes = *asked.Limits.MaxBytes
	}
	canonical, err := aegisagent.Canonicalize(input, maxBytes)
	var refused *aegisagent.CanonError
	if errors.As(err, &refused) {
		return answer{ID: asked.ID, Reason: refused.Reason}, nil
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(canonical)
	return answer{ID: asked.ID, CanonicalSHA256: hex.EncodeToString(sum[:])}, nil
}

func judgeOne(asked vector) (any, error) {
	input, err := base64.StdEncoding.DecodeString(asked.Input)
	if err != nil {
		return nil, err
	}
	var roots *receipts.Roots
	if len(asked.Roots) > 0 {
		if roots, err = receipts.ReadRoots(asked.Roots...); err != nil {
			return verdict{ID: asked.ID, Exit: badInput}, nil
		}
	}
	report, err := receipts.VerifyExport(bytes.NewReader(input), roots)
	if err != nil {
		return verdict{ID: asked.ID, Exit: badInput}, nil
	}
	exit := 0
	if report.Verdict == receipts.Invalid {
		exit = 1
	}
	shown, err := withoutMessage(report)
	return verdict{ID: asked.ID, Exit: exit, Report: shown}, err
}

func withoutMessage(report receipts.Report) (map[string]any, error) {
	text, err := json.Marshal(report)
	if err != nil {
		return nil, err
	}
	var shown map[string]any
	numbers := json.NewDecoder(bytes.NewReader(text))
	numbers.UseNumber()
	if err := numbers.Decode(&shown); err != nil {
		return nil, err
	}
	if failure, ok := shown["failure"].(map[string]any); ok {
		delete(failure, "message")
	}
	return shown, nil
}
