// Work in other threads: a thread that takes the label of where it was made, and a pool whose tasks bring theirs along.

import { isMainThread, parentPort } from "node:worker_threads";

import { carriedIn, carry, Client, ContextWorker, currentTrust, Denied, protect, run, sourceTrust } from "aegisagent";

/** What a thread does with a task. */
async function update(client, id) {
  const work = protect(client, { tool: "crm", action: "update_customer", resource: (p) => p.id }, async (p) => `${p.id} is updated`);
  try {
    return await work({ id });
  } catch (error) {
    if (!(error instanceof Denied)) throw error;
    return `${id}: ${error.code}`;
  }
}

if (isMainThread) {
  const worker = run("threads", () => sourceTrust("trusted_internal_unsigned", () => new ContextWorker(new URL(import.meta.url))));
  // A task brings the label of where it was given; the stricter of that and the thread's own holds.
  worker.postMessage({ id: "customer-1", context: carry() });
  worker.postMessage({ id: "customer-2", context: sourceTrust("untrusted_external", () => run("tainted", carry)) });
  let open = 2;
  worker.on("message", (said) => {
    console.log(said);
    open -= 1;
    if (open === 0) worker.postMessage(null);
  });
} else {
  const client = new Client();
  parentPort.on("message", async (task) => {
    if (task === null) {
      client.close();
      parentPort.close();
      return;
    }
    const said = await carriedIn(task.context, async () => `${currentTrust()}: ${await update(client, task.id)}`);
    parentPort.postMessage(said);
  });
}
