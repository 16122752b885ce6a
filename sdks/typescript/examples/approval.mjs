// A call that waits for a person, says so meanwhile, and runs as the person edited it, if they did.

import { Client, DeniedByApprover, onBehalfOf, protect, sourceTrust } from "aegisagent";

const client = new Client();

const tell = (pending) => {
  console.log(`waiting for the group ${pending.approver_group} until ${pending.expires_at}: approval ${pending.approval_id}`);
};

const settings = { tool: "crm", action: "refund", acceptEdits: true, onPending: tell, approvalTimeoutS: 60 };
const refund = protect(client, settings, async ({ amount }) => `refunded ${amount}`);

try {
  console.log(await sourceTrust("trusted_internal_unsigned", () => onBehalfOf("dev@example.test", () => refund({ amount: 5 }))));
} catch (error) {
  if (!(error instanceof DeniedByApprover)) throw error;
  console.log(`not done: ${error.reason}`);
}
client.close();
