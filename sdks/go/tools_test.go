package aegisagent_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	aegisagent "github.com/aegisagent/aegisagent-go"
	"github.com/aegisagent/aegisagent-go/internal/proof"
)

type customer struct {
	ID    string  `json:"id"`
	Email *string `json:"email"`
}

func toolsOf(t *testing.T, edge *fakeEdge, ran *[]any, settings aegisagent.ToolSettings) *aegisagent.Tools {
	t.Helper()
	tools, err := aegisagent.ProtectTools(clientTo(t, edge.URL), settings,
		aegisagent.NewTool("read", func(_ context.Context, p customer) (string, error) {
			*ran = append(*ran, p)
			return p.ID + " is a customer", nil
		}),
		aegisagent.NewTool("update", func(_ context.Context, p map[string]any) (int, error) {
			*ran = append(*ran, p)
			return len(p), nil
		}))
	must(t, err)
	return tools
}

func TestPlainFunctionsBecomeActionsByName(t *testing.T) {
	proof.Of(t, "adapter-functions")
	edge, ran, ctx := newFakeEdge(t), []any{}, context.Background()
	tools := toolsOf(t, edge, &ran, aegisagent.ToolSettings{
		Tool: "crm", Reads: []string{"read"}, ResourceOf: func(action string, p map[string]any) string { return action + ":" + p["id"].(string) },
	})
	equal(t, tools.Names(), []string{"read", "update"})
	result, err := tools.Call(ctx, "read", []byte(`{"id": "1"}`))
	must(t, err)
	equal(t, result, any("1 is a customer"))
	result, err = tools.Call(ctx, "update", []byte(`{"id": "2", "note": 1.0}`))
	must(t, err)
	equal(t, result, any(2))
	equal(t, ran, []any{customer{ID: "1"}, map[string]any{"id": "2", "note": 1.0}})
	sent := edge.sent("authorize")
	equal(t, sent[0]["tool_call"], any(map[string]any{
		"tool": "crm", "action": "read", "resource": "read:1", "mutates_state": false, "parameters": map[string]any{"id": "1", "email": nil},
	}))
	equal(t, sent[1]["tool_call"].(map[string]any)["mutates_state"], any(true))
	edge.decision = "deny"
	_, err = tools.Call(ctx, "update", []byte(`{"id": "3"}`))
	deniedAs(t, err, aegisagent.DeniedByPolicy, "policy_denied")
	equal(t, len(ran), 2)
}

func TestAModelIsToldOfNoDenialWhereTheToolRan(t *testing.T) {
	proof.Of(t, "adapter-functions")
	edge, ran := newFakeEdge(t), []any{}
	inner := toolsOf(t, edge, &ran, aegisagent.ToolSettings{Tool: "crm"})
	outer, err := aegisagent.ProtectTools(clientTo(t, edge.URL), aegisagent.ToolSettings{Tool: "crm", TellModel: true},
		aegisagent.NewTool("both", func(ctx context.Context, _ map[string]any) (any, error) {
			edge.decision = "deny"
			return inner.Call(ctx, "update", []byte(`{}`))
		}))
	must(t, err)
	_, err = outer.Call(context.Background(), "both", []byte(`{}`))
	deniedAs(t, err, aegisagent.DeniedByPolicy, "policy_denied")
	said, err := outer.Call(context.Background(), "both", []byte(`{}`))
	must(t, err)
	if text, _ := said.(string); !strings.HasPrefix(text, "The call was denied: policy_denied") {
		t.Fatal(said)
	}
	equal(t, len(ran), 0)
}

func TestArgumentsThatAModelWrotePassTheStrictDoor(t *testing.T) {
	proof.Of(t, "adapter-functions")
	edge, ran := newFakeEdge(t), []any{}
	tools := toolsOf(t, edge, &ran, aegisagent.ToolSettings{Tool: "crm"})
	for text, code := range map[string]string{
		`{"id":"1","id":"2"}`: "duplicate_key", `{"id":"\ud800"}`: "lone_surrogate", "{\"id\":\"\xff\"}": "invalid_utf8", `{"id":NaN}`: "non_finite_number",
		`{"id":9007199254740993}`: "integer_out_of_range", `{"id":"1"} {}`: "trailing_data", "": "syntax", `["1"]`: "unsupported_type", "null": "unsupported_type",
		`{"ID":"1"}`: "unsupported_type", `{"id":1}`: "unsupported_type", `{"id":"1","admin":true}`: "unsupported_type", `{"id":null}`: "unsupported_type",
	} {
		_, err := tools.Call(context.Background(), "read", []byte(text))
		deniedAs(t, err, aegisagent.DeniedUnfreezable, code)
	}
	_, err := tools.Call(context.Background(), "drop", []byte(`{}`))
	deniedAs(t, err, aegisagent.DeniedByPolicy, "unknown_action")
	equal(t, len(ran)+len(edge.seen()), 0)
}

func TestADenialIsTheToolsAnswerWhereTheModelIsTold(t *testing.T) {
	proof.Of(t, "adapter-functions")
	edge, ran := newFakeEdge(t), []any{}
	edge.decision = "deny"
	tools := toolsOf(t, edge, &ran, aegisagent.ToolSettings{Tool: "crm", TellModel: true})
	result, err := tools.Call(context.Background(), "read", []byte(`{"id":"1"}`))
	must(t, err)
	if text, _ := result.(string); !strings.HasPrefix(text, "The call was denied: policy_denied: because (decision ") {
		t.Fatal(result)
	}
	result, err = tools.Call(context.Background(), "read", []byte(`[`))
	must(t, err)
	equal(t, result, any("The call was denied: syntax: syntax"))
}

func TestToolsThatCannotBeSafeAreRefused(t *testing.T) {
	proof.Of(t, "adapter-functions", "protect-config")
	client := mustClient(t)
	tool := aegisagent.NewTool("read", func(context.Context, customer) (int, error) { return 0, nil })
	for name, one := range map[string]struct {
		settings aegisagent.ToolSettings
		tools    []aegisagent.Tool
	}{
		"a misspelt read": {aegisagent.ToolSettings{Tool: "crm", Reads: []string{"raed"}}, []aegisagent.Tool{tool}},
		"no tool":         {aegisagent.ToolSettings{}, []aegisagent.Tool{tool}}, "two of one name": {aegisagent.ToolSettings{Tool: "crm"}, []aegisagent.Tool{tool, tool}},
		"all of them reads": {aegisagent.ToolSettings{Tool: "crm", More: aegisagent.Settings{ReadOnly: true}}, []aegisagent.Tool{tool}},
		"none at all":       {aegisagent.ToolSettings{Tool: "crm"}, []aegisagent.Tool{{}}},
		"no plain fields":   {aegisagent.ToolSettings{Tool: "crm"}, []aegisagent.Tool{aegisagent.NewTool("a", func(context.Context, hiddenField) (int, error) { return 0, nil })}},
		"no name":           {aegisagent.ToolSettings{Tool: "crm"}, []aegisagent.Tool{aegisagent.NewTool("", func(context.Context, note) (int, error) { return 0, nil })}},
		"risky reads that fail open": {
			aegisagent.ToolSettings{Tool: "crm", Reads: []string{"read"}, More: aegisagent.Settings{FailOpenReads: true}}, []aegisagent.Tool{tool},
		},
	} {
		if _, err := aegisagent.ProtectTools(client, one.settings, one.tools...); !isConfigError(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOnlyReadsOfASetFailOpen(t *testing.T) {
	proof.Of(t, "adapter-functions", "fail-open")
	edge, ran := newFakeEdge(t), []any{}
	tools := toolsOf(t, edge, &ran, aegisagent.ToolSettings{
		Tool: "crm", Reads: []string{"read"}, More: aegisagent.Settings{FailOpenReads: true, Risk: aegisagent.RiskLow},
	})
	edge.always("authorize", serverErrors[503])
	_, err := tools.Call(context.Background(), "read", []byte(`{"id":"1"}`))
	must(t, err)
	_, err = tools.Call(context.Background(), "update", []byte(`{"id":"1"}`))
	if !errors.Is(err, aegisagent.DeniedUnavailable) {
		t.Fatal(err)
	}
	equal(t, len(ran), 1)
}
