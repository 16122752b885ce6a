// A call that waits for a person, says so meanwhile, and runs as the person edited it, if they did.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	aegisagent "github.com/aegisagent/aegisagent-go"
)

// Refund is what the function takes.
type Refund struct {
	Amount int `json:"amount"`
}

func refund(_ context.Context, r Refund) (string, error) {
	return fmt.Sprintf("refunded %d", r.Amount), nil
}

func tell(_ context.Context, pending aegisagent.ApprovalRef) {
	fmt.Printf("waiting for the group %s until %s: approval %s\n", pending.ApproverGroup, pending.ExpiresAt, pending.ApprovalID)
}

func main() {
	client, err := aegisagent.New(aegisagent.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	protected, err := aegisagent.Protect(client, aegisagent.Settings{
		Tool: "crm", Action: "refund", AcceptEdits: true, OnPending: tell, ApprovalTimeout: time.Minute,
	}, refund)
	if err != nil {
		log.Fatal(err)
	}
	ctx := aegisagent.WithSourceTrust(context.Background(), aegisagent.TrustedInternalUnsigned)
	ctx, err = aegisagent.OnBehalfOf(ctx, aegisagent.User{ID: "dev@example.test"})
	if err != nil {
		log.Fatal(err)
	}
	said, err := protected(ctx, Refund{Amount: 5})
	switch {
	case errors.Is(err, aegisagent.DeniedByApprover):
		fmt.Println("not done:", err)
	case err != nil:
		log.Fatal(err)
	default:
		fmt.Println(said)
	}
}
