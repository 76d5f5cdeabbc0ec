-- For wrk: submits jobs, then prints one line of JSON. TOKEN is the service's admin token, BATCH how many jobs are in each request,
-- PREFER what is preferred of the answers (RFC 7240).
wrk.method = "POST"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("TOKEN")
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Prefer"] = os.getenv("PREFER")
local job = '{"name": "bench", "command": ["true"], "config": {"train": {"learning_rate": 0.0002, "epochs": 3}}}'
local batch = tonumber(os.getenv("BATCH") or "1")
wrk.body = batch == 1 and job or "[" .. string.rep(job, batch, ", ") .. "]"

function done(summary, latency)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
