package aegisagent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/aegisagent/aegisagent-go/internal/rfc3339"
)

const (
	pollGrowth  = 1.5
	longestPoll = 5 * time.Second
	// How much later than it seems an approval may end: a server counts whole seconds, or none, and then its clock may be behind ours.
	clockGrace = 5 * time.Second
	// An end beyond this is as good as none.
	longestWait = 10 * 365 * 24 * time.Hour
)

// approved waits for the approval and consumes it; the action that may run now.
func (g *guard) approved(ctx context.Context, action *FrozenAction, pending ApprovalRef) (*FrozenAction, error) {
	left, err := timeLeft(pending)
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(left + clockGrace)
	g.tell(ctx, pending)
	approval, err := g.decided(ctx, action, pending, g.sooner(end))
	if err != nil {
		return nil, err
	}
	approved := action
	if approval.ActionHash != action.hash {
		if approved, err = g.edited(action, approval); err != nil {
			return nil, err
		}
	}
	consumed, err := g.client.Consume(ctx, approval.ApprovalID, approved.hash)
	if err != nil {
		return nil, deniedBy(err, true)
	}
	if consumed != (Consumed{"consumed", approval.ApprovalID, approved.hash}) {
		return nil, unverified("action_hash_mismatch", "what was consumed is not what was asked for")
	}
	return approved, nil
}

// tell tells whoever wants to know. What they make of it decides nothing; what it panicked with may hold anything, and is not shown.
func (g *guard) tell(ctx context.Context, pending ApprovalRef) {
	if g.settings.OnPending == nil {
		return
	}
	defer func() {
		if recover() != nil {
			slog.Warn("aegisagent: OnPending panicked; the approval is waited for", "approval", pending.ApprovalID)
		}
	}()
	g.settings.OnPending(ctx, pending)
}

// decided looks at the approval until it is approved. Until then a 404 means that control has not seen it yet.
func (g *guard) decided(ctx context.Context, action *FrozenAction, pending ApprovalRef, end time.Time) (Approval, error) {
	heard, pause := time.Now(), g.client.pace.firstPoll
	for {
		approval, err := g.client.Approval(ctx, pending.ApprovalID)
		switch {
		case err == nil:
			if wrong := g.checkApproval(action, pending, approval); wrong != nil {
				return Approval{}, wrong
			}
			if approval.Status == "APPROVED" {
				return approval, nil
			}
			heard = time.Now()
		case isNotThereYet(err):
			heard = time.Now()
		case ctx.Err() != nil || !isAway(err) || time.Since(heard) > g.settings.unreachable():
			return Approval{}, deniedBy(err, false)
		}
		remaining := time.Until(end)
		if remaining <= 0 {
			return Approval{}, denied(DeniedByApprover, "approval_timeout", "nobody decided in time")
		}
		if cause := g.client.pace.sleep(ctx, min(g.client.pace.spreadOut(pause), remaining)); cause != nil {
			return Approval{}, deniedBy(noAnswer(cause), false)
		}
		pause = min(time.Duration(float64(pause)*pollGrowth), longestPoll)
	}
}

func isNotThereYet(err error) bool {
	var failure *RequestFailed
	return errors.As(err, &failure) && failure.Status == http.StatusNotFound && failure.Code == "approval_not_found"
}

func isAway(err error) bool {
	var failure *RequestFailed
	return errors.As(err, &failure) && (failure.Kind == Unreachable || failure.Status == 429 || failure.Status == 503)
}

// timeLeft is how long an approval stands: by the server's clock, or by ours where the server does not count it.
func timeLeft(pending ApprovalRef) (time.Duration, error) {
	ends, isTime := rfc3339.Microseconds(pending.ExpiresAt)
	if !isTime {
		return 0, unverified("bad_reply", "the approval's end is no time")
	}
	if pending.ExpiresIn != nil {
		return time.Duration(min(*pending.ExpiresIn, int64(longestWait/time.Second))) * time.Second, nil
	}
	left := max(-int64(longestWait/time.Microsecond), min(int64(longestWait/time.Microsecond), ends-time.Now().UnixMicro()))
	return time.Duration(left) * time.Microsecond, nil
}

// sooner is an end, or the one that the settings have from now, if that is sooner.
func (g *guard) sooner(end time.Time) time.Time {
	own := time.Now()
	switch g.settings.ApprovalTimeout {
	case 0:
		return end
	case LookOnce:
	default:
		own = own.Add(g.settings.ApprovalTimeout)
	}
	if own.Before(end) {
		return own
	}
	return end
}

// checkApproval is what every look at the approval must show. readApproval has held its hashes against its actions.
func (g *guard) checkApproval(action *FrozenAction, pending ApprovalRef, approval Approval) error {
	if approval.ApprovalID != pending.ApprovalID || approval.OriginalActionHash != action.hash {
		return unverified("action_hash_mismatch", "the approval is about another action than the one that was asked for")
	}
	switch approval.Status {
	case "PENDING", "APPROVED":
	case "REJECTED", "EXPIRED", "CONSUMED":
		return denied(DeniedByApprover, "approval_"+strings.ToLower(approval.Status), "the approval is "+approval.Status)
	default:
		return unverified("unknown_status", "the approval has a status that this version does not know")
	}
	if approval.ActionHash != action.hash && !g.settings.AcceptEdits {
		return denied(DeniedByApprover, "approval_edited", "the approver edited the action, and AcceptEdits is not set")
	}
	return nil
}

func (g *guard) edited(action *FrozenAction, approval Approval) (*FrozenAction, error) {
	edited, err := refreeze(action, approval.Current(), g.settings.resource)
	if err != nil {
		return nil, denied(DeniedByApprover, "approval_edited", "this function cannot run what the approver made of the action: "+err.Error())
	}
	if _, fits := g.thaw(edited); !fits {
		return nil, denied(DeniedByApprover, "approval_edited", "this function cannot be called with what the approver made of its parameters")
	}
	if edited.hash != approval.ActionHash {
		return nil, unverified("action_hash_mismatch", "the edited action is not the one that was approved")
	}
	return edited, nil
}
