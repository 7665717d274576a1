// What an old stripe-node does, against a sandbox. Arguments: the folder of the SDK, the address.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [folder, url] = process.argv.slice(2);
const Stripe = createRequire(`${folder}/`)("stripe");
const { hostname, port } = new URL(url);
const stripe = new Stripe("sk_test_old", { host: hostname, port, protocol: "http", telemetry: false });
const sessions = stripe.identity.verificationSessions;

const made = await sessions.create({
  type: "document",
  options: { document: { allowed_types: ["passport", "id_card"], require_matching_selfie: true } },
  metadata: { user: "a", count: 3, paying: true },
  expand: ["verified_outputs"],
});
assert.equal(made.options.document.require_matching_selfie, true);
assert.deepEqual(made.metadata, { user: "a", count: "3", paying: "true" });
const changed = await sessions.update(made.id, { metadata: { count: null, more: "x" } });
assert.deepEqual(changed.metadata, { user: "a", paying: "true", more: "x" });
const since = new Date(Date.now() - 3_600_000);
const found = [];
for await (const session of sessions.list({ limit: 2, created: { gte: Math.floor(since / 1000) } })) found.push(session.id);
assert.ok(found.includes(made.id));
const endpoint = await stripe.webhookEndpoints.create({ url: "http://127.0.0.1:9/", enabled_events: ["*"], connect: false });
assert.equal((await stripe.webhookEndpoints.update(endpoint.id, { disabled: true })).status, "disabled");
await stripe.webhookEndpoints.del(endpoint.id);
assert.equal((await sessions.cancel(made.id)).status, "canceled");
assert.equal((await sessions.redact(made.id)).redaction.status, "processing");
await assert.rejects(sessions.create({ type: "visa" }), { code: undefined, statusCode: 400 });
