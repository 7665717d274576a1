// What an old stripe-node does, against a sandbox. Arguments: the folder of the SDK, the address, and
// the lines of the page that make a client for it.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [folder, url, lines] = process.argv.slice(2);
const Stripe = createRequire(`${folder}/`)("stripe");
const stripe = new Function("Stripe", `${lines}; return stripe;`)(Stripe);
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

// What an SDK sends to addresses of its own comes here, too.
const file = { purpose: "dispute_evidence", file: { data: "x", name: "x.txt" } };
const elsewhere = [
  () => stripe.files.create(file),
  () => stripe.oauth.token({ grant_type: "authorization_code", code: "x" }),
  () => stripe.oauth.deauthorize({ client_id: "ca_x", stripe_user_id: "acct_1" }),
  ...(stripe.v2 ? [() => stripe.v2.billing.meterEventStream.create({ events: [] })] : []),
];
for (const send of elsewhere) await assert.rejects(send(), { message: /^Unrecognized request URL/ });
assert.ok(made.url.startsWith(url));
