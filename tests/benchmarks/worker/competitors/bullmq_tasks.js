// BullMQ as its users write it: a worker in one process, many jobs at once.
// With a number as argument it puts so many jobs in the queue instead.
const { Queue, Worker } = require("bullmq");

const redis = new URL(process.env.REDIS_URL);
const connection = { host: redis.hostname, port: Number(redis.port), maxRetriesPerRequest: null };

async function enqueue(count) {
  const queue = new Queue("events", { connection });
  for (let number = 0; number < count; number++) {
    await queue.add("process", { session: `vs_${String(number).padStart(24, "0")}` });
  }
  await queue.close();
}

function work() {
  const api = new URL(process.env.STRIPE_API_BASE);
  const stripe = require("stripe")("sk_test_benchmark", {
    host: api.hostname,
    port: api.port,
    protocol: "http",
  });
  const processEvent = async (job) => {
    const session = await stripe.identity.verificationSessions.retrieve(job.data.session, {
      expand: ["last_verification_report"],
    });
    if (session.status !== "verified") throw new Error(job.data.session);
  };
  const worker = new Worker("events", processEvent, { connection, concurrency: 50 });
  worker.on("failed", (job, error) => {
    console.error(error);
    process.exit(1);
  });
}

if (process.argv[2]) enqueue(Number(process.argv[2]));
else work();
