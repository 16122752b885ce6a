// A set of tools as a model calls them: by name, with arguments that it wrote as text, and told of a denial.
package main

import (
	"context"
	"fmt"
	"log"

	aegisagent "github.com/aegisagent/aegisagent-go"
)

// Customer names one.
type Customer struct {
	ID string `json:"id"`
}

// Change is a customer's new address.
type Change struct {
	ID    string `json:"id"`
	Email string `json:"email"`
}

func readCustomer(_ context.Context, c Customer) (string, error) { return c.ID + " is a customer", nil }
func updateCustomer(_ context.Context, c Change) (string, error) {
	return c.ID + " has " + c.Email, nil
}

func main() {
	client, err := aegisagent.New(aegisagent.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	tools, err := aegisagent.ProtectTools(client,
		aegisagent.ToolSettings{Tool: "crm", Reads: []string{"read_customer"}, TellModel: true},
		aegisagent.NewTool("read_customer", readCustomer), aegisagent.NewTool("update_customer", updateCustomer))
	if err != nil {
		log.Fatal(err)
	}
	ctx := aegisagent.WithSourceTrust(context.Background(), aegisagent.UntrustedExternal)
	for _, call := range []struct{ name, arguments string }{
		{"read_customer", `{"id": "c-1"}`},
		{"update_customer", `{"id": "c-1", "email": "eve@example.test"}`},
		{"update_customer", `{"id": "c-1", "email": "dana@example.test", "email": "eve@example.test"}`},
	} {
		said, err := tools.Call(ctx, call.name, []byte(call.arguments))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(said)
	}
}
