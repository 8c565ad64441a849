-- As Python has it (underway/options.py): a thousand years. To be compared, a year has 360 days and the parts are summed
-- up; what is short only since one part undoes another, as '292000 years -105110000 days', overflows when it is added.
create or replace function underway.checked_duration(option text, given interval) returns interval
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if given not between '0' and '365000 days'
        or abs(extract(year from given)) > 2000
        or abs(extract(day from given)) > 2000 * 365
        or abs(extract(hour from given)) > 2000 * 365 * 24
    then
        raise exception '% must lie between 0 and 365000 days, not %', option, given using errcode = 'UW002';
    end if;
    return given;
end
$$;
comment on function underway.checked_duration is 'the same duration; an error if no run can have it';
