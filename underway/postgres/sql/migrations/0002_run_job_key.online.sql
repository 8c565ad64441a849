-- Beside a million live runs, the cancel of five runs by their concurrency key read all of them: 115 ms instead of 0.1.
create index concurrently run_job_key on underway.run (job, concurrency_key) where concurrency_key is not null;
