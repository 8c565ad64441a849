-- A run knows the schedule that enqueued it: so a schedule whose runs must not overlap finds the one that is live.
-- oldest code: 1

alter table underway.run add column schedule underway.name;
comment on column underway.run.schedule is 'the name of the schedule, of the same job, that enqueued it';

create index run_schedule on underway.run (job, schedule) where schedule is not null;

comment on table underway.schedule is 'cron lines that enqueue runs; next_at is the slot that a schedule is waiting for';
