package aegisagent

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
)

// Plain functions: each becomes the action of its name, and what a model wrote passes the strict door.

// Tool is a function with its name, to be protected by [ProtectTools].
type Tool struct {
	name    string
	protect func(*Client, Settings) (protectedTool, error)
}

// protectedTool calls a tool, and says whether it ran: a denial that comes out of one that ran is no word about it.
type protectedTool func(ctx context.Context, arguments any) (result any, hasRun bool, err error)

// ranKey is where a call's context has the place to note that the tool ran.
type ranKey struct{}

// NewTool names a function. P and R are as for [Protect].
func NewTool[P, R any](name string, function func(context.Context, P) (R, error)) Tool {
	return Tool{name, func(client *Client, settings Settings) (protectedTool, error) {
		noted := func(ctx context.Context, parameters P) (R, error) {
			if hasRun, ok := ctx.Value(ranKey{}).(*bool); ok {
				*hasRun = true
			}
			// What it calls in turn is another call.
			return function(context.WithValue(ctx, ranKey{}, nil), parameters)
		}
		if function == nil {
			noted = nil
		}
		protected, err := Protect(client, settings, noted)
		if err != nil {
			return nil, err
		}
		how, err := parametersCodec(reflect.TypeFor[P]())
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, arguments any) (any, bool, error) {
			var parameters P
			if !how.decode(arguments, reflect.ValueOf(&parameters).Elem(), true) {
				return nil, false, denied(DeniedUnfreezable, "unsupported_type", "the arguments are not those of the tool")
			}
			hasRun := false
			result, err := protected(context.WithValue(ctx, ranKey{}, &hasRun), parameters)
			return result, hasRun, err
		}, nil
	}}
}

// ToolSettings are the settings of a set of tools, registered as the actions of Tool.
type ToolSettings struct {
	Tool string
	// Reads names those that change nothing; every other one may.
	Reads []string
	// ResourceOf says what an action is on, from its name and its parameters, of which it gets a copy. Empty: none.
	ResourceOf func(action string, parameters map[string]any) string
	// TellModel makes a denial the tool's answer, for the model to read; otherwise it is an error.
	TellModel bool
	// More holds the settings that are alike for all of them; Tool, Action, ReadOnly, Resource and ResourceOf must be left empty.
	More Settings
}

// Tools is a set of protected tools.
type Tools struct {
	tellModel bool
	protected map[string]protectedTool
}

// ProtectTools protects a set of functions.
func ProtectTools(client *Client, settings ToolSettings, tools ...Tool) (*Tools, error) {
	more := settings.More
	if more.Tool != "" || more.Action != "" || more.ReadOnly || more.Resource != "" || more.ResourceOf != nil {
		return nil, misconfigured("More holds what is alike for all tools; name the tool, reads and resources beside it")
	}
	made := &Tools{settings.TellModel, map[string]protectedTool{}}
	for _, tool := range tools {
		if tool.protect == nil {
			return nil, misconfigured("make each tool with NewTool")
		}
		if _, twice := made.protected[tool.name]; twice {
			return nil, misconfigured("there are two tools %q", tool.name)
		}
		one := more
		one.Tool, one.Action, one.ReadOnly = settings.Tool, tool.name, slices.Contains(settings.Reads, tool.name)
		// Elsewhere only what reads may fail open, and only what reads may be said to.
		one.FailOpenReads = more.FailOpenReads && one.ReadOnly
		if of := settings.ResourceOf; of != nil {
			one.ResourceOf = func(parameters map[string]any) string { return of(tool.name, parameters) }
		}
		protected, err := tool.protect(client, one)
		if err != nil {
			return nil, fmt.Errorf("tool %q: %w", tool.name, err)
		}
		made.protected[tool.name] = protected
	}
	for _, name := range settings.Reads {
		if _, isThere := made.protected[name]; !isThere {
			return nil, misconfigured("there is no tool %q", name)
		}
	}
	return made, nil
}

// Names gives the names of the tools in order.
func (t *Tools) Names() []string {
	names := make([]string, 0, len(t.protected))
	for name := range t.protected {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Call calls a tool with arguments as a model wrote them: a JSON object, of which fields that are missing are zero and others are refused.
func (t *Tools) Call(ctx context.Context, name string, arguments []byte) (any, error) {
	result, hasRun, err := t.call(ctx, name, arguments)
	var refused *Denied
	if t.tellModel && !hasRun && errors.As(err, &refused) {
		return told(refused), nil
	}
	return result, err
}

func (t *Tools) call(ctx context.Context, name string, arguments []byte) (result any, hasRun bool, err error) {
	tool, isThere := t.protected[name]
	if !isThere {
		return nil, false, denied(DeniedByPolicy, "unknown_action", "there is no such tool")
	}
	value, err := parse(arguments, DefaultMaxBytes)
	if err != nil {
		return nil, false, unfreezable(err)
	}
	if _, isObject := value.(map[string]any); !isObject {
		return nil, false, denied(DeniedUnfreezable, "unsupported_type", "the arguments are no object")
	}
	return tool(ctx, value)
}

// told is a denial as a model may read it.
func told(refused *Denied) string {
	named := ""
	if refused.DecisionID != "" {
		named = fmt.Sprintf(" (decision %s)", refused.DecisionID)
	}
	return fmt.Sprintf("The call was denied: %s: %s%s", refused.Code, refused.Reason, named)
}
