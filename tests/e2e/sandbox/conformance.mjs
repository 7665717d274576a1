// The sandbox seen through Stripe's own Node SDK. Arguments: the folder that holds the SDK, the
// sandbox's address, the address and secrets of a listener that keeps what it was sent.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [folder, url, inbox, secret, thinSecret] = process.argv.slice(2);
const Stripe = createRequire(`${folder}/`)("stripe");
const { hostname, port } = new URL(url);
const connect = (key, options = {}) =>
  new Stripe(key, { host: hostname, port, protocol: "http", telemetry: false, ...options });
const stripe = connect("sk_test_node");
const sessions = stripe.identity.verificationSessions;
const reports = stripe.identity.verificationReports;
const type = "identity.verification_session";

const control = async (path, body = {}) => {
  const answer = await fetch(`${url}/_sandbox/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  assert.equal(answer.status, 200, await answer.clone().text());
  return answer.json();
};
const collect = async (list) => {
  const found = [];
  for await (const one of list) found.push(one);
  return found;
};

const tests = {
  async "the eight operations"() {
    const session = await sessions.create({
      type: "document",
      metadata: { user: "é 1" },
      options: { document: { allowed_types: ["passport"], require_matching_selfie: true } },
    });
    assert.equal(session.status, "requires_input");
    assert.equal(session.metadata.user, "é 1");
    assert.deepEqual(session.options.document.allowed_types, ["passport"]);
    assert.equal((await sessions.retrieve(session.id)).url, session.url);
    const updated = await sessions.update(session.id, { metadata: { user: "" } });
    assert.deepEqual({ ...updated.metadata }, {});
    assert.equal((await sessions.list({ limit: 1 })).data[0].id, session.id);
    await control(`sessions/${session.id}/submit`, { outcome: "selfie_face_mismatch" });
    assert.equal((await sessions.retrieve(session.id)).last_error.code, "selfie_face_mismatch");
    await control(`sessions/${session.id}/submit`);
    const verified = await sessions.retrieve(session.id, {
      expand: ["last_verification_report", "verified_outputs"],
    });
    assert.equal(verified.status, "verified");
    assert.equal(verified.last_verification_report.selfie.status, "verified");
    assert.ok(verified.verified_outputs.first_name);
    const report = await reports.retrieve(verified.last_verification_report.id);
    assert.equal(report.verification_session, session.id);
    assert.equal((await reports.list({ verification_session: session.id })).data.length, 2);
    assert.equal((await sessions.redact(session.id)).redaction.status, "processing");
    const other = await sessions.create({ type: "id_number" });
    assert.equal((await sessions.cancel(other.id)).status, "canceled");
  },

  async "auto-paging both ways"() {
    const made = [];
    for (let n = 0; n < 5; n += 1) {
      made.push((await sessions.create({ type: "document", client_reference_id: "node" })).id);
    }
    const filters = { client_reference_id: "node", limit: 2 };
    const forward = await collect(sessions.list(filters));
    assert.deepEqual(forward.map((one) => one.id), [...made].reverse());
    const backward = await collect(sessions.list({ ...filters, ending_before: made[0] }));
    assert.deepEqual(backward.map((one) => one.id), made.slice(1));
    const since = { created: { gte: 1, lt: 99999999999 }, status: "requires_input", ...filters };
    assert.equal((await sessions.list(since)).data.length, 2);
  },

  async "errors"() {
    const fails = async (promise, kind, fields) => {
      const error = await promise.then(() => assert.fail("no error"), (error) => error);
      assert.equal(error.type, kind);
      for (const [name, value] of Object.entries(fields)) assert.equal(error[name], value, name);
      assert.match(error.requestId, /^req_/);
    };
    await fails(sessions.create({}), "StripeInvalidRequestError", {
      statusCode: 400, code: "parameter_missing", param: "type",
    });
    await fails(sessions.retrieve("vs_none"), "StripeInvalidRequestError", {
      statusCode: 404, code: "resource_missing",
    });
    await fails(connect("nonsense").events.list(), "StripeAuthenticationError", { statusCode: 401 });
    const session = await sessions.create({ type: "document" });
    await control(`sessions/${session.id}/submit`);
    await fails(sessions.cancel(session.id), "StripeInvalidRequestError", { statusCode: 400 });
    await fails(
      sessions.retrieve(session.id, { expand: ["verified_outputs.dob"] }),
      "StripePermissionError",
      { statusCode: 403 },
    );
    const seen = await connect("rk_test_node").identity.verificationSessions.retrieve(session.id, {
      expand: ["verified_outputs.dob"],
    });
    assert.equal(seen.verified_outputs.dob.year, 1990);
    await control("faults", { kind: "rate_limit", next: 1 });
    await fails(sessions.list(), "StripeRateLimitError", { statusCode: 429, code: "rate_limit" });
  },

  async "idempotent retries"() {
    const once = { idempotencyKey: `node-${Date.now()}` };
    const first = await sessions.create({ type: "document" }, once);
    const again = await sessions.create({ type: "document" }, once);
    assert.equal(first.id, again.id);
    const mismatch = sessions.create({ type: "id_number" }, once);
    await assert.rejects(mismatch, { type: "StripeIdempotencyError" });
    // The answer is lost twice, and the SDK asks again with the same key by itself.
    await control("faults", { kind: "error", status: 503, after: true, next: 2 });
    const retried = await sessions.create({ type: "document", client_reference_id: "lost" });
    const found = await sessions.list({ client_reference_id: "lost" });
    assert.deepEqual(found.data.map((one) => one.id), [retried.id]);
  },

  async "connected accounts"() {
    const there = { stripeAccount: "acct_node" };
    const session = await sessions.create({ type: "document" }, there);
    assert.equal((await sessions.retrieve(session.id, {}, there)).id, session.id);
    await assert.rejects(sessions.retrieve(session.id), { statusCode: 404 });
    assert.equal((await stripe.events.list({}, there)).data[0].account, "acct_node");
  },

  async "both forms of every delivery"() {
    const kept = await (await fetch(inbox)).json();
    assert.ok(kept.length > 20, `${kept.length} deliveries`);
    let thin = 0;
    for (const { path, signature, body } of kept) {
      if (path === "/thin") {
        const notification = stripe.parseEventNotification(body, signature, thinSecret);
        assert.match(notification.type, /^v1\.identity\.verification_session\./);
        thin += 1;
        if (thin > 5) continue;
        const session = await notification.fetchRelatedObject();
        assert.equal(session.id, notification.related_object.id);
        const full = await notification.fetchEvent();
        const there = notification.context ? { stripeAccount: String(notification.context) } : {};
        const snapshot = await stripe.events.retrieve(full.snapshot_event, {}, there);
        assert.equal(snapshot.data.object.id, session.id);
      } else {
        const event = stripe.webhooks.constructEvent(body, signature, secret);
        assert.ok(event.type.startsWith(type));
        assert.equal(event.data.object.object, type);
      }
    }
    assert.ok(thin > 5);
  },

  async "webhook endpoints"() {
    const made = await stripe.webhookEndpoints.create({
      url: "http://127.0.0.1:9/",
      enabled_events: [`${type}.redacted`],
    });
    assert.match(made.secret, /^whsec_/);
    assert.equal((await stripe.webhookEndpoints.retrieve(made.id)).secret, undefined);
    const disabled = await stripe.webhookEndpoints.update(made.id, { disabled: true });
    assert.equal(disabled.status, "disabled");
    assert.ok((await stripe.webhookEndpoints.del(made.id)).deleted);
  },
};

for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(`ok ${name}`);
}
// The SDK keeps connections open for the next call, and Node would wait for them.
process.exit(0);
