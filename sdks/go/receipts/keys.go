package receipts

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"math/big"
	"os"
	"slices"
	"strings"

	aegisagent "github.com/aegisagent/aegisagent-go"
)

// The public keys that a verifier pins. A key that is no point of the curve, or a weak one, under which anybody can sign, is refused.
// crypto/ed25519 takes every weak key, and says nothing of them.

const (
	keyIDDigits = 16
	// A key file holds 44 characters.
	maxKeyFile = 1024
)

// Edwards25519 (RFC 8032 section 5.1): −x² + y² = 1 + d·x²·y² over the integers modulo p.
var (
	one       = big.NewInt(1)
	prime     = new(big.Int).Sub(new(big.Int).Lsh(one, 255), big.NewInt(19))
	half      = new(big.Int).Rsh(new(big.Int).Sub(prime, one), 1)
	curve     = modulo(new(big.Int).Mul(big.NewInt(-121665), inverse(big.NewInt(121666))))
	isWeakAsY = []*big.Int{new(big.Int), one, new(big.Int).Sub(prime, one)}
)

func modulo(value *big.Int) *big.Int  { return new(big.Int).Mod(value, prime) }
func inverse(value *big.Int) *big.Int { return new(big.Int).ModInverse(value, prime) }
func product(a, b *big.Int) *big.Int  { return modulo(new(big.Int).Mul(a, b)) }
func sum(a, b *big.Int) *big.Int      { return modulo(new(big.Int).Add(a, b)) }

// decodeBase64 reads standard base64 with padding, in its one canonical spelling.
func decodeBase64(text string) ([]byte, bool) {
	raw, err := base64.StdEncoding.DecodeString(text)
	return raw, err == nil && base64.StdEncoding.EncodeToString(raw) == text
}

// VerifyingKey is an Ed25519 public key.
type VerifyingKey struct {
	key ed25519.PublicKey
	id  string
}

// NewVerifyingKey reads standard base64 of the 32 bytes.
func NewVerifyingKey(text string) (*VerifyingKey, error) {
	raw, isBase64 := decodeBase64(strings.TrimSpace(text))
	if !isBase64 || len(raw) != ed25519.PublicKeySize {
		return nil, &aegisagent.ConfigError{Message: "a root is neither a key file nor an Ed25519 public key in base64"}
	}
	y := yOf(raw)
	if !isPoint(y) {
		return nil, &aegisagent.ConfigError{Message: "a root is no point of the curve"}
	}
	if isWeak(y) {
		return nil, &aegisagent.ConfigError{Message: "a root is a weak key"}
	}
	hash := sha256.Sum256(raw)
	return &VerifyingKey{key: raw, id: hex.EncodeToString(hash[:])[:keyIDDigits]}, nil
}

// KeyID is what receipts call the key.
func (k *VerifyingKey) KeyID() string { return k.id }

// verifies refuses a signature whose point is weak too, which only the key's holder could make and crypto/ed25519 lets pass.
func (k *VerifyingKey) verifies(message, signature []byte) bool {
	return len(signature) == ed25519.SignatureSize && !isWeak(yOf(signature[:ed25519.PublicKeySize])) && ed25519.Verify(k.key, message, signature)
}

// yOf reads the coordinate; the highest bit is the sign of the other one.
func yOf(raw []byte) *big.Int {
	reversed := slices.Clone(raw)
	reversed[len(reversed)-1] &= 0x7f
	slices.Reverse(reversed)
	return new(big.Int).SetBytes(reversed)
}

// isPoint says whether a point has this coordinate, in its one canonical spelling (RFC 8032 section 5.1.3).
func isPoint(y *big.Int) bool {
	if y.Cmp(prime) >= 0 {
		return false
	}
	y2 := product(y, y)
	x2 := product(new(big.Int).Sub(y2, one), inverse(sum(product(curve, y2), one)))
	return x2.Sign() == 0 || new(big.Int).Exp(x2, half, prime).Cmp(one) == 0
}

// isWeak is true for the points of order 1, 2, 4 and 8: those with y = 1, −1, 0, and those whose double has y = 0.
func isWeak(y *big.Int) bool {
	for _, weak := range isWeakAsY {
		if y.Cmp(weak) == 0 {
			return true
		}
	}
	y2 := product(y, y)
	return sum(product(curve, product(y2, y2)), sum(y2, new(big.Int).Sub(y2, one))).Sign() == 0
}

// Roots are pinned keys.
type Roots struct {
	keys map[string]*VerifyingKey
}

// NewRoots pins keys; at least one.
func NewRoots(keys ...*VerifyingKey) (*Roots, error) {
	if len(keys) == 0 {
		return nil, &aegisagent.ConfigError{Message: "no key is given to be pinned"}
	}
	roots := &Roots{map[string]*VerifyingKey{}}
	for _, key := range keys {
		roots.keys[key.id] = key
	}
	return roots, nil
}

// ReadRoots pins keys given as base64, or as files that hold it.
func ReadRoots(roots ...string) (*Roots, error) {
	keys := make([]*VerifyingKey, 0, len(roots))
	for _, root := range roots {
		text, err := contentOf(root)
		if err != nil {
			return nil, err
		}
		key, err := NewVerifyingKey(text)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return NewRoots(keys...)
}

func contentOf(root string) (string, error) {
	about, err := os.Stat(root)
	if err != nil || !about.Mode().IsRegular() {
		return root, nil
	}
	content, err := os.ReadFile(root)
	if err != nil || len(content) > maxKeyFile {
		return "", &aegisagent.ConfigError{Message: "a root's file cannot be read, or is too long"}
	}
	return string(content), nil
}
