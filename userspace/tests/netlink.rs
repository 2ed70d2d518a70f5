//! Interfaces, filters, routes, tunnel devices, the journal and the backend's set-up on a real
//! kernel.
//!
//! Each test has network namespaces of its own, so nothing here touches the host. They need root;
//! without it they are reported as ignored.

#[path = "netlink/attaching.rs"]
mod attaching;
#[path = "netlink/backend.rs"]
mod backend;
#[path = "netlink/socket.rs"]
mod socket;
#[path = "netlink/support.rs"]
mod support;
#[path = "netlink/undoing.rs"]
mod undoing;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// One test: its name, and what it does in its namespace.
type Test = (&'static str, fn() -> Result<Completion, Failed>);

/// Turns async functions into [`Test`]s that each run in a namespace.
macro_rules! tests {
    ($($module:ident: $($name:ident),+;)+) => {
        const TESTS: &[Test] = &[
            $($((stringify!($name), || support::in_namespace(|| async { $module::$name().await.into() })),)+)+
        ];
    };
}

tests! {
    socket:
        interfaces_are_described_and_a_missing_one_is_told_with_those_that_exist,
        addresses_come_and_go_once,
        routes_tell_interface_gateway_and_mtu,
        refusing_and_missing_routes_are_none,
        a_route_from_an_address_of_somebody_else_is_an_error,
        changes_of_links_addresses_and_routes_are_noticed,
        lost_notifications_count_as_a_change,
        a_tunnel_device_is_created_adopted_or_told_to_be_unsupported;
    attaching:
        clsact_is_created_once_and_removed,
        an_ingress_qdisc_serves_ingress_and_is_never_taken_for_egress,
        a_filter_is_put_listed_replaced_and_removed,
        replacing_leaves_no_moment_without_our_filter,
        a_place_held_by_somebody_else_is_refused_and_left_alone,
        filters_of_others_survive_everything_we_do;
    undoing:
        undoing_a_balancer_restores_the_host,
        undoing_a_backend_restores_the_host,
        a_kill_at_any_point_is_undone_completely,
        what_others_changed_since_is_left_alone,
        a_clsact_qdisc_with_filters_of_others_stays,
        filters_of_every_kind_keep_the_qdisc,
        an_interface_that_vanished_is_no_obstacle,
        a_failed_undo_stays_in_the_journal_and_can_be_repeated;
    backend:
        vip_addresses_on_lo_are_not_announced,
        preparing_twice_changes_nothing_more,
        strict_reverse_path_filtering_is_loosened_only_where_it_is_strict,
        interfaces_with_dots_are_silenced_too,
        a_set_up_that_cannot_work_is_refused_before_anything_changes,
        a_removed_vip_leaves_and_one_that_was_there_stays,
        what_is_sent_to_a_tunnel_device_arrives_at_the_vip;
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
