// A setter that somebody hangs on the prototype of all arrays takes what is put into a list: neither what is hashed nor what runs may lack it.

import assert from "node:assert/strict";

import { DeniedUnfreezable, protect } from "aegisagent";

import { DEFAULTS, withClient } from "./calling.mjs";
import { FakeEdge } from "./fake.mjs";
import { test } from "./feature.mjs";

/** Takes `stolen` wherever it is to become the first item of a list; all else goes its way. */
function steal(stolen) {
  Object.defineProperty(Array.prototype, 0, {
    configurable: true,
    get: () => undefined,
    set(value) {
      if (value !== stolen) Object.defineProperty(this, 0, { value, writable: true, enumerable: true, configurable: true });
    },
  });
}

async function withEdge(work) {
  const edge = await new FakeEdge().start();
  try {
    return await withClient(edge.url, async (client) => await work(edge, client));
  } finally {
    delete Array.prototype[0];
    await edge.close();
  }
}

test("protect-freeze", "a setter that comes between the approval and the run takes no argument", async () => {
  await withEdge(async (edge, client) => {
    edge.decision = "require_approval";
    edge.before.consume = () => {
      steal("order-7");
    };
    const ran = [];
    const refund = protect(client, { ...DEFAULTS, params: ["order", "amount", "...tags"] }, (...given) => {
      ran.push(given);
      return "done";
    });
    assert.equal(await refund("order-7", 5, "order-7", "b"), "done");
    assert.deepEqual(ran, [["order-7", 5, "order-7", "b"]]);
  });
});

test("protect-unfreezable", "an argument that a setter takes is a denial, and nothing is sent", async () => {
  await withEdge(async (edge, client) => {
    const ran = [];
    const refund = protect(client, DEFAULTS, (parameters) => ran.push(parameters));
    steal("a");
    await assert.rejects(refund({ tags: ["a", "b"] }), (error) => error instanceof DeniedUnfreezable && error.code === "unsupported_type");
    steal('"tags":["b"]');
    await assert.rejects(refund({ tags: ["b"] }), (error) => error instanceof DeniedUnfreezable && error.code === "unsupported_type");
    assert.deepEqual([ran, edge.seen], [[], []]);
  });
});
