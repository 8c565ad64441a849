create or replace function underway.keeps_key(holds boolean, queue text, key text, next_queue text, next_key text)
returns boolean
language sql immutable
return holds and (next_queue is null or (next_queue = queue and next_key is not distinct from key));
comment on function underway.keeps_key is
    'whether a run takes its key along to its next step; a retry, which has no next queue, always does';
