// Many goroutines on one client, each in a run and with a label of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"

	aegisagent "github.com/aegisagent/aegisagent-go"
)

// Update is what the function takes.
type Update struct {
	ID    string `json:"id"`
	Email string `json:"email"`
}

func update(_ context.Context, u Update) (string, error) {
	return fmt.Sprintf("%s has %s", u.ID, u.Email), nil
}

func main() {
	client, err := aegisagent.New(aegisagent.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	protected, err := aegisagent.Protect(client, aegisagent.Settings{
		Tool: "crm", Action: "update_customer", ResourceOf: func(p map[string]any) string { return p["id"].(string) },
	}, update)
	if err != nil {
		log.Fatal(err)
	}
	labels := []aegisagent.SourceTrust{aegisagent.TrustedInternalUnsigned, aegisagent.UntrustedExternal}
	var tickets sync.WaitGroup
	for number := range 10 {
		// Plain `go` keeps the label and run of the context that it is handed.
		ctx, err := aegisagent.WithRun(context.Background(), fmt.Sprintf("ticket-%d", number))
		if err != nil {
			log.Fatal(err)
		}
		ctx = aegisagent.WithSourceTrust(ctx, labels[number%2])
		tickets.Add(1)
		go func() {
			defer tickets.Done()
			said, err := protected(ctx, Update{fmt.Sprintf("customer-%d", number), "dana@example.test"})
			var denied *aegisagent.Denied
			if errors.As(err, &denied) {
				said = fmt.Sprintf("ticket %d: %s", number, denied.Code)
			}
			fmt.Println(said)
		}()
	}
	tickets.Wait()
}
