package aegisagent

import (
	"errors"
	"fmt"
	"io"
)

// FrozenAction is one immutable text, from which the hash, what is sent and what runs are all made. So they cannot differ.
type FrozenAction struct {
	tool, action string
	mutatesState bool
	text         string
	hash         string
}

// Freeze freezes an action; a [*Denied] of the kind DeniedUnfreezable where it has no canonical form. parameters are plain JSON, as
// [ParseStrict] gives it; each value is looked at once, and a copy of what was seen is kept.
func Freeze(tool, action string, resource *string, mutatesState bool, parameters map[string]any) (*FrozenAction, error) {
	copied, err := copiedParameters(parameters)
	if err != nil {
		return nil, unfreezable(err)
	}
	if resource != nil {
		once := *resource
		resource = &once
	}
	return frozen(tool, action, resource, mutatesState, copied)
}

// Text is the JSON of tool, action, resource, mutates_state and parameters, as it is sent.
func (a *FrozenAction) Text() string { return a.text }

// ActionHash is the hash of exactly this.
func (a *FrozenAction) ActionHash() string { return a.hash }

// Parameters gives a copy of the parameters that is nobody else's.
func (a *FrozenAction) Parameters() map[string]any {
	value, err := parse([]byte(a.text), len(a.text))
	five, _ := value.(map[string]any)
	parameters, isObject := five["parameters"].(map[string]any)
	if err != nil || !isObject {
		panic("aegisagent: a frozen text cannot be read")
	}
	return parameters
}

// Format shows tool, action and hash, and no parameters.
func (a *FrozenAction) Format(state fmt.State, _ rune) {
	_, _ = io.WriteString(state, fmt.Sprintf("FrozenAction(%q, %q, %s)", a.tool, a.action, a.hash))
}

// frozen freezes parameters that nobody else holds.
func frozen(tool, action string, resource *string, mutatesState bool, parameters map[string]any) (*FrozenAction, error) {
	for what, text := range map[string]string{"the tool": tool, "the action": action, "the resource": orEmpty(resource)} {
		if err := soundText(text, what); err != nil {
			return nil, unfreezable(err)
		}
	}
	five := fiveOf(tool, action, resource, mutatesState, parameters)
	canonical, err := bounded(appendJSON(nil, five, appendCanonicalDouble), DefaultMaxBytes)
	if err != nil {
		return nil, unfreezable(err)
	}
	text := string(appendJSON(nil, five, appendExactDouble))
	return &FrozenAction{tool, action, mutatesState, text, sha256Hex(canonical)}, nil
}

func orEmpty(text *string) string {
	if text == nil {
		return ""
	}
	return *text
}

func copiedParameters(parameters map[string]any) (map[string]any, error) {
	left := &budget{DefaultMaxBytes}
	if err := left.open(len(parameters), "the parameters", parametersDepth); err != nil {
		return nil, err
	}
	copied := make(map[string]any, len(parameters))
	for name, value := range parameters {
		if err := left.text(name, "a parameter's name"); err != nil {
			return nil, err
		}
		plain, err := exactCopy(value, named("", name, parametersDepth), parameterDepth, left)
		if err != nil {
			return nil, err
		}
		copied[name] = plain
	}
	return copied, nil
}

func unfreezable(err error) error {
	var canon *CanonError
	if !errors.As(err, &canon) {
		return err
	}
	return denied(DeniedUnfreezable, canon.Reason, err.Error())
}

// resource says what an action is on, from its parameters: a copy of them that is the function's own.
type resource func(parameters map[string]any) (*string, error)

// refreeze freezes the action as an approver edited it, if the same function can run it; a *ConfigError says why not.
func refreeze(original *FrozenAction, edited ToolCall, on resource) (*FrozenAction, error) {
	if edited.Tool != original.tool || edited.Action != original.action || edited.MutatesState != original.mutatesState {
		return nil, misconfigured("the edit makes it another tool's action")
	}
	before := original.Parameters()
	isSame := len(edited.Parameters) == len(before)
	for name := range before {
		_, isThere := edited.Parameters[name]
		isSame = isSame && isThere
	}
	if !isSame {
		return nil, misconfigured("the edit has other parameters than the function")
	}
	anew, err := Freeze(edited.Tool, edited.Action, edited.Resource, edited.MutatesState, edited.Parameters)
	if err != nil {
		return nil, err
	}
	named, err := on(anew.Parameters())
	if err != nil {
		return nil, misconfigured("the resource cannot be told from the edited parameters")
	}
	if (named == nil) != (edited.Resource == nil) || orEmpty(named) != orEmpty(edited.Resource) {
		return nil, misconfigured("the edit names another resource than its parameters do")
	}
	return anew, nil
}
