package aegisagent

import (
	"context"
	"reflect"
	"time"
	"unicode/utf8"
)

// Risk is what the author of a function says of it; the server's registry can only make it stricter.
type Risk string

// The risks, in order.
const (
	RiskLow      Risk = "low"
	RiskMedium   Risk = "medium"
	RiskHigh     Risk = "high"
	RiskCritical Risk = "critical"
)

const (
	// LookOnce as an ApprovalTimeout: look at the approval once, and do not wait.
	LookOnce time.Duration = -1

	defaultUnreachable = 30 * time.Second
)

// Settings say how one function is protected. The zero value of each is the careful one.
type Settings struct {
	// Tool and Action are the registered action that the function is.
	Tool, Action string
	// Resource is what it acts on; ResourceOf says it from the parameters, of which it gets a copy. Empty: none.
	// Where it panics, the call is denied.
	Resource   string
	ResourceOf func(parameters map[string]any) string
	// ReadOnly says that the function changes nothing (mutates_state false); the server's registry can only make it stricter.
	ReadOnly bool
	// Risk is high where it is empty.
	Risk Risk
	// ContainsSensitiveData and Channel go to the server with each call.
	ContainsSensitiveData bool
	Channel               string
	// AcceptEdits runs the action as its approver edited it. Otherwise an edit is a denial.
	AcceptEdits bool
	// FailOpenReads runs while no server can be asked. Only with ReadOnly, RiskLow and no sensitive data.
	FailOpenReads bool
	// ApprovalTimeout is how long to wait for an approval: until it expires where it is 0; see LookOnce.
	ApprovalTimeout time.Duration
	// Unreachable is how long the server may be away while an approval is waited for: 30 s where it is 0.
	Unreachable time.Duration
	// OnPending is called with the approval that is waited for, to tell somebody of it. Where it panics, that is logged and decides nothing.
	OnPending func(context.Context, ApprovalRef)
	// ReportOutput reports what the function returned, where it is plain JSON; the server keeps a keyed hash of it alone.
	ReportOutput bool
}

func (s Settings) check() error {
	if s.Tool == "" || s.Action == "" || !utf8.ValidString(s.Tool+s.Action+s.Resource) {
		return misconfigured("Tool and Action must be texts, and Resource one or empty")
	}
	if s.Resource != "" && s.ResourceOf != nil {
		return misconfigured("give Resource or ResourceOf, not both")
	}
	switch s.Risk {
	case "", RiskLow, RiskMedium, RiskHigh, RiskCritical:
	default:
		return misconfigured("Risk is low, medium, high or critical")
	}
	if s.FailOpenReads && (!s.ReadOnly || s.Risk != RiskLow || s.ContainsSensitiveData) {
		return misconfigured("only a read fails open: ReadOnly, RiskLow and no sensitive data")
	}
	if s.ApprovalTimeout < 0 && s.ApprovalTimeout != LookOnce {
		return misconfigured("ApprovalTimeout is a time, 0 or LookOnce")
	}
	if s.Unreachable < 0 {
		return misconfigured("Unreachable is a time")
	}
	if s.Channel != "" {
		return checkName(s.Channel, "Channel")
	}
	return nil
}

// resource makes one function of the two ways to name it. Where it cannot be told from the parameters, which a model or an approver wrote,
// there is none to ask for.
func (s Settings) resource(parameters map[string]any) (on *string, err error) {
	defer func() {
		if recover() != nil {
			on, err = nil, &CanonError{Reason: "unsupported_type", Where: "the resource; ResourceOf cannot tell it from these parameters"}
		}
	}()
	named := s.Resource
	if s.ResourceOf != nil {
		named = s.ResourceOf(parameters)
	}
	if named == "" {
		return nil, nil
	}
	return &named, nil
}

func (s Settings) unreachable() time.Duration {
	if s.Unreachable == 0 {
		return defaultUnreachable
	}
	return s.Unreachable
}

// guard is one protected function, apart from its types.
type guard struct {
	client     *Client
	settings   Settings
	kind       reflect.Type
	parameters *codec
	// output makes plain JSON of what the function returned; nil where that is not reported.
	output *codec
}

func newGuard(client *Client, settings Settings, parameters, result reflect.Type) (*guard, error) {
	if client == nil || client.transport == nil {
		return nil, misconfigured("there is no client; make one with New")
	}
	if err := settings.check(); err != nil {
		return nil, err
	}
	if natureOf(result).isLazy {
		return nil, misconfigured("%s is or holds a channel, function, stream or iterator, which does its work after it was returned; return a value", result)
	}
	how, err := parametersCodec(parameters)
	if err != nil {
		return nil, err
	}
	made := &guard{client: client, settings: settings, kind: parameters, parameters: how}
	if settings.ReportOutput {
		if made.output, err = (codecs{}).of(result, result.String()); err != nil {
			return nil, misconfigured("ReportOutput: %v", err)
		}
	}
	return made, nil
}

// freeze freezes the parameters of a call.
func (g *guard) freeze(parameters reflect.Value) (*FrozenAction, error) {
	plain, err := encodeParameters(g.parameters, parameters)
	if err != nil {
		return nil, unfreezable(err)
	}
	copied := map[string]any(nil)
	if g.settings.ResourceOf != nil {
		if copied, err = copiedParameters(plain); err != nil {
			return nil, unfreezable(err)
		}
	}
	on, err := g.settings.resource(copied)
	if err != nil {
		return nil, unfreezable(err)
	}
	return frozen(g.settings.Tool, g.settings.Action, on, !g.settings.ReadOnly, plain)
}

// thaw makes parameters anew from a frozen text; false where they are none of the function's.
func (g *guard) thaw(action *FrozenAction) (reflect.Value, bool) {
	fresh := reflect.New(g.kind).Elem()
	fits := g.parameters.decode(action.Parameters(), fresh, false)
	return fresh, fits
}
