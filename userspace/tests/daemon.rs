//! The daemons as their users meet them: the real binary, started, told to reload, ended, killed
//! and taken down.
//!
//! Each test has network and mount namespaces of its own, with a private BPF file system and a
//! private `/run`, so nothing here touches the host. They need root; without it they are reported
//! as ignored.

#[path = "daemon/addresses.rs"]
mod addresses;
#[path = "daemon/backend.rs"]
mod backend;
#[path = "daemon/capture.rs"]
mod capture;
#[path = "daemon/changing.rs"]
mod changing;
#[path = "daemon/growth.rs"]
mod growth;
#[path = "daemon/input.rs"]
mod input;
#[path = "daemon/large.rs"]
mod large;
#[path = "daemon/lb.rs"]
mod lb;
#[path = "daemon/life.rs"]
mod life;
#[path = "daemon/limits.rs"]
mod limits;
#[path = "daemon/path_mtu.rs"]
mod path_mtu;
#[path = "daemon/routing.rs"]
mod routing;
#[path = "daemon/site.rs"]
mod site;
#[path = "daemon/sources.rs"]
mod sources;
#[path = "daemon/steps.rs"]
mod steps;
#[expect(dead_code, reason = "shared with the tests of netlink, which use the rest of it")]
#[path = "netlink/support.rs"]
mod support;
#[path = "daemon/traffic.rs"]
mod traffic;
#[path = "daemon/wire.rs"]
mod wire;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// One test: its name, and what it does in its namespaces.
type Test = (&'static str, fn() -> Result<Completion, Failed>);

/// Turns functions into [`Test`]s that each run in namespaces of their own.
macro_rules! tests {
    ($($module:ident: $($name:ident),+;)+) => {
        const TESTS: &[Test] = &[
            $($((stringify!($name), || support::in_namespace(|| async {
                site::own_mounts();
                $module::$name().into()
            })),)+)+
        ];
    };
}

tests! {
    input:
        bad_input_is_one_line_exit_code_2_and_leaves_nothing,
        a_missing_capability_is_named_and_leaves_nothing,
        a_second_daemon_is_refused_and_disturbs_nothing,
        a_place_held_by_somebody_else_leaves_nothing_half_done,
        another_layout_is_refused_with_the_way_forward_and_removed_by_down,
        questions_change_nothing;
    life:
        down_restores_the_host_after_sigterm_and_after_kill,
        an_ephemeral_daemon_leaves_nothing,
        down_is_refused_while_the_daemon_runs,
        down_finishes_what_any_crash_left,
        a_restart_adopts_everything_without_a_gap,
        a_half_created_directory_is_completed;
    lb:
        status_and_counters_tell_the_truth,
        a_reload_applies_what_changed_and_nothing_else,
        a_bad_reload_changes_nothing,
        filters_of_others_survive_everything,
        a_route_change_reaches_the_next_hops,
        a_lost_filter_is_attached_again,
        an_interface_that_vanished_is_no_obstacle;
    changing:
        a_backend_that_goes_away_loses_no_packet_of_those_that_others_take_over,
        a_new_service_with_a_list_is_closed_from_its_first_moment_on,
        a_new_service_with_a_list_is_closed_while_a_daemon_starts,
        lists_are_read_when_a_change_is_completed_later,
        a_start_that_was_killed_before_it_attached_lets_nobody_through_after_it,
        the_routes_of_one_family_are_followed_when_the_other_has_lost_its_source;
    path_mtu:
        errors_about_encapsulated_packets_lower_the_mtu_of_that_backend,
        a_told_mtu_outlives_the_daemon_and_expires,
        without_cap_net_raw_errors_go_unheard_and_packets_flow;
    capture:
        a_capture_tells_what_became_of_each_packet,
        a_capture_as_text_ends_with_a_summary,
        a_killed_capture_leaves_no_trace,
        a_capture_ends_with_its_instance_and_outlives_a_reload;
    addresses:
        unlisted_ports_of_the_hosts_own_addresses_are_not_dropped_unless_forced,
        a_prefix_that_holds_an_address_of_the_host_is_refused;
    sources:
        lists_count_from_the_start_and_follow_their_files,
        a_bad_list_keeps_a_start_from_happening_and_a_reload_from_changing_it,
        a_drain_takes_effect_while_a_million_prefixes_are_read,
        rates_follow_the_configuration;
    routing:
        routes_follow_reloads_and_outlive_the_daemon,
        server_ids_follow_reloads_and_outlive_the_daemon;
    limits:
        limits_change_under_traffic_and_nothing_is_lost,
        only_maps_that_change_their_size_are_replaced,
        a_limit_below_what_is_or_was_in_use_is_refused,
        a_death_at_any_moment_of_a_replacement_loses_nothing,
        a_backends_maps_grow_with_the_limits;
    growth:
        a_million_flows_move_to_larger_maps_under_traffic;
    large:
        ten_large_tables_and_default_limits_take_less_than_32_mib,
        the_largest_instance_is_applied_in_seconds;
    backend:
        a_backend_serves_reloads_and_is_taken_down;
}

fn main() {
    let arguments = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    let trials = TESTS.iter().map(|(name, test)| match root {
        true => Trial::ignorable_test(*name, test),
        false => Trial::ignorable_test(*name, || {
            Ok(Completion::ignored_with(
                "namespaces and BPF need root (CAP_SYS_ADMIN, CAP_NET_ADMIN)",
            ))
        }),
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
