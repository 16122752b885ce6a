package aegisagent

import (
	"context"
	"log/slog"
	"net/http"
	"reflect"
)

// Protect makes of a function one that runs only as it was authorized, as the registered action settings.Tool/settings.Action.
//
// P is a struct of exported plain fields (bool, integers, float64, string, pointers to them, and structs, maps with string keys, slices
// and any of plain JSON), named by their json tags, or a map with string keys such as map[string]any. What cannot be frozen exactly is a
// [*ConfigError] here. The parameters are frozen, hashed and sent; what the function gets, if it runs, is a P made anew from the frozen
// text. Everything else is a [*Denied]. The context and what the function closes over are passed on as they are, neither hashed nor seen
// by policy, so they must not decide what the function does. R is no channel, function, stream or iterator, and holds none.
func Protect[P, R any](
	client *Client, settings Settings, function func(context.Context, P) (R, error),
) (func(context.Context, P) (R, error), error) {
	if function == nil {
		return nil, misconfigured("there is no function to protect")
	}
	guard, err := newGuard(client, settings, reflect.TypeFor[P](), reflect.TypeFor[R]())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, parameters P) (R, error) {
		var none R
		action, err := guard.freeze(reflect.ValueOf(&parameters).Elem())
		if err != nil {
			return none, err
		}
		cleared, err := guard.clear(ctx, action)
		if err != nil {
			return none, err
		}
		fresh, fits := guard.thaw(cleared.action)
		if !fits {
			return none, unverified("action_hash_mismatch", "what was frozen cannot be read back")
		}
		return run(ctx, guard, cleared, function, fresh.Interface().(P))
	}, nil
}

// MustProtect is [Protect] for a program that cannot go on without the function.
func MustProtect[P, R any](
	client *Client, settings Settings, function func(context.Context, P) (R, error),
) func(context.Context, P) (R, error) {
	protected, err := Protect(client, settings, function)
	if err != nil {
		panic(err)
	}
	return protected
}

// run calls the function and reports what came of it: also where it panics, which goes on as it came.
func run[P, R any](
	ctx context.Context, guard *guard, cleared clearance, function func(context.Context, P) (R, error), parameters P,
) (R, error) {
	var none R
	// What does not come back (a panic, runtime.Goexit) was broken off.
	status, output := OutcomeAmbiguous, any(nil)
	defer func() { guard.report(ctx, cleared, status, output) }()
	result, err := function(ctx, parameters)
	value := reflect.ValueOf(&result).Elem()
	isLater := isLazy(value)
	switch {
	case isLater && err == nil:
		return none, &LazyResult{}
	case isLater:
		return none, err
	case err != nil && ctx.Err() != nil:
		// Broken off by its caller: an error then says nothing about what took effect.
		return result, err
	case err != nil:
		status = OutcomeError
		return result, err
	default:
		status, output = OutcomeOK, guard.outputOf(value, cleared)
		return result, nil
	}
}

func (g *guard) outputOf(result reflect.Value, cleared clearance) any {
	if g.output == nil {
		return nil
	}
	output, err := g.output.encode(result, "the output", parametersDepth, &budget{maxBodyBytes})
	if err != nil {
		slog.Warn("aegisagent: an output is not reported", "decision", cleared.decisionID, "why", err.Error())
		return nil
	}
	return output
}

// report reports an outcome, also of a call that is being cancelled. The run cannot be undone, so a failure is logged and no more.
func (g *guard) report(ctx context.Context, cleared clearance, status OutcomeStatus, output any) {
	if cleared.decisionID == "" {
		return
	}
	body := JSON{"status": string(status), "executed_hash": cleared.action.hash, "request_id": freshRequestID()}
	if output != nil {
		body["output"] = output
	}
	path, err := pathOf("v1", "decisions", cleared.decisionID, "outcome")
	if err == nil {
		asked := request[Outcome]{
			method: http.MethodPost, path: path, body: appendJSON(nil, body, appendExactDouble),
			expect: []int{http.StatusCreated}, read: readOutcome,
		}
		_, err = exchange(context.WithoutCancel(ctx), g.client, asked, reportTimeout)
	}
	if err != nil {
		slog.Warn("aegisagent: an outcome is not reported", "decision", cleared.decisionID, "why", err.Error())
	}
}
