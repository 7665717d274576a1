// Express, stripe's constructEvent, and BullMQ, which knows a job by the event's id.
const cluster = require("node:cluster");

if (cluster.isPrimary) {
  for (let i = 0; i < Number(process.env.WEB_CONCURRENCY); i++) cluster.fork();
  process.on("SIGTERM", () => process.exit(0)); // the workers end with their channel
} else {
  const express = require("express");
  const { Queue } = require("bullmq");
  const stripe = require("stripe")("sk_test_unused");
  const url = new URL(process.env.REDIS_URL);
  const queue = new Queue("events", {
    connection: { host: url.hostname, port: Number(url.port) },
  });
  const app = express();

  app.post("/webhooks/stripe", express.raw({ type: "application/json" }), async (request, response) => {
    let event;
    try {
      event = stripe.webhooks.constructEvent(
        request.body,
        request.headers["stripe-signature"],
        process.env.STRIPE_WEBHOOK_SECRET,
      );
    } catch {
      return response.status(400).end();
    }
    await queue.add("process", { id: event.id }, { jobId: event.id });
    response.status(200).end();
  });
  app.listen(Number(process.env.PORT), "127.0.0.1");
}
