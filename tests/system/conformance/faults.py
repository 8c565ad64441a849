"""Faults of the original, known or mended there, and what shows that ours does not have them.

Read in its source and its issues (numbers with #) up to commit 89e9bf9, in the same words as checklist.py. Letters and
numbers only name the lines.
"""

from conformance.table import Line, held, no_place

_NO_ACTIVITIES = "there are no activities, and nothing is parked until something wakes it"

WEAK_POINTS: dict[str, Line] = {
    # It loses work.
    "A1": no_place("a wake-up that comes too early parks a run for ever", _NO_ACTIVITIES),
    "A2": held(
        "waiting rows that nobody ever looks at",
        "test_concurrency_keys::test_a_sweep_grants_a_key_that_became_free_unnoticed",
        "test_control::test_runs_that_no_living_supervisor_serves_are_stranded",
        why="what waits is due at some time, or in line for a key over which somebody sweeps",
    ),
    "A3": held(
        "a wake-up that breaks on a unique key",
        "test_unique_keys::test_a_run_keeps_its_unique_key_through_its_steps",
        "test_concurrency_keys::test_a_run_holds_its_key_through_retries_releases_and_lost_leases",
    ),
    "A4": held(
        "one budget for failures and for everything else",
        "test_verdict::test_a_release_is_free_however_often",
        "test_verdict::test_a_crash_is_charged_and_makes_a_suspect",
        "test_verdict::test_success_ends_the_run_or_takes_it_to_the_next_step",
    ),
    "A5": held("the ttl deletes what has not been done", "conformance/test_claim::test_a_live_run_outlives_its_keep"),
    "A6": held(
        "a step's key keeps out the run's own next step",
        "test_concurrency_keys::test_a_run_keeps_a_key_that_its_next_step_shares",
    ),
    "A7": held(
        "no failover of the scheduler",
        "test_schedules::test_every_slot_gives_one_run_however_often_supervisors_die",
    ),
    "A8": held(
        "a scheduler that ends for good",
        "test_schedules::test_a_running_supervisor_sees_changes",
        "test_schedules::test_what_cannot_be_fired_here_hinders_nothing",
        "conformance/test_scenarios::test_schedules_outlive_the_database_and_end_with_a_stop",
    ),
    "A9": held(
        "missed slots, and those in the gap of a clock change, are gone",
        "test_cron::test_which_slots_are_made_up_for",
        "test_cron::test_a_time_of_the_day_that_is_left_out_is_due_right_after_the_gap",
        "test_cron::test_a_line_for_every_hour_follows_real_time",
    ),
    "A10": held(
        "a cancel that the next step does not heed",
        "test_cancel::test_a_running_step_is_interrupted_and_its_run_ends_there",
        "test_cancel::test_a_next_step_claimed_by_the_same_commit_is_stopped_under_its_new_token",
        "test_run_affinity::test_a_run_with_a_cancel_request_is_not_kept",
    ),
    "A11": held(
        "steps that are renamed, moved or removed kill their runs",
        "test_client::test_runs_at_the_old_name_of_a_step_resume",
        "test_claims::test_runs_of_lanes_that_are_not_served_are_left_alone",
        "test_control::test_a_supervisor_warns_of_them_and_says_what_it_serves",
    ),
    "A12": held(
        "no error text of what fails at once",
        "test_client::test_results_attempts_and_errors_of_runs",
        "test_dead_letters::test_from_failure_to_redrive",
    ),
    "A13": held(
        "success without what the step has written",
        "test_transactions::test_writes_take_effect_with_the_hand_over_and_failures_leave_nothing",
        why="a step commits nothing itself: COMMIT in it is a failed attempt",
    ),
    # It runs things twice, or is stuck.
    "B1": held(
        "a lease as short as its renewal",
        "test_limits::test_a_step_that_holds_the_gil_for_three_leases_runs_once",
        "conformance/test_scenarios::test_commits_that_have_to_wait_hold_up_no_renewal",
    ),
    "B2": held(
        "renewals that wait for a connection",
        "conformance/test_scenarios::test_commits_that_have_to_wait_hold_up_no_renewal",
        "test_output::test_a_strangers_lock_on_one_run_lets_no_other_lease_lapse",
    ),
    "B3": held(
        "renewals that go on after the step",
        "conformance/test_scenarios::test_nothing_is_renewed_when_a_step_has_ended",
        "test_worker_deaths::test_every_deed_is_charged_to_its_own_attempt",
    ),
    "B4": held(
        "a lost lease of which the step never hears",
        "test_supervisor_death::test_a_supervisor_that_was_stopped_for_too_long_changes_nothing",
    ),
    "B5": held(
        "a lock that is not obtained burns an attempt",
        "test_concurrency_keys::test_a_locked_key_delays_only_its_own_runs",
        "conformance/test_claim::test_a_key_is_its_queues_own",
    ),
    "B6": held(
        "what crashes again and again is run for ever",
        "test_worker_deaths::test_a_run_that_keeps_killing_is_quarantined_with_evidence",
        "test_claims::test_reaching_max_crashes_quarantines_the_run",
        why=_NO_ACTIVITIES,
    ),
    "B7": held(
        "late writes without a fence",
        "test_fence::test_only_the_right_token_of_our_own_running_attempt_writes",
        "test_group_commit::test_nothing_of_a_lost_run_is_written",
    ),
    "B8": held(
        "two schedulers fire one slot",
        "test_schedules::test_of_many_at_the_same_moment_one_fires",
    ),
    "B9": held(
        "a clock that steps back fires a slot again",
        "test_schedules::test_a_slot_that_was_read_twice_is_fired_once",
        "test_schedules::test_the_hosts_clock_is_not_asked",
    ),
    # It starves or delays.
    "C1": held(
        "times that count from the beginning of the attempt",
        "conformance/test_claim::test_a_retry_counts_and_waits_from_the_attempts_end",
        "test_transactions::test_a_delay_counts_from_the_hand_over",
    ),
    "C2": held(
        "what becomes due is found by the next poll only",
        "test_service::test_a_retry_needs_no_poll",
        "test_claims::test_the_promoter_knows_how_long_to_sleep",
    ),
    "C3": held(
        "a batch starts one at a time",
        "test_limits::test_what_does_not_heed_the_interrupt_is_killed",
        "test_dispatch::test_short_tasks_are_pipelined_and_shared",
    ),
    "C4": held("low priorities starve", "test_claims::test_one_unit_of_priority_is_worth_one_minute_of_waiting"),
    "C5": held(
        "one slow piece of work blocks all others",
        "test_limits::test_a_long_task_never_blocks_those_handed_ahead_behind_it",
        why=_NO_ACTIVITIES,
    ),
    "C6": held(
        "a stop that is not heard while the database is down, or a schedule has no slot left",
        "test_shutdown::test_term_while_the_database_is_down",
        "test_schedules::test_what_is_wrong_is_said_at_the_call",
    ),
    "C7": held(
        "a stop waits as long as the first step may take",
        "test_shutdown::test_when_the_grace_is_over_steps_are_interrupted_then_killed",
    ),
    "C8": held(
        "what was notified while nobody listened waits for a poll",
        "test_listener::test_a_connection_that_breaks_while_idle_wakes_its_loop_and_listens_again",
        "test_listener::test_no_notification_is_missed_during_a_stream_of_statements",
    ),
    "C9": held(
        "a statement that fails is repeated without a pause",
        "conformance/test_scenarios::test_whatever_fails_at_once_makes_no_busy_loop",
    ),
    # It is slow.
    "D1": held(
        "a claim sorts the whole backlog",
        "test_plans::test_no_statement_reads_through_the_runs",
        "test_plans::test_a_claim_touches_few_pages_beside_a_hundred_times_the_backlog",
    ),
    "D2": held(
        "every claim sweeps first, without a bound",
        "test_claims::test_reaping_is_bounded_and_the_next_turn_continues",
    ),
    "D3": held(
        "one row a claim, and two commits a step",
        "test_claims::test_a_claim_takes_no_more_than_it_asked_for",
        "test_group_commit::test_several_groups_are_committed_completely",
        "test_service::test_the_next_step_needs_no_claim",
    ),
    "D4": held(
        "a transaction is open as long as a step runs",
        "conformance/test_scenarios::test_nothing_is_renewed_when_a_step_has_ended",
        "test_transactions::test_a_step_that_does_not_use_it_costs_no_connection",
        why="but for a step that uses cx.tx, which says so",
    ),
    "D5": held(
        "cancel reads through the table",
        "conformance/test_claim::test_cancelling_one_run_reads_no_other",
    ),
    "D6": held(
        "a notification for each row",
        "test_sql_enqueue::test_a_notification_only_when_a_supervisor_is_idle",
        "test_run_affinity::test_idle_supervisors_are_notified_only_of_runs_that_are_not_kept",
    ),
    "D7": held(
        "connections grow with what runs",
        "conformance/test_scenarios::test_connections_do_not_grow_with_the_workers",
    ),
    "D8": held(
        "deleting is one statement without a bound",
        "test_control::test_finished_runs_leave_with_their_attempts_when_their_keep_has_passed",
        "test_plans::test_no_statement_reads_through_the_runs",
    ),
    "D9": held(
        "finished rows stay in the hot table",
        "test_plans::test_a_claim_touches_few_pages_beside_a_hundred_times_the_backlog",
        "conformance/test_enqueue::test_policies_are_read_at_the_claim_and_not_at_enqueue",
    ),
    # It breaks, or cannot be asked.
    "E1": held(
        "a notification that nobody understands ends a worker (#130)",
        "conformance/test_scenarios::test_a_flood_of_strange_notifications_leaves_nothing_behind",
    ),
    "E2": held("an error of the database ends a loop", "test_shutdown::test_killed_connections_lose_nothing"),
    "E3": held(
        "no listing, status, result, wait, redrive, pause",
        "test_command_line_looks::test_list_shows_every_state_in_80_columns",
        "test_command_line_acts::test_a_paused_queue_starts_no_run_until_it_is_resumed",
        "test_client::test_get_run_from_another_app_object",
    ),
    "E4": held("one schedule for a queue", "test_schedules::test_a_job_has_several_schedules_by_name"),
    "E5": held(
        "the dead letter queue is known to one process",
        "test_dead_letters::test_a_queue_is_registered_and_changed_and_stays_paused",
    ),
    "E6": held(
        "options that are not checked",
        "test_options::test_a_bad_value_is_refused_where_it_is_given",
        "test_retry::test_each_bad_value_is_an_invalid_option",
    ),
    "E7": held(
        "an input that cannot be decoded takes minutes to fail",
        "conformance/test_scenarios::test_an_input_that_does_not_fit_is_a_failed_attempt",
    ),
    "E8": held(
        "another job under the same name is noticed at decoding",
        "test_job::test_two_jobs_of_one_name_are_refused",
    ),
}

MENDED: dict[str, Line] = {
    "1": held(
        "#117: back-off counted from the run's creation",
        "conformance/test_claim::test_a_retry_counts_and_waits_from_the_attempts_end",
    ),
    "2": held(
        "#120: handles were never collected",
        "conformance/test_scenarios::test_a_flood_of_strange_notifications_leaves_nothing_behind",
        "test_chaos::test_soak",
    ),
    "3": held(
        "#119: no fence",
        "test_fence::test_only_the_right_token_of_our_own_running_attempt_writes",
        "test_claims::test_a_reaped_run_refuses_its_late_owner_and_accepts_the_next",
    ),
    "4": held(
        "#121: new runs began where the last one stood",
        "conformance/test_enqueue::test_a_new_run_begins_at_the_first_step_whatever_others_are_doing",
    ),
    "5": held(
        "#107, #91: a listener that cannot connect spins",
        "conformance/test_scenarios::test_whatever_fails_at_once_makes_no_busy_loop",
    ),
    "6": held(
        "#107: retries in step",
        "test_retry::test_two_draws_differ",
        "conformance/test_claim::test_retries_of_many_are_spread",
    ),
    "7": held(
        "#139, #127: a dead letter with attempts could not be moved",
        "test_dead_letters::test_from_failure_to_redrive",
    ),
    "8": held(
        "#139, #61: out of attempts and in progress for ever",
        "test_claims::test_reaching_max_crashes_quarantines_the_run",
        "test_dead_letters::test_only_runs_that_failed_for_good_are_labelled",
    ),
    "9": held(
        "#139: a late success turned failed into succeeded",
        "conformance/test_claim::test_a_quarantined_run_refuses_its_late_owner",
    ),
    "10": held(
        "#138, #126: all slots of a schedule were one run",
        "conformance/test_schedule_calls::test_each_slot_has_a_run_of_its_own",
    ),
    "11": held(
        "#124: claims of what nobody here can do",
        "test_claims::test_runs_of_lanes_that_are_not_served_are_left_alone",
        "test_dispatch::test_a_task_goes_only_to_a_worker_whose_manifest_has_it",
    ),
    "12": no_place("#124: several unresolved calls in one step", _NO_ACTIVITIES),
    "13": no_place("#144: hand-written call keys", _NO_ACTIVITIES),
    "14": held(
        "#142: every task waits for a second connection",
        "conformance/test_scenarios::test_connections_do_not_grow_with_the_workers",
    ),
    "15": held(
        "#142: attempts were counted anew each time, states not checked",
        "test_fence::test_only_the_right_token_of_our_own_running_attempt_writes",
        "test_claims::test_a_claim_returns_the_columns_of_its_row",
    ),
    "16": held("#134: changes of a schedule were not seen", "test_schedules::test_a_running_supervisor_sees_changes"),
    "17": held(
        "#124: the next step and the success were two transactions",
        "test_stepping::test_a_supervisor_that_is_killed_between_two_steps",
        "test_ledger::test_money_moves_once",
        "test_transactions::test_a_worker_killed_between_its_commit_and_its_report_has_succeeded",
    ),
    "18": held(
        "#142: two claimers used one attempt number",
        "test_claims::test_tokens_grow_and_are_never_reused",
        "test_claims::test_concurrent_claims_take_every_run_exactly_once",
    ),
    "19": held("#107: a migration lost what was there", "test_migrate::test_an_upgrade_applies_only_what_is_missing"),
    "20": held(
        "#97, #128: a stop reaches everybody, or only one's own process",
        "test_control::test_one_supervisor_or_all_are_asked_to_stop_and_leave",
    ),
    # In its first line of releases.
    "21": held("#64: the heartbeat was not stored", "test_claims::test_a_claim_returns_the_columns_of_its_row"),
    "22": held(
        "#63: heartbeats after the end", "conformance/test_scenarios::test_nothing_is_renewed_when_a_step_has_ended"
    ),
    "23": held(
        "#59: a task longer than its heartbeat was cut off",
        "test_limits::test_a_step_that_holds_the_gil_for_three_leases_runs_once",
    ),
    "24": held(
        "#60: no limit to stale attempts",
        "test_claims::test_reaching_max_crashes_quarantines_the_run",
    ),
    "25": held("#54: the end was written to all attempts", "test_client::test_results_attempts_and_errors_of_runs"),
    "26": held("#55: progress could not be seen", "test_output::test_progress_is_seen_while_a_step_runs"),
    "27": held(
        "#67: cancel locked nothing", "test_cancel::test_a_cancel_waits_for_an_open_write_and_acts_on_its_result"
    ),
    "28": held(
        "#26, #30: who was not the scheduler ended the job",
        "test_schedules::test_of_many_at_the_same_moment_one_fires",
        "test_schedules::test_a_locked_schedule_holds_up_nobody",
    ),
    "29": held(
        "the scheduler's lock outlived its holder",
        "test_schedules::test_every_slot_gives_one_run_however_often_supervisors_die",
    ),
    "30": held(
        "#69: claims looked at all queues", "test_claims::test_runs_of_lanes_that_are_not_served_are_left_alone"
    ),
    "31": no_place(
        "#68, #75: primary keys without the queue in front", "a run is found by its id; lanes have an index"
    ),
    "32": held(
        "#11, #21, #44: its migrations among the application's",
        "test_migrate::test_an_empty_database_gets_the_schema_and_its_history",
    ),
    # Not mended there.
    "33": held(
        "#131: is a key to serialise or to make unique",
        "test_concurrency_keys::test_a_unique_key_and_a_concurrency_key_together",
    ),
    "34": held("#132: keys of all queues were one", "conformance/test_claim::test_a_key_is_its_queues_own"),
    "35": held("#149: error types that cannot be named", "test_public_api::test_errors_are_one_tree"),
    "36": no_place("#150: trace context", "not promised"),
    "37": held(
        "#151: connections for each workflow",
        "conformance/test_scenarios::test_connections_do_not_grow_with_the_workers",
    ),
}
