import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createServer } from "node:net";
import { createInterface } from "node:readline";
import { once } from "node:events";
import test from "node:test";
import { startSandbox } from "./sandbox.mjs";

const WEBHOOK_SECRET = "whsec_local";

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
}

test("a user is refused, tries again and is verified", { timeout: 30_000 }, async (context) => {
  const port = await freePort();
  const app = `http://127.0.0.1:${port}`;
  const sandbox = await startSandbox(
    context, "--in-order", "--deliver-to", `${app}/webhook`, "--secret", WEBHOOK_SECRET,
  );
  const env = { ...process.env, STRIPE_URL: sandbox.url, STRIPE_KEY: "sk_test_x", WEBHOOK_SECRET, PORT: port };
  const running = spawn("node", ["app.mjs"], { env, stdio: ["ignore", "pipe", "inherit"] });
  context.after(() => running.kill());
  const heard = createInterface({ input: running.stdout })[Symbol.asyncIterator]();

  let sent;
  for (let tries = 0; !sent && tries < 100; tries++) {
    sent = await fetch(`${app}/verify`, { redirect: "manual" }).catch(() => null);
    if (!sent) await new Promise((again) => setTimeout(again, 50));
  }
  assert.equal(sent.status, 303);
  const page = await fetch(sent.headers.get("location"));
  assert.match(await page.text(), /Verify your identity/);

  const [asked] = await sandbox.requests();
  assert.deepEqual(asked.params, { type: "document" });
  const id = asked.answer.id;
  await sandbox.control(`sessions/${id}/submit`, { outcome: "document_expired" });
  await sandbox.control(`sessions/${id}/submit`, { outcome: "verified" });
  for (const change of ["created", "processing", "requires_input", "processing", "verified"]) {
    assert.equal((await heard.next()).value, `identity.verification_session.${change} ${id}`);
  }
});
