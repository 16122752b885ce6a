// Prints, for each line of the files of vectors that are named (corpus/canonical), one JSON object: {"id", "canonical_sha256"} for an
// input that has a canonical form, {"id", "reason"} for one that has none.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	aegisagent "github.com/aegisagent/aegisagent-go"
)

const maxLine = 64 << 20

type vector struct {
	ID     string `json:"id"`
	Input  string `json:"input"`
	Limits struct {
		MaxBytes *int `json:"max_bytes"`
	} `json:"limits"`
}

type answer struct {
	ID              string `json:"id"`
	CanonicalSHA256 string `json:"canonical_sha256,omitempty"`
	Reason          string `json:"reason,omitempty"`
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: corpus FILE...")
		os.Exit(2)
	}
	out := bufio.NewWriter(os.Stdout)
	for _, name := range os.Args[1:] {
		if err := answerAll(name, json.NewEncoder(out)); err != nil {
			fmt.Fprintf(os.Stderr, "corpus: %s: %v\n", name, err)
			os.Exit(1)
		}
	}
	if err := out.Flush(); err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

func answerAll(name string, out *json.Encoder) error {
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
		said, err := answerOne(asked)
		if err != nil {
			return fmt.Errorf("%s: %w", asked.ID, err)
		}
		if err := out.Encode(said); err != nil {
			return err
		}
	}
	return lines.Err()
}

func answerOne(asked vector) (answer, error) {
	input, err := base64.StdEncoding.DecodeString(asked.Input)
	if err != nil {
		return answer{}, err
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
		return answer{}, err
	}
	sum := sha256.Sum256(canonical)
	return answer{ID: asked.ID, CanonicalSHA256: hex.EncodeToString(sum[:])}, nil
}
