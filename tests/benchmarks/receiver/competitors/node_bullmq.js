// Node's own HTTP server, stripe's constructEvent, and BullMQ, which knows a job by the event's id.
const cluster = require("node:cluster");

if (cluster.isPrimary) {
  for (let i = 0; i < Number(process.env.WEB_CONCURRENCY); i++) cluster.fork();
  process.on("SIGTERM", () => process.exit(0)); // the workers end with their channel
} else {
  const http = require("node:http");
  const { Queue } = require("bullmq");
  const stripe = require("stripe")("sk_test_unused");
  const url = new URL(process.env.REDIS_URL);
  const queue = new Queue("events", {
    connection: { host: url.hostname, port: Number(url.port) },
  });

  http
    .createServer((request, response) => {
      const parts = [];
      request.on("data", (part) => parts.push(part));
      request.on("end", async () => {
        let event;
        try {
          event = stripe.webhooks.constructEvent(
            Buffer.concat(parts),
            request.headers["stripe-signature"],
            process.env.STRIPE_WEBHOOK_SECRET,
          );
        } catch {
          response.statusCode = 400;
          return response.end();
        }
        await queue.add("process", { id: event.id }, { jobId: event.id });
        response.end();
      });
    })
    .listen(Number(process.env.PORT), "127.0.0.1");
}
