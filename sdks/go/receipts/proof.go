package receipts

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
)

// Commit proofs: an inclusion path of RFC 6962 from a receipt hash to the root that a commit signed.

const (
	// A tree of 2^63 leaves is higher than any.
	longestPath = 63
	// A commit's receipts stand close together in a log, so few are enough.
	rememberedCommits = 4096
)

var hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

type hash = [sha256.Size]byte

// hashOfHex reads the hash that 64 lower-case hex digits write.
func hashOfHex(text any) (hash, bool) {
	var found hash
	digits, isText := text.(string)
	if !isText || !hashForm.MatchString(digits) {
		return found, false
	}
	_, err := hex.Decode(found[:], []byte(digits))
	return found, err == nil
}

func node(kind byte, parts ...hash) hash {
	data := []byte{kind}
	for _, part := range parts {
		data = append(data, part[:]...)
	}
	return sha256.Sum256(data)
}

// rootOf is the root that a path leads to (RFC 9162 section 2.1.3.2); false if no tree of that size has this path.
func rootOf(leaf hash, index, size int64, path []hash) (hash, bool) {
	if index >= size {
		return hash{}, false
	}
	found, position, last := node(0, leaf), index, size-1
	for _, sibling := range path {
		if last == 0 {
			return hash{}, false
		}
		if position&1 == 1 || position == last {
			found = node(1, sibling, found)
			for position != 0 && position&1 == 0 {
				position, last = position>>1, last>>1
			}
		} else {
			found = node(1, found, sibling)
		}
		position, last = position>>1, last>>1
	}
	return found, last == 0
}

type claim struct {
	size, index int64
	signer      string
	signature   []byte
	path        []hash
}

type commit struct {
	size              int64
	signer, signature string
}

// commits checks proofs, and remembers the commits that it has checked: one signature serves all receipts of a commit.
type commits struct {
	roots   *Roots
	checked map[commit]hash
	order   []commit
}

func newCommits(roots *Roots) *commits {
	return &commits{roots: roots, checked: map[commit]hash{}}
}

// check: with roots, the commit must be signed by one of them; without, all paths under one signature must lead to one root.
func (c *commits) check(proof map[string]any, receiptHash hash, keyID string) *VerifyError {
	claimed, wrong := readClaim(proof)
	if wrong != nil {
		return wrong
	}
	if claimed.signer != keyID {
		return failed("invalid_proof", "body and proof name different keys")
	}
	root, isPath := rootOf(receiptHash, claimed.index, claimed.size, claimed.path)
	if !isPath {
		return failed("invalid_proof", "its path cannot lead to the root of a commit of its size")
	}
	var key *VerifyingKey
	if c.roots != nil {
		if key = c.roots.keys[claimed.signer]; key == nil {
			return failed("unknown_key", "it is signed by a key that is not pinned")
		}
	}
	identity := commit{claimed.size, claimed.signer, string(claimed.signature)}
	known, isKnown := c.checked[identity]
	isSigned := isKnown || key == nil || key.verifies(statement(claimed.size, root), claimed.signature)
	if (isKnown && known != root) || !isSigned {
		if key != nil {
			return failed("bad_signature", "the commit's signature is not over the root that its path leads to")
		}
		return failed("invalid_proof", "its path leads to another root than its commit's other receipts")
	}
	if !isKnown {
		c.remember(identity, root)
	}
	return nil
}

func (c *commits) remember(identity commit, root hash) {
	c.checked[identity] = root
	c.order = append(c.order, identity)
	if len(c.order) > rememberedCommits {
		delete(c.checked, c.order[0])
		c.order = c.order[1:]
	}
}

func statement(size int64, root hash) []byte {
	return fmt.Appendf(nil, "aegis-commit-1\n%d\n%s\n", size, hex.EncodeToString(root[:]))
}

func readClaim(proof map[string]any) (claim, *VerifyError) {
	size, isSize := integer(proof["size"])
	if !isSize || size < 0 {
		return claim{}, failed("malformed", "proof.size is not a number")
	}
	index, isIndex := integer(proof["index"])
	if !isIndex || index < 0 {
		return claim{}, failed("malformed", "proof.index is not a number")
	}
	signer, isText := proof["key_id"].(string)
	if !isText {
		return claim{}, failed("malformed", "proof.key_id is not a string")
	}
	encoded, isText := proof["signature"].(string)
	if !isText {
		return claim{}, failed("malformed", "proof.signature is not a string")
	}
	signature, isBase64 := decodeBase64(encoded)
	if !isBase64 {
		return claim{}, failed("malformed", "proof.signature is not base64")
	}
	siblings, isList := proof["path"].([]any)
	if !isList {
		return claim{}, failed("malformed", "proof.path is not an array")
	}
	if len(siblings) > longestPath {
		return claim{}, failed("invalid_proof", "its path is longer than any tree is high")
	}
	path := make([]hash, len(siblings))
	for place, sibling := range siblings {
		found, isHash := hashOfHex(sibling)
		if !isHash {
			return claim{}, failed("malformed", "proof.path holds something that is not a hash in lower-case hex")
		}
		path[place] = found
	}
	return claim{size, index, signer, signature, path}, nil
}
