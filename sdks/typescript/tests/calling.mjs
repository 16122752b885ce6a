// Calling a protected function as the tests do.

import { Client, protect } from "aegisagent";

import { TOKEN } from "./fake.mjs";

export const DEFAULTS = { tool: "crm", action: "update_note", resource: "customer-1" };

/** A function to protect, which remembers what it was called with. */
export function recorder(result = "done") {
  const calls = [];
  const fn = (parameters) => {
    calls.push(parameters);
    return result;
  };
  return Object.assign(fn, { calls });
}

/** `work(client)` with a client of this server. Warnings are gathered in `client.warnings`. */
export async function withClient(url, work, settings = {}) {
  const warnings = [];
  const client = new Client({ url, token: TOKEN, onWarning: (message) => warnings.push(message), ...settings });
  try {
    return await work(client, warnings);
  } finally {
    client.close();
  }
}

/** Calls a protected function once. */
export async function call(url, fn, given = { note: "a" }, how = {}, settings = {}) {
  return await withClient(url, async (client) => await protect(client, { ...DEFAULTS, ...how }, fn)(given), settings);
}
