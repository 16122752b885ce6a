"""A call that waits for a person, says so meanwhile, and runs as the person edited it, if they did."""

from aegisagent import ApprovalRef, Client, DeniedByApprover, on_behalf_of, protect, source_trust


def tell(pending: ApprovalRef) -> None:
    print(f"waiting for the group {pending.approver_group} until {pending.expires_at}: approval {pending.approval_id}", flush=True)


with Client() as client:

    @protect(client, tool="crm", action="refund", accept_edits=True, on_pending=tell, approval_timeout_s=60)
    def refund(amount: int) -> str:
        return f"refunded {amount}"

    with source_trust("trusted_internal_unsigned"), on_behalf_of("dev@example.test"):
        try:
            print(refund(5))
        except DeniedByApprover as denied:
            print(f"not done: {denied.reason}")
