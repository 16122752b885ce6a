package aegisagent

import (
	"fmt"
	"time"
)

// What goes wrong, as types. Messages say what happened and what to do; none holds an argument, a credential or a reply's raw text.
// Whoever calls a protected function needs one of them: Denied, which means that the function did not run.

// ConfigError says that the package was set up in a way that cannot be safe, or that means nothing. Nothing was called.
type ConfigError struct {
	Message string
}

func (e *ConfigError) Error() string { return "aegisagent: " + e.Message }

func misconfigured(format string, arguments ...any) error {
	return &ConfigError{Message: fmt.Sprintf(format, arguments...)}
}

// CanonError says that a JSON text or a value has no canonical form.
//
// Reason is stable and the same in every language: size_exceeded, invalid_utf8, syntax, trailing_data, depth_exceeded, duplicate_key,
// lone_surrogate, integer_out_of_range, number_out_of_range, non_finite_number; and unsupported_type for values that are not JSON at all.
type CanonError struct {
	Reason string
	// Where names the value, and never repeats it.
	Where string
}

func (e *CanonError) Error() string {
	if e.Where == "" {
		return e.Reason
	}
	return e.Reason + " in " + e.Where
}

// FailureKind says in which way a request got no usable answer. errors.Is(err, Unreachable) asks for one.
type FailureKind string

const (
	// Unreachable: no connection (code unreachable), or no answer in time (code no_answer).
	Unreachable FailureKind = "Unreachable"
	// BadReply: an answer that no server of ours gives: no JSON, wrong types, too large, a redirect, encoded. Code bad_reply.
	BadReply FailureKind = "BadReply"
	// ApiError: the server refused; Status is the HTTP status, Code the server's own.
	ApiError FailureKind = "ApiError"
)

func (k FailureKind) Error() string { return string(k) }

// RequestFailed says that a call of the client got no usable answer.
type RequestFailed struct {
	Kind FailureKind
	// Code is stable: the server's (docs/openapi.yaml lists them), unreachable, no_answer or bad_reply.
	Code   string
	Reason string
	// Sent: the server may have received the request.
	Sent bool
	// Status is the HTTP status of an ApiError.
	Status int
	// RetryAfter is what the server asked for.
	RetryAfter time.Duration

	cause error
}

func (e *RequestFailed) Error() string {
	if e.Kind == ApiError {
		return fmt.Sprintf("%s: %s (HTTP %d)", e.Code, e.Reason, e.Status)
	}
	return e.Code + ": " + e.Reason
}

// Is reports whether target is the failure's kind.
func (e *RequestFailed) Is(target error) bool { return target == error(e.Kind) }

// Unwrap gives the context's error where the caller gave up, and nil otherwise: an HTTP library's error holds the request.
func (e *RequestFailed) Unwrap() error { return e.cause }

func badReply(format string, arguments ...any) error {
	return &RequestFailed{Kind: BadReply, Code: "bad_reply", Reason: fmt.Sprintf(format, arguments...), Sent: true}
}

func noAnswer(cause error) *RequestFailed {
	return &RequestFailed{Kind: Unreachable, Code: "no_answer", Reason: "the server did not answer in time, or broke off", Sent: true, cause: cause}
}

func unreachable(cause error) *RequestFailed {
	return &RequestFailed{Kind: Unreachable, Code: "unreachable", Reason: "there is no connection to the server", cause: cause}
}

// DeniedKind says who or what denied. errors.Is(err, DeniedByPolicy) asks for one.
type DeniedKind string

const (
	// DeniedByPolicy: the server decided.
	DeniedByPolicy DeniedKind = "DeniedByPolicy"
	// DeniedByApprover: the approval was rejected, expired, was edited without leave to run edits, or did not come in time.
	DeniedByApprover DeniedKind = "DeniedByApprover"
	// DeniedUnavailable: there is no decision: the server could not be reached, did not answer in time, or refused the request itself.
	DeniedUnavailable DeniedKind = "DeniedUnavailable"
	// DeniedUnverified: an answer is not what it must be: another action's hash, an unknown word, garbage. Treat it as an attack.
	DeniedUnverified DeniedKind = "DeniedUnverified"
	// DeniedUnfreezable: an argument is not plain JSON, so that what would run could not be what was hashed.
	DeniedUnfreezable DeniedKind = "DeniedUnfreezable"
)

func (k DeniedKind) Error() string { return string(k) }

// Denied says that the protected function did not run.
type Denied struct {
	Kind DeniedKind
	// Code is stable: the server's where it gave one (agent_frozen, approval_rejected, …), otherwise one of this package's.
	Code string
	// Reason is for people.
	Reason string
	// DecisionID and ApprovalID name what there is to look up, where there is something.
	DecisionID string
	ApprovalID string

	cause error
}

func (e *Denied) Error() string { return fmt.Sprintf("denied (%s): %s", e.Code, e.Reason) }

// Is reports whether target is the denial's kind.
func (e *Denied) Is(target error) bool { return target == error(e.Kind) }

// Unwrap gives the [*RequestFailed] behind the denial, or nil.
func (e *Denied) Unwrap() error { return e.cause }

func denied(kind DeniedKind, code, reason string) *Denied {
	return &Denied{Kind: kind, Code: code, Reason: reason}
}

// LazyResult says that the protected function ran and returned something that does its work later; it is not handed out.
type LazyResult struct{}

func (*LazyResult) Error() string {
	return "aegisagent: the function returned a channel, function, stream or iterator, which would do its work after it was reported; return a value"
}
