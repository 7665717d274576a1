// A fixture for Node's test runner: a sandbox of the test's own, which ends with the test.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

// Starts `stripe-identity-sandbox serve` with these options. `test` is the context of a test.
export async function startSandbox(test, ...options) {
  const started = spawn("stripe-identity-sandbox", ["serve", "--port", "0", "--json", ...options], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(started, "spawn");
  test.after(() => started.kill());
  const lines = createInterface({ input: started.stdout });
  const [line] = await Promise.race([once(lines, "line"), once(lines, "close")]);
  if (!line) throw new Error(`The sandbox did not start with ${options}: see its stderr.`);
  const { url } = JSON.parse(line);
  // Calls a control route: control("sessions/vs_1/submit", { outcome: "document_expired" }).
  const control = async (path, body, method = "POST") => {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(`${url}/_sandbox/${path}`, { method, headers, body: JSON.stringify(body) });
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  };
  return { url, control, requests: () => control("requests", undefined, "GET") };
}
