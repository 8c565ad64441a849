"""The tests of the original, one by one, and what holds each of them here.

The original is the Rust library underway by Max Countryman, read at its commit 89e9bf9: 84 test functions in src/.
Lines are numbered as they stand there, file by file. Its names: heartbeat is our lease, ttl our keep, dequeue our
claim, dead letter queue our dead-letter label, activity a step of its own.
"""

from conformance.table import Line, held, no_place

_READ_AT_CLAIM = "not in the row: read from the worker's manifest at each claim, so that a fix helps what is queued"
_NO_ACTIVITIES = (
    "there are no activities: what a step calls and waits for is the next step, what it emits is cx.enqueue"
)
_SLEEPS = "a helper of its tests; what sleeps until a slot here is tested as a whole"

_SECTIONS: dict[str, list[Line]] = {
    "migrations": [
        held(
            "sanity_check_run_migrations",
            "test_migrate::test_an_empty_database_gets_the_schema_and_its_history",
            "test_migrate::test_the_search_path_is_neither_used_nor_changed",
        ),
    ],
    "task and retry policy": [
        held("task_execution_success", "test_end_to_end::test_runs_flow_through_typed_steps"),
        held("task_execution_failure", "test_client::test_results_attempts_and_errors_of_runs"),
        held(
            "retry_policy_defaults",
            "test_public_api::test_the_retry_policys_defaults",
            "test_retry::test_the_default_doubles_up_to_a_minute",
        ),
        held("retry_policy_custom", "test_job::test_manifest_of_defaults_and_of_all_options"),
    ],
    "queue building and enqueue": [
        held("build_queue", "test_dead_letters::test_a_queue_is_registered_and_changed_and_stays_paused"),
        held(
            "build_queue_with_dlq",
            "test_dead_letters::test_the_declaration_of_a_queue_is_checked",
            "test_dead_letters::test_a_queue_is_registered_and_changed_and_stays_paused",
        ),
        held("enqueue_task", "test_client::test_enqueue_on_the_apps_own_connection"),
        held(
            "enqueue_task_with_retry",
            "conformance/test_enqueue::test_policies_are_read_at_the_claim_and_not_at_enqueue",
            "test_verdict::test_an_attempt_is_charged_and_backs_off",
            why=_READ_AT_CLAIM,
        ),
        held(
            "enqueue_task_with_timeout",
            "conformance/test_enqueue::test_policies_are_read_at_the_claim_and_not_at_enqueue",
            "test_limits::test_a_timeout_interrupts_the_step_which_may_clean_up",
            why=_READ_AT_CLAIM,
        ),
        held("enqueue_task_with_ttl", "test_client::test_a_run_is_placed_by_the_options_of_its_step"),
        held("enqueue_task_with_delay", "test_client::test_a_run_is_placed_by_the_options_of_its_step"),
        held(
            "enqueue_task_with_heartbeat",
            "test_claims::test_a_claim_returns_the_columns_of_its_row",
            why=_READ_AT_CLAIM,
        ),
        held(
            "enqueue_task_with_concurrency_key",
            "test_concurrency_keys::test_enqueue_waits_in_line_and_takes_no_lock",
        ),
        held("enqueue_task_with_priority", "test_client::test_a_run_is_placed_by_the_options_of_its_step"),
        held(
            "enqueue_after",
            "conformance/test_enqueue::test_what_is_given_for_one_run_replaces_what_the_step_says",
            why="a run's own delay replaces the step's; the original added the two",
        ),
        held(
            "enqueue_many_with_delay",
            "test_client::test_enqueue_many_keeps_the_order",
            "test_client::test_a_run_is_placed_by_the_options_of_its_step",
            "conformance/test_enqueue::test_what_is_given_for_one_run_replaces_what_the_step_says",
        ),
        held(
            "enqueue_many_with_mixed_config",
            "test_unique_keys::test_in_bulk_each_value_gets_its_run",
            why="the keys are each value's own; delay, priority and keep are given once for all values of a call",
        ),
    ],
    "dequeue and state changes": [
        held("dequeue_task", "test_claims::test_a_claim_returns_the_columns_of_its_row"),
        held("concurrent_dequeue", "test_claims::test_concurrent_claims_take_every_run_exactly_once"),
        held("dequeue_from_empty_queue", "conformance/test_claim::test_an_empty_table_gives_nothing"),
        held(
            "mark_task_in_progress",
            "test_claims::test_a_claim_returns_the_columns_of_its_row",
            "test_group_commit::test_an_attempt_that_never_started_leaves_no_row",
            why="the attempt's row is written once, at its end",
        ),
        held(
            "reschedule_task_for_retry", "conformance/test_claim::test_a_retry_counts_and_waits_from_the_attempts_end"
        ),
        held("retry_delay_is_respected", "conformance/test_claim::test_a_retry_counts_and_waits_from_the_attempts_end"),
        held(
            "mark_task_cancelled",
            "test_cancel::test_a_run_in_progress_is_marked_once_and_supervisors_are_notified",
            "test_cancel::test_an_outcome_after_the_cancel_ends_the_run_as_cancelled",
        ),
        held("mark_task_succeeded", "test_end_to_end::test_runs_flow_through_typed_steps"),
        held(
            "mark_task_failed",
            "test_client::test_results_attempts_and_errors_of_runs",
            "test_verdict::test_a_failure_fails_the_run_at_once",
        ),
        held(
            "update_task_failure",
            "conformance/test_claim::test_a_retry_counts_and_waits_from_the_attempts_end",
            "test_client::test_results_attempts_and_errors_of_runs",
        ),
        held(
            "move_task_to_dlq",
            "test_dead_letters::test_only_runs_that_failed_for_good_are_labelled",
            "test_dead_letters::test_from_failure_to_redrive",
            why="a label on the finished run; its attempts stay where they are",
        ),
    ],
    "queue schedules": [
        held("schedule", "test_schedules::test_a_schedule_waits_for_its_first_slot"),
        held(
            "schedule_twice",
            "test_schedules::test_saying_it_again_changes_what_is_different",
        ),
        held("task_schedule", "test_schedules::test_a_schedule_waits_for_its_first_slot"),
        held("task_schedule_without_schedule", "conformance/test_schedule_calls::test_a_job_without_a_schedule"),
        held("unschedule", "test_schedules::test_a_job_has_several_schedules_by_name"),
        held("unschedule_without_schedule", "conformance/test_schedule_calls::test_a_job_without_a_schedule"),
    ],
    "attempt history": [
        held(
            "verify_attempt_rows_for_success",
            "test_end_to_end::test_runs_flow_through_typed_steps",
            "conformance/test_claim::test_what_has_ended_is_not_claimed_again",
        ),
        held(
            "verify_attempt_rows_for_failure",
            "test_client::test_results_attempts_and_errors_of_runs",
            "conformance/test_claim::test_what_has_ended_is_not_claimed_again",
        ),
        held(
            "verify_attempt_rows_for_cancelled",
            "test_cancel::test_a_running_step_is_interrupted_and_its_run_ends_there",
            "conformance/test_claim::test_what_has_ended_is_not_claimed_again",
        ),
        held(
            "verify_attempt_rows_for_reschedule",
            "conformance/test_claim::test_the_attempts_of_a_run_stand_in_the_order_of_their_ends",
        ),
    ],
    "leases and fencing": [
        held("dequeue_stale_task", "test_claims::test_an_expired_lease_counts_as_a_crash_and_backs_off"),
        held(
            "stale_exhausted_task_is_terminalized",
            "test_claims::test_reaching_max_crashes_quarantines_the_run",
        ),
        held(
            "stale_exhausted_task_moves_to_dlq",
            "test_dead_letters::test_only_runs_that_failed_for_good_are_labelled",
        ),
        held(
            "stale_terminalization_fences_late_mark_succeeded",
            "conformance/test_claim::test_a_quarantined_run_refuses_its_late_owner",
        ),
        held(
            "task_row_update_fenced_after_reclaim",
            "test_claims::test_a_reaped_run_refuses_its_late_owner_and_accepts_the_next",
            "test_fence::test_only_the_right_token_of_our_own_running_attempt_writes",
        ),
    ],
    "worker": [
        held("process_next_task", "test_end_to_end::test_runs_flow_through_typed_steps"),
        held("process_retries", "test_client::test_results_attempts_and_errors_of_runs"),
        held(
            "fenced_attempts_ignore_stale_workers",
            "test_claims::test_a_reaped_run_refuses_its_late_owner_and_accepts_the_next",
            "test_supervisor_death::test_a_supervisor_that_was_stopped_for_too_long_changes_nothing",
        ),
        held(
            "gracefully_shutdown",
            "test_shutdown::test_the_first_signal_drains",
            "test_control::test_one_supervisor_or_all_are_asked_to_stop_and_leave",
        ),
        held(
            "heartbeat_stops_after_task_completion",
            "test_limits::test_a_step_that_holds_the_gil_for_three_leases_runs_once",
            "test_claims::test_a_task_committed_during_its_renewal_is_not_lost",
            "conformance/test_scenarios::test_nothing_is_renewed_when_a_step_has_ended",
        ),
        held(
            "reap_completed_drains_joinset",
            "test_chaos::test_soak",
            "conformance/test_scenarios::test_nothing_is_renewed_when_a_step_has_ended",
            why="no set of handles; what could grow is memory, files and threads of the supervisor",
        ),
    ],
    "scheduler": [
        held(
            "zoned_schedule_creation_valid",
            "test_cron::test_what_lines_mean",
            "test_cron::test_a_text_is_a_line_and_perhaps_a_zone",
            why="five fields as in crontab(5), not seven",
        ),
        held("zoned_schedule_creation_invalid_cron", "test_cron::test_what_is_no_schedule"),
        held("zoned_schedule_creation_invalid_time_zone", "test_cron::test_what_is_no_schedule"),
        held("zoned_schedule_parses", "test_cron::test_a_text_is_a_line_and_perhaps_a_zone"),
        held("wait_until_past_time", "test_cron::test_which_slots_are_made_up_for", why=_SLEEPS),
        held("wait_until_exact_time", "test_schedules::test_a_running_supervisor_sees_changes", why=_SLEEPS),
        held("wait_until_future_time", "test_service::test_a_slot_needs_no_poll", why=_SLEEPS),
    ],
    "workflow basics": [
        held("one_step", "test_client::test_enqueue_on_the_apps_own_connection"),
        held("one_step_named", "test_job::test_methods_callable_objects_and_partials_are_steps"),
        held("one_step_with_state", "test_state::test_a_state_is_made_once_in_each_worker_and_kept"),
        held("one_step_with_state_named", "test_state::test_a_state_is_made_once_in_each_worker_and_kept"),
        held(
            "one_step_with_mutable_state",
            "test_state::test_a_state_is_made_once_in_each_worker_and_kept",
            why="each worker process has its own",
        ),
        held("one_step_enqueue", "test_client::test_enqueue_on_the_apps_own_connection"),
        held(
            "one_step_context_attributes",
            "test_client::test_results_attempts_and_errors_of_runs",
            "test_attempts::test_each_step_sees_its_own_run_deadline_and_log",
            "test_public_api::test_what_a_step_sees",
            why="a step is known by its name; it has no index",
        ),
        held("enqueue_many", "test_client::test_enqueue_many_keeps_the_order"),
        held("enqueued_workflow_cancel", "test_client::test_cancel_before_it_runs"),
    ],
    "multi-step and step config": [
        held(
            "multi_step",
            "test_end_to_end::test_runs_flow_through_typed_steps",
            "test_stepping::test_the_steps_of_a_run_follow_each_other",
        ),
        held("multi_step_with_state", "test_state::test_a_state_is_made_once_in_each_worker_and_kept"),
        held(
            "multi_step_retry_policy",
            "test_run_affinity::test_a_group_may_keep_some_of_its_runs_each_under_its_own_policy",
            "test_examples::test_a_failing_email_does_not_render_the_receipt_again",
            why="one row and one id for all steps of a run",
        ),
        held(
            "multi_step_enqueue",
            "conformance/test_enqueue::test_a_new_run_begins_at_the_first_step_whatever_others_are_doing",
        ),
        held(
            "step_task_config",
            "test_job::test_manifest_of_defaults_and_of_all_options",
            "test_client::test_a_run_is_placed_by_the_options_of_its_step",
        ),
        held(
            "step_config_is_per_workflow_run",
            "conformance/test_enqueue::test_a_new_run_begins_at_the_first_step_whatever_others_are_doing",
        ),
    ],
    "workflow schedules": [
        held("one_step_schedule", "test_schedules::test_a_schedule_waits_for_its_first_slot"),
        held("schedule", "test_schedules::test_a_job_has_several_schedules_by_name"),
        held("unschedule", "test_schedules::test_a_job_has_several_schedules_by_name"),
        held("unschedule_without_schedule", "conformance/test_schedule_calls::test_a_job_without_a_schedule"),
        held(
            "scheduled_dispatch_regenerates_workflow_run_id",
            "conformance/test_schedule_calls::test_each_slot_has_a_run_of_its_own",
        ),
    ],
    "activities in steps": [
        no_place("call_suspends_and_persists_activity_intent", f"{_NO_ACTIVITIES}; nothing is ever parked"),
        held(
            "emit_not_persisted_on_retryable_failure",
            "test_client::test_runs_enqueued_by_a_step_exist_only_if_the_step_succeeded",
            why=_NO_ACTIVITIES,
        ),
        held(
            "emit_persisted_on_success",
            "test_group_commit::test_children_appear_exactly_with_the_commit_of_their_parent",
            why=_NO_ACTIVITIES,
        ),
        no_place("second_call_after_suspension_is_rejected", f"{_NO_ACTIVITIES}; a step hands over once"),
    ],
    "runtime": [
        held("call_suspends_then_resumes", "test_end_to_end::test_runs_flow_through_typed_steps", why=_NO_ACTIVITIES),
        held(
            "runtime_does_not_claim_unregistered_activity_calls_on_shared_queue",
            "test_claims::test_runs_of_lanes_that_are_not_served_are_left_alone",
            "test_stepping::test_a_run_goes_on_where_its_next_queue_is_served",
            why=_NO_ACTIVITIES,
        ),
        held(
            "runtime_reclaims_stale_in_progress_activity_calls",
            "test_supervisor_death::test_nothing_outlives_a_killed_supervisor_and_another_finishes_its_work",
            why=_NO_ACTIVITIES,
        ),
    ],
}

CHECKLIST = {
    f"{number}": line for number, line in enumerate((line for section in _SECTIONS.values() for line in section), 1)
}
SIZES = {section: len(lines) for section, lines in _SECTIONS.items()}

# What no test of the original touches.
_GAPS: list[Line] = [
    held(
        "timeout path",
        "test_limits::test_a_timeout_interrupts_the_step_which_may_clean_up",
        "test_limits::test_what_does_not_heed_the_interrupt_is_killed",
    ),
    held("fatal error path", "test_client::test_results_attempts_and_errors_of_runs"),
    held("unique violation of keys", "test_unique_keys::test_sixteen_racing_sessions_create_one_run_per_key"),
    held(
        "advisory-lock contention",
        "test_concurrency_keys::test_a_locked_key_delays_only_its_own_runs",
    ),
    held("dead letters by way of the worker", "test_dead_letters::test_from_failure_to_redrive"),
    held("scheduler: dispatch", "test_schedules::test_every_step_and_attempt_knows_its_slot"),
    held("scheduler: one of many", "test_schedules::test_of_many_at_the_same_moment_one_fires"),
    held("scheduler: shutdown", "conformance/test_scenarios::test_schedules_outlive_the_database_and_end_with_a_stop"),
    held("scheduler: reconnect", "conformance/test_scenarios::test_schedules_outlive_the_database_and_end_with_a_stop"),
    held("scheduler: change while it runs", "test_schedules::test_a_running_supervisor_sees_changes"),
    held(
        "deletion after ttl",
        "test_control::test_finished_runs_leave_with_their_attempts_when_their_keep_has_passed",
        "test_control::test_a_supervisor_removes_them_by_itself",
    ),
    held(
        "priority order",
        "test_claims::test_one_unit_of_priority_is_worth_one_minute_of_waiting",
        "test_claims::test_runs_are_claimed_in_the_order_of_their_rank",
    ),
    held(
        "delay of a transition",
        "test_client::test_results_attempts_and_errors_of_runs",
        "test_transactions::test_a_delay_counts_from_the_hand_over",
    ),
    held(
        "cancel in other states",
        "test_cancel::test_a_running_step_is_interrupted_and_its_run_ends_there",
        "test_claims::test_cancelling_a_run_that_is_not_running_closes_it_at_once",
        "test_client::test_cancel_while_it_runs_or_afterwards",
    ),
    held("panic", "test_worker_deaths::test_every_deed_is_charged_to_its_own_attempt"),
    held(
        "reconnect",
        "test_shutdown::test_killed_connections_lose_nothing",
        "test_shutdown::test_work_goes_on_by_itself_when_the_database_has_restarted",
    ),
    held("jitter range", "test_retry::test_the_wait_lies_in_the_share_that_jitter_leaves"),
    no_place("activity retry, timeout, failure", _NO_ACTIVITIES),
    no_place("emit and call together", _NO_ACTIVITIES),
    held("shutdown timeout", "test_shutdown::test_when_the_grace_is_over_steps_are_interrupted_then_killed"),
    held(
        "process kill",
        "test_worker_deaths::test_workers_killed_at_random_cost_only_what_they_ran",
        "test_supervisor_death::test_nothing_outlives_a_killed_supervisor_and_another_finishes_its_work",
    ),
    held("more than one process", "test_supervisor_death::test_two_supervisors_share_the_work"),
]

GAPS = {line.name: line for line in _GAPS}
