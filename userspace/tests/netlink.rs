//! Interfaces, filters, routes, tunnel devices, the journal and the backend's setup on a real
//! kernel.
//!
//! Each test runs in its own network namespaces, so the host is not changed. The tests need root
//! and are ignored without it.

#[path = "netlink/backend.rs"]
mod backend;
#[path = "netlink/filters.rs"]
mod filters;
#[path = "netlink/links.rs"]
mod links;
#[path = "netlink/requests.rs"]
mod requests;
#[path = "netlink/support.rs"]
mod support;
#[path = "netlink/undo.rs"]
mod undo;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// One test: its name and function.
type NetlinkTest = (&'static str, fn() -> Result<Completion, Failed>);

/// Turns async functions into tests that run in their own namespace.
macro_rules! tests {
    ($($module:ident: $($name:ident),+;)+) => {
        const TESTS: &[NetlinkTest] = &[
            $($((stringify!($name), || support::in_namespace(|| async { $module::$name().await.into() })),)+)+
        ];
    };
}

tests! {
    requests:
        interfaces_are_read_and_an_unknown_name_is_an_error_with_all_names,
        addresses_are_added_and_removed_once,
        a_route_contains_interface_gateway_and_mtu,
        unreachable_and_missing_routes_are_none,
        a_route_from_a_foreign_address_is_an_error,
        changes_of_links_addresses_and_routes_are_reported,
        a_notification_names_what_has_changed,
        lost_notifications_count_as_a_change,
        a_tunnel_device_is_created_adopted_or_reported_as_unsupported;
    filters:
        clsact_is_created_once_and_removed,
        an_ingress_qdisc_is_used_for_ingress_only,
        a_filter_is_put_listed_replaced_and_removed,
        a_filter_is_replaced_without_a_gap,
        a_foreign_filter_at_the_same_priority_is_an_error_and_stays,
        foreign_filters_are_never_removed;
    links:
        an_xdp_link_is_attached_replaced_and_detached,
        an_xdp_link_outlives_the_daemon_and_is_undone,
        a_kill_around_the_attachment_of_a_link_is_undone,
        the_xdp_hook_of_another_program_is_refused_and_left_alone,
        a_cgroup_link_is_attached_replaced_and_undone;
    undo:
        undoing_a_balancer_restores_the_host,
        undoing_a_backend_restores_the_host,
        changes_are_undone_after_a_kill_at_any_point,
        settings_that_others_changed_are_kept,
        a_clsact_qdisc_with_foreign_filters_is_kept,
        a_clsact_qdisc_that_was_added_again_is_removed,
        filters_of_every_kind_keep_the_qdisc,
        a_deleted_interface_needs_no_undo,
        a_failed_undo_stays_in_the_journal_and_can_be_repeated;
    backend:
        vip_addresses_on_lo_are_not_announced,
        a_second_preparation_changes_nothing,
        only_strict_reverse_path_filtering_is_changed,
        gue_beside_tunnel_devices_needs_loose_filtering_of_the_interfaces,
        strict_reverse_path_filtering_is_kept_on_request,
        arp_sysctls_are_set_on_interfaces_with_dots_in_their_names,
        an_impossible_setup_is_refused_before_any_change,
        a_removed_vip_is_deleted_unless_it_existed_before,
        encapsulated_packets_arrive_at_the_vip_through_tunnel_devices;
}

fn main() {
    let arguments = Arguments::from_args();
    let root = nix::unistd::geteuid().is_root();
    let trials = TESTS.iter().map(|(name, test)| match root {
        true => Trial::ignorable_test(*name, test),
        false => Trial::ignorable_test(*name, || {
            Ok(Completion::ignored_with(
                "network namespaces need root (CAP_SYS_ADMIN, CAP_NET_ADMIN)",
            ))
        }),
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
