//! What a device promises beyond operators: memory, streams, events, poison, capture, kinds of errors.
//!
//! [`for_each_contract!`](crate::for_each_contract) lists the tests; each is a function here that speaks through
//! the public contract only, so that any backend can be held to it.

pub(crate) mod capture;
pub(crate) mod collectives;
pub(crate) mod comm;
pub(crate) mod errors;
pub(crate) mod events;
pub(crate) mod expert_parallel;
pub(crate) mod memory;
pub(crate) mod poison;
pub(crate) mod ranks;
pub(crate) mod streams;

use crate::rig::{Check, Rig};

/// Calls a macro with the table of contract areas and the tests of each.
#[macro_export]
macro_rules! for_each_contract {
    ($with:path) => {
        $with! {
            memory {
                allocations_are_aligned;
                allocations_that_live_together_do_not_overlap;
                a_freed_block_is_reused_at_once_by_its_own_stream;
                a_freed_block_is_not_reused_before_foreign_streams_passed;
                a_block_goes_to_another_stream_only_when_its_own_is_idle;
                dropping_a_device_gives_all_memory_back;
                the_high_water_mark_and_the_bytes_in_use_are_what_was_held;
                running_out_names_the_largest_holders_and_the_pool_stays_usable;
                tensors_without_elements_take_nothing_and_work_everywhere;
                a_thousand_steps_leave_the_memory_flat;
                many_short_streams_leave_nothing_behind;
            }
            streams {
                random_programs_over_streams_give_what_program_order_gives;
                an_upload_waits_for_earlier_work_of_its_stream;
                a_download_waits_for_earlier_work_of_its_stream;
                a_read_waits_for_the_write_of_another_stream;
                a_write_waits_for_the_read_of_another_stream;
                a_write_waits_for_the_write_of_another_stream;
                order_is_inherited_through_a_stream_in_between;
                host_threads_may_share_a_stream_or_have_their_own;
                streams_may_come_and_go_while_their_results_stay;
            }
            events {
                an_event_is_complete_when_the_work_before_it_is;
                an_event_does_not_wait_for_later_work;
                a_stream_that_waits_for_an_event_runs_behind_it;
                an_event_does_not_cover_what_its_stream_waited_for_later;
                events_measure_the_time_between_them_on_one_stream;
            }
            poison {
                every_way_of_waiting_reports_the_fault_with_operator_number_and_cause;
                a_pending_download_reports_the_fault_that_its_data_depends_on;
                a_stream_that_waits_for_the_fault_is_poisoned_and_one_that_waited_before_is_not;
                poison_travels_through_a_stream_in_between;
                readers_of_what_a_poisoned_stream_wrote_last_are_tainted;
                what_was_written_before_the_fault_stays_good_and_so_does_a_new_stream;
                an_operator_that_was_refused_taints_nothing;
                independent_streams_go_on;
                a_blocking_stream_names_the_operator_at_its_own_run;
            }
            capture {
                a_replay_equals_the_eager_run_and_capture_runs_nothing;
                eager_memory_never_aliases_the_graphs;
                a_graph_keeps_its_buffers_when_their_handles_are_dropped;
                a_graph_may_be_dropped_while_its_replay_is_in_flight;
                a_tensor_that_escapes_the_closure_stays_valid;
                what_cannot_be_captured_is_refused_and_the_stream_goes_on;
                a_closure_that_fails_leaves_the_stream_as_it_was;
                replays_on_other_streams_are_ordered_with_everything_that_shares_a_tensor;
                a_graph_of_another_device_or_on_a_poisoned_stream_is_refused;
            }
            errors {
                requests_beyond_all_memory_are_shape_errors_or_exhaustion;
                operands_of_two_devices_are_refused_and_so_is_a_foreign_stream;
                an_output_over_another_operand_is_refused;
                a_weight_in_another_devices_form_is_refused_before_it_is_enqueued;
                a_fault_is_of_a_kind_that_programs_can_tell;
                a_stream_that_denies_compositions_refuses_them_and_no_other;
                the_report_adds_up_the_cost_of_every_run;
            }
            collectives {
                support_says_whether_groups_can_be_joined;
                all_reduce;
                reduce_to;
                reduce_scatter;
                all_gather;
                all_to_all;
                broadcast;
                exchange;
                barrier;
                expert_parallel_ffn;
            }
            comm {
                a_sum_may_take_the_place_of_what_it_is_formed_of;
                fixed_order_reductions_have_the_bits_of_rank_order_whoever_comes_late;
                operators_of_one_communicator_run_in_the_order_they_were_run_on_whichever_streams;
                a_collective_waits_for_the_write_of_another_stream;
                collectives_are_captured_and_replayed;
                the_report_counts_the_bytes_sent_to_other_ranks;
                a_group_splits_by_color_in_the_order_of_keys;
                groups_are_joined_by_their_own_ranks_only;
                a_rank_that_left_is_named_on_every_survivor;
                a_rank_that_drops_everything_it_has_ends_the_wait_of_the_others;
                a_late_rank_is_named_on_every_rank;
                ranks_of_different_minds_are_told_so_and_who;
                a_stream_that_fails_ends_its_group_before_the_timeout;
                a_fault_that_was_inherited_ends_the_group_before_the_timeout;
                a_group_that_ended_refuses_and_others_still_work;
            }
            expert_parallel {
                ranks_together_give_what_one_device_with_all_experts_gives;
                rows_beyond_the_capacity_are_dropped_and_counted;
                the_form_of_fixed_capacity_is_captured_and_the_exact_one_refuses;
            }
        }
    };
}

/// One test of the contract.
#[derive(Clone, Copy)]
pub(crate) struct ContractTest {
    /// `area/test`.
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Rig) -> Check,
}

macro_rules! table {
    ($( $area:ident { $( $test:ident; )* } )*) => {
        /// Every test of the contract, in table order.
        pub(crate) const TESTS: &[ContractTest] = &[$( $( ContractTest {
            name: concat!(stringify!($area), "/", stringify!($test)),
            run: $area::$test,
        }, )* )*];
    };
}
for_each_contract!(table);
