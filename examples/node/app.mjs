// An app that verifies its users: /verify sends them to the hosted page, /webhook hears the result.
import { createServer } from "node:http";
import Stripe from "stripe";

const { STRIPE_URL, STRIPE_KEY, WEBHOOK_SECRET, PORT } = process.env;
const { protocol, hostname, port } = new URL(STRIPE_URL);
const stripe = new Stripe(STRIPE_KEY, { protocol: protocol.slice(0, -1), host: hostname, port });

createServer(async (request, response) => {
  if (request.url === "/verify") {
    const session = await stripe.identity.verificationSessions.create({ type: "document" });
    return response.writeHead(303, { Location: session.url }).end();
  }
  const body = await new Response(request).text();
  const event = stripe.webhooks.constructEvent(body, request.headers["stripe-signature"], WEBHOOK_SECRET);
  console.log(event.type, event.data.object.id);
  response.end();
}).listen(Number(PORT), "127.0.0.1");
