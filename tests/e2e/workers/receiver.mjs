// Verifies what is posted by the npm library of Standard Webhooks; the first message of an id is
// refused. Prints a line for each: node receiver.mjs NODE_MODULES PORT SECRET
import { createServer } from "node:http";
import { createRequire } from "node:module";

const [modules, port, secret] = process.argv.slice(2);
const { Webhook } = createRequire(`${modules}/`)("standardwebhooks");
const webhook = new Webhook(secret);
const seen = new Set();

createServer(async (request, response) => {
  const body = await new Response(request).text();
  const id = request.headers["webhook-id"];
  try {
    console.log(JSON.stringify({ id, again: seen.has(id), ...webhook.verify(body, request.headers) }));
    response.statusCode = seen.has(id) ? 204 : 503;
  } catch (error) {
    console.log(JSON.stringify({ id, error: error.message }));
    response.statusCode = 400;
  }
  seen.add(id);
  response.end();
}).listen(Number(port), "127.0.0.1", () => console.log("{}"));
