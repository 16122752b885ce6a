// Many tasks on one client, each in a run and with a label of its own.

import { Client, Denied, protect, run, sourceTrust } from "aegisagent";

const client = new Client();

const updateCustomer = protect(client, { tool: "crm", action: "update_customer", resource: (p) => p.id }, async ({ id, email }) => `${id} has ${email}`);

async function handle(number, label) {
  try {
    console.log(await run(`ticket-${number}`, () => sourceTrust(label, () => updateCustomer({ id: `customer-${number}`, email: "dana@example.test" }))));
  } catch (error) {
    if (!(error instanceof Denied)) throw error;
    console.log(`ticket ${number}: ${error.code}`);
  }
}

const labels = Array.from({ length: 10 }, (_, number) => (number % 2 ? "untrusted_external" : "trusted_internal_unsigned"));
await Promise.all(labels.map((label, number) => handle(number, label)));
client.close();
