//! The daemons as processes: start, reload, end, kill, and `sluice down`.
//!
//! Each test runs in its own network and mount namespaces with a private BPF file system and a
//! private `/run`, so the host is not changed. The tests need root and are ignored without it.

#[path = "daemon/acl.rs"]
mod acl;
#[path = "daemon/addresses.rs"]
mod addresses;
#[path = "daemon/backend.rs"]
mod backend;
#[path = "daemon/blocked.rs"]
mod blocked;
#[path = "daemon/capture.rs"]
mod capture;
#[path = "daemon/checksum.rs"]
mod checksum;
#[path = "daemon/churn.rs"]
mod churn;
#[path = "daemon/down.rs"]
mod down;
#[path = "daemon/fixture.rs"]
mod fixture;
#[path = "daemon/growth.rs"]
mod growth;
#[path = "daemon/input.rs"]
mod input;
#[path = "daemon/instances.rs"]
mod instances;
#[path = "daemon/large.rs"]
mod large;
#[path = "daemon/lb.rs"]
mod lb;
#[path = "daemon/lifecycle.rs"]
mod lifecycle;
#[path = "daemon/limits.rs"]
mod limits;
#[path = "daemon/named_namespace.rs"]
mod named_namespace;
#[path = "daemon/namespaces.rs"]
mod namespaces;
#[path = "daemon/path_mtu.rs"]
mod path_mtu;
#[path = "daemon/presence.rs"]
mod presence;
#[path = "daemon/private_files.rs"]
mod private_files;
#[path = "daemon/ptrace.rs"]
mod ptrace;
#[path = "daemon/reload.rs"]
mod reload;
#[path = "daemon/repair.rs"]
mod repair;
#[path = "daemon/resources.rs"]
mod resources;
#[path = "daemon/routing.rs"]
mod routing;
#[path = "daemon/signals.rs"]
mod signals;
#[path = "daemon/status.rs"]
mod status;
#[expect(dead_code, reason = "shared with the tests of netlink, which use the rest of it")]
#[path = "netlink/support.rs"]
mod support;
#[path = "daemon/traffic.rs"]
mod traffic;
#[path = "daemon/transitions.rs"]
mod transitions;
#[path = "daemon/tunnel_devices.rs"]
mod tunnel_devices;
#[path = "daemon/unit.rs"]
mod unit;
#[path = "daemon/unreadable_files.rs"]
mod unreadable_files;
#[path = "daemon/wire.rs"]
mod wire;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// One test: its name and function.
type DaemonTest = (&'static str, fn() -> Result<Completion, Failed>);

/// Turns functions into tests that run in their own namespaces.
macro_rules! tests {
    ($($module:ident: $($name:ident),+;)+) => {
        const TESTS: &[DaemonTest] = &[
            $($((stringify!($name), || support::in_namespace(|| async {
                fixture::own_mounts();
                $module::$name().into()
            })),)+)+
        ];
    };
}

tests! {
    input:
        bad_input_is_one_error_line_with_exit_code_2_and_changes_nothing,
        the_error_about_a_missing_capability_contains_its_name,
        a_second_daemon_is_refused_and_changes_nothing,
        a_failed_attachment_is_undone_on_all_interfaces,
        another_layout_version_is_refused_and_removed_by_down,
        status_and_counters_change_nothing;
    lifecycle:
        down_restores_the_host_after_sigterm_and_sigkill,
        an_ephemeral_daemon_restores_the_host,
        a_first_start_without_a_control_socket_leaves_nothing_behind,
        a_log_that_takes_no_writes_does_not_end_the_daemon,
        down_is_refused_while_the_daemon_runs,
        down_removes_the_remains_of_every_crash,
        a_restart_adopts_all_maps_and_never_detaches,
        an_incomplete_pin_directory_is_completed;
    down:
        lines_of_the_journal_that_cannot_be_read_are_named,
        down_in_another_network_namespace_is_refused,
        changes_of_a_deleted_network_namespace_are_left,
        down_finds_changes_without_a_journal,
        down_finds_tunnel_devices_without_a_journal,
        down_without_a_journal_and_pins_names_the_unknown_changes,
        down_without_a_journal_leaves_what_another_instance_uses,
        a_daemon_without_its_lock_file_still_runs,
        maps_in_use_elsewhere_are_kept;
    namespaces:
        pins_in_another_mount_namespace_are_named,
        status_in_another_network_namespace_names_the_way_there,
        pins_that_the_first_process_sees_are_not_private;
    private_files:
        files_and_directories_are_private_whatever_the_umask,
        what_an_earlier_version_left_readable_is_made_private,
        a_shared_lock_of_another_process_is_not_a_daemon,
        a_hidden_lock_of_another_user_is_not_a_daemon,
        the_bpf_file_system_is_mounted_for_root_only,
        pins_that_another_user_planted_are_refused_and_never_followed,
        state_that_another_user_planted_is_refused,
        a_state_directory_without_room_for_a_lock_is_an_error;
    resources:
        the_limit_of_descriptors_is_raised_or_too_low,
        a_start_without_threads_fails_and_is_undone;
    unreadable_files:
        a_reload_of_a_pipe_is_refused_at_once,
        a_source_acl_that_cannot_be_read_again_is_stale,
        a_stop_does_not_wait_for_a_file_that_hangs,
        signals_while_a_file_hangs_are_one_reload;
    lb:
        status_and_counters_show_the_configured_state,
        a_reload_applies_only_the_differences,
        a_bad_reload_changes_nothing,
        foreign_filters_are_never_removed,
        a_route_change_updates_the_next_hops,
        a_lost_filter_is_attached_again,
        a_deleted_interface_is_attached_again_or_ignored;
    reload:
        sluice_reload_waits_for_the_result,
        sluice_reload_waits_for_source_acls,
        sluice_reload_reaches_the_daemon_of_one_role,
        sluice_reload_needs_root,
        parallel_reloads_share_a_reload,
        sluice_reload_has_a_timeout,
        the_journal_receives_severities,
        the_service_manager_receives_the_state_and_signs_of_life,
        a_service_manager_that_hangs_does_not_stop_the_daemon,
        reloads_of_clients_that_left_are_dropped;
    blocked:
        a_stop_does_not_wait_for_requests_without_an_answer,
        signs_of_life_last_as_long_as_a_request_may;
    status:
        status_fails_where_nothing_is_attached,
        status_fails_where_a_backend_does_not_decapsulate,
        status_fails_where_an_interface_is_down,
        status_fails_where_a_service_has_no_route,
        status_fails_where_a_filter_runs_another_program,
        status_names_changes_of_a_backend_that_are_undone,
        status_shows_whether_the_file_is_in_force,
        status_shows_a_daemon_that_hangs,
        a_daemon_without_its_state_directory_ends,
        programs_that_run_first_are_logged_and_shown;
    transitions:
        removing_a_backend_drops_no_packet,
        a_new_service_never_forwards_without_its_acl,
        a_new_service_never_forwards_without_its_acl_during_a_start,
        acl_files_are_read_when_a_failed_change_is_completed,
        the_start_after_a_killed_one_forwards_no_denied_packet,
        next_hops_of_one_family_are_updated_while_the_other_lacks_a_source;
    path_mtu:
        icmp_errors_about_encapsulated_packets_lower_the_mtu_of_the_backend,
        a_quoted_flow_must_select_the_backend_and_listed_routers_send_errors,
        a_quoted_flow_is_resolved_by_prefix_route_and_connection,
        a_path_mtu_outlives_the_daemon_and_expires,
        without_cap_net_raw_icmp_errors_are_ignored_and_packets_forwarded;
    capture:
        a_capture_contains_the_verdict_of_each_packet,
        a_text_capture_ends_with_a_summary,
        a_killed_capture_ends_by_its_deadline,
        a_capture_ends_with_its_instance_but_not_with_a_reload;
    addresses:
        dropping_other_ports_of_a_host_address_must_be_allowed,
        a_packet_from_a_vip_address_is_dropped_unless_it_is_allowed,
        a_prefix_that_contains_a_host_address_is_refused;
    acl:
        acls_apply_from_the_start_and_follow_their_files,
        a_bad_acl_file_fails_a_start_and_keeps_the_acl_on_reload,
        a_drain_takes_effect_while_a_million_prefixes_are_read,
        rates_follow_the_configuration;
    routing:
        routes_follow_reloads_and_outlive_the_daemon,
        quic_server_ids_follow_reloads_and_outlive_the_daemon;
    limits:
        limits_change_under_traffic_without_loss,
        only_maps_with_a_new_size_are_replaced,
        counts_of_replaced_maps_are_pinned_again,
        a_refused_reload_during_an_unfinished_resize_takes_nothing,
        a_limit_below_the_highest_used_index_is_refused,
        killing_the_daemon_during_a_replacement_loses_nothing,
        a_backends_maps_grow_with_the_limits;
    growth:
        a_million_flows_move_to_larger_maps_under_traffic;
    large:
        ten_large_tables_and_default_limits_take_less_than_32_mib,
        counters_of_256_large_tables_are_read_in_50_ms,
        the_largest_instance_is_applied_in_seconds;
    backend:
        a_priority_tag_does_not_keep_a_packet_from_the_backend,
        a_backend_accepts_tunnel_packets_from_listed_balancers_only,
        a_backend_starts_reloads_and_is_removed_by_down,
        no_packet_meets_maps_without_entries,
        thousands_of_vips_are_applied_in_seconds;
    tunnel_devices:
        tunnel_devices_that_disappear_or_change_are_restored,
        two_backends_share_tunnel_devices,
        tunnel_devices_accept_packets_from_listed_balancers_only;
    checksum:
        decapsulation_keeps_the_sum_of_a_packet_true,
        packets_with_a_sum_reach_backends_in_all_encapsulations;
    instances:
        a_change_of_the_priority_loses_no_packet,
        two_balancers_run_side_by_side,
        a_backend_serves_two_fleets,
        both_roles_leave_nothing_behind;
    presence:
        a_first_start_waits_for_interfaces_and_addresses,
        the_wait_of_a_first_start_is_bounded,
        changes_are_applied_while_an_interface_is_missing,
        a_renamed_interface_keeps_forwarding,
        changes_are_applied_while_an_underlay_address_is_missing,
        a_backend_follows_changes_while_something_is_missing;
    unit:
        the_documented_unit_tries_for_ever,
        the_documented_unit_survives_a_slow_boot_and_a_bad_file;
    repair:
        a_backend_restores_what_other_programs_change,
        removed_pins_are_made_again,
        the_mss_is_clamped_on_the_interface_of_a_new_default_route,
        a_lost_netlink_connection_is_replaced;
    churn:
        route_changes_delay_no_drain_and_cost_nothing_without_a_backend;
    signals:
        a_signal_before_the_configuration_is_read_is_a_reload,
        signals_during_the_load_of_a_program_refuse_no_reload,
        an_interrupted_load_of_a_program_is_repeated;
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
